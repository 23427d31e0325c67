//! What the user asked cargo for, and how cargo is set up here.

use crate::baseline::Invocation;
use crate::error::{Error, IoContext, Result, utf8};
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The arguments of `cargo build`, taken apart as far as needed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct BuildArgs {
    /// Everything that says what to build, in order.
    pub what: Vec<String>,
    /// `--message-format`, if given.
    pub message_format: Option<String>,
    /// `--target-dir`, if given.
    pub target_dir: Option<PathBuf>,
    /// Name of the profile.
    pub profile: String,
    /// `--target`, in order.
    pub targets: Vec<String>,
    /// `--manifest-path`, if given.
    pub manifest_path: Option<PathBuf>,
    /// `--config`, in order.
    pub config: Vec<String>,
}

impl BuildArgs {
    pub(crate) fn parse(args: &[String]) -> Self {
        let mut parsed = Self { profile: "dev".into(), ..Self::default() };
        let mut rest = args.iter();
        while let Some(arg) = rest.next() {
            let (name, inline) = match arg.split_once('=') {
                Some((name, value)) if name.starts_with("--") => (name, Some(value.to_owned())),
                _ => (arg.as_str(), None),
            };
            let known =
                ["--message-format", "--target-dir", "--profile", "--target", "--manifest-path", "--config"];
            if !known.contains(&name) {
                if arg == "--release" || is_short_release(arg) {
                    parsed.profile = "release".into();
                }
                parsed.what.push(arg.clone());
                continue;
            }
            let Some(value) = inline.or_else(|| rest.next().cloned()) else {
                // cargo says what is missing.
                parsed.what.push(arg.clone());
                continue;
            };
            parsed.take(name, value);
        }
        parsed
    }

    fn take(&mut self, name: &str, value: String) {
        match name {
            "--message-format" => self.message_format = Some(value),
            "--target-dir" => self.target_dir = Some(value.into()),
            _ => {
                self.what.extend([name.to_owned(), value.clone()]);
                match name {
                    "--profile" => self.profile = value,
                    "--target" => self.targets.push(value),
                    "--manifest-path" => self.manifest_path = Some(value.into()),
                    _ => self.config.push(value),
                }
            }
        }
    }

    /// Whether the user reads cargo's messages as JSON.
    pub(crate) fn wants_json(&self) -> bool {
        self.message_format.as_deref().is_some_and(|format| format.starts_with("json"))
    }

    /// The message format that gives us the artifacts and the user what was asked for.
    pub(crate) fn message_format(&self) -> &str {
        match self.message_format.as_deref() {
            Some(json) if json.starts_with("json") => json,
            Some("short") => "json-render-diagnostics,json-diagnostic-short",
            _ => "json-render-diagnostics",
        }
    }
}

/// `-r`, alone or among other short flags (`-vr`).
fn is_short_release(arg: &str) -> bool {
    arg.strip_prefix('-').is_some_and(|flags| {
        !flags.is_empty() && flags.chars().all(|flag| "rvq".contains(flag)) && flags.contains('r')
    })
}

/// The folders and tools that a build uses.
#[derive(Clone, Debug)]
pub(crate) struct Setup {
    /// cargo itself.
    pub cargo: OsString,
    /// Where it is started.
    pub cwd: PathBuf,
    pub workspace_root: PathBuf,
    pub target_dir: PathBuf,
    pub build_dir: PathBuf,
    pub cargo_home: PathBuf,
    /// `rustc -vV`.
    pub rustc: String,
    /// `cargo --version`.
    pub cargo_version: String,
    /// The host's triple.
    pub host: String,
    /// What is built for: the host if nothing else is asked for.
    pub triples: Vec<String>,
    /// The linker of each triple.
    pub linkers: BTreeMap<String, String>,
    /// The user's compiler wrapper.
    pub rustc_wrapper: Option<String>,
    /// Whether a profile may put debug information into files of its own, which a baseline could not hold.
    pub splits_debuginfo: bool,
}

impl Setup {
    /// Asks cargo and reads its configuration, as it is in `cwd` under the environment changes `env`.
    pub(crate) fn find(cwd: &Path, args: &BuildArgs, env: &Environment) -> Result<Self> {
        let cwd = std::path::absolute(cwd).at("resolve", cwd)?;
        let cargo =
            std::env::var_os("CARGO").filter(|cargo| !cargo.is_empty()).unwrap_or_else(|| "cargo".into());
        let metadata = metadata(&cargo, &cwd, args, env)?;
        let folder = |key: &str| metadata.get(key).and_then(|value| value.as_str()).map(PathBuf::from);
        let missing = |key: &str| Error::Failed {
            program: "cargo metadata".into(),
            status: "success".into(),
            message: format!("its answer has no `{key}`"),
        };
        let target_dir = folder("target_directory").ok_or_else(|| missing("target_directory"))?;
        let build_dir = folder("build_directory").unwrap_or_else(|| target_dir.clone());
        let resolve = cargo_config2::ResolveOptions::default().env(env.apply(std::env::vars_os()));
        let config = cargo_config2::Config::load_with_options(&cwd, resolve).map_err(Error::Config)?;
        let compiler = config.build.rustc.clone().unwrap_or_else(|| "rustc".into());
        let rustc = answer(env.command(&compiler, &cwd).arg("-vV"))?;
        let host = rustc.lines().find_map(|line| line.strip_prefix("host: ")).unwrap_or_default().to_owned();
        let triples: Vec<_> = config
            .build_target_for_config(args.targets.iter().map(String::as_str))
            .map_err(Error::Config)?
            .iter()
            .map(|target| target.triple().to_owned())
            .collect();
        let mut linkers = BTreeMap::new();
        for triple in &triples {
            linkers.insert(triple.clone(), linker(&config, triple)?);
        }
        let workspace_root = folder("workspace_root").ok_or_else(|| missing("workspace_root"))?;
        Ok(Self {
            target_dir,
            build_dir,
            cargo_home: cargo_home(&cwd)?,
            cargo_version: answer(env.command(&cargo, &cwd).arg("--version"))?.trim().to_owned(),
            rustc,
            host,
            triples,
            linkers,
            rustc_wrapper: config
                .build
                .rustc_wrapper
                .as_ref()
                .map(|path| utf8("RUSTC_WRAPPER", path))
                .transpose()?,
            splits_debuginfo: splits_debuginfo(&cwd, &workspace_root, args),
            workspace_root,
            cargo,
            cwd,
        })
    }

    /// What a baseline keeps of it.
    pub(crate) fn invocation(&self, args: &BuildArgs, env: &Environment) -> Invocation {
        let cwd = self.cwd.strip_prefix(&self.workspace_root).unwrap_or(&self.cwd).to_path_buf();
        Invocation {
            args: args.what.clone(),
            profile: args.profile.clone(),
            cwd,
            workspace_root: self.workspace_root.clone(),
            target_dir: self.target_dir.clone(),
            build_dir: self.build_dir.clone(),
            cargo_home: self.cargo_home.clone(),
            env: recorded(env.apply(std::env::vars_os())),
            rustc: self.rustc.clone(),
            cargo: self.cargo_version.clone(),
        }
    }
}

fn linker(config: &cargo_config2::Config, triple: &str) -> Result<String> {
    if !(triple.starts_with("x86_64-") && triple.contains("-linux-")) {
        return Err(Error::Target(triple.to_owned()));
    }
    match config.linker(triple).map_err(Error::Config)? {
        Some(path) => utf8("the configured linker", &path),
        // What rustc takes by itself for every x86-64 Linux target.
        None => Ok("cc".to_owned()),
    }
}

/// Looks for the setting wherever a profile can be written. A mention elsewhere in these files does no harm: the value
/// that is then set is the default.
fn splits_debuginfo(cwd: &Path, workspace_root: &Path, args: &BuildArgs) -> bool {
    const KEY: &str = "split-debuginfo";
    let mentions = |path: &Path| std::fs::read_to_string(path).is_ok_and(|text| text.contains(KEY));
    args.config.iter().any(|config| config.contains(KEY) || mentions(&cwd.join(config)))
        || mentions(&workspace_root.join("Cargo.toml"))
        || cargo_config2::Walk::new(cwd).any(|path| mentions(&path))
}

fn metadata(cargo: &OsString, cwd: &Path, args: &BuildArgs, env: &Environment) -> Result<serde_json::Value> {
    let mut command = env.command(cargo, cwd);
    command.args(["metadata", "--format-version=1", "--no-deps"]);
    if let Some(path) = &args.manifest_path {
        command.arg("--manifest-path").arg(path);
    }
    for config in &args.config {
        command.arg("--config").arg(config);
    }
    if let Some(folder) = &args.target_dir {
        command.env("CARGO_TARGET_DIR", folder);
    }
    let text = answer(&mut command)?;
    serde_json::from_str(&text).map_err(|e| Error::Failed {
        program: "cargo metadata".into(),
        status: "success".into(),
        message: e.to_string(),
    })
}

fn cargo_home(cwd: &Path) -> Result<PathBuf> {
    let home = std::env::var_os("CARGO_HOME")
        .filter(|home| !home.is_empty())
        .map(PathBuf::from)
        .or_else(|| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cargo")));
    home.map(|home| cwd.join(home)).ok_or(Error::NoHome)
}

/// Standard output of a program that must succeed.
fn answer(command: &mut Command) -> Result<String> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command.output().map_err(|source| Error::Spawn { program, source })?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    Err(Error::Failed {
        program: format!("{command:?}"),
        status: output.status.to_string(),
        message: String::from_utf8_lossy(&output.stderr).trim().to_owned(),
    })
}

/// Changes to the environment of cargo and of everything under it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Environment {
    /// Set (`Some`) or removed (`None`), by name.
    pub changes: BTreeMap<OsString, Option<OsString>>,
}

impl Environment {
    /// The variables of a recorded build in place of today's.
    pub(crate) fn of_baseline(invocation: &Invocation) -> Self {
        let mut changes: BTreeMap<OsString, Option<OsString>> =
            recorded(std::env::vars_os()).into_keys().map(|name| (name.into(), None)).collect();
        for (name, value) in &invocation.env {
            changes.insert(name.into(), Some(value.into()));
        }
        Self { changes }
    }

    pub(crate) fn set(&mut self, name: impl Into<OsString>, value: impl Into<OsString>) {
        self.changes.insert(name.into(), Some(value.into()));
    }

    fn apply(&self, vars: impl Iterator<Item = (OsString, OsString)>) -> Vec<(OsString, OsString)> {
        let kept = vars.filter(|(name, _)| !self.changes.contains_key(name));
        let set = self.changes.iter().filter_map(|(name, value)| Some((name.clone(), value.clone()?)));
        kept.chain(set).collect()
    }

    pub(crate) fn command(&self, program: impl AsRef<std::ffi::OsStr>, cwd: &Path) -> Command {
        let mut command = Command::new(program);
        command.current_dir(cwd);
        for (name, value) in &self.changes {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        command
    }
}

/// Variables that influence what cargo, rustc and the usual build scripts build, but not where.
fn recorded(vars: impl IntoIterator<Item = (OsString, OsString)>) -> BTreeMap<String, String> {
    const EXACT: &[&str] = &[
        "RUSTFLAGS",
        "CARGO_ENCODED_RUSTFLAGS",
        "CARGO_INCREMENTAL",
        "RUSTC",
        "RUSTC_WRAPPER",
        "RUSTC_WORKSPACE_WRAPPER",
        "RUSTC_BOOTSTRAP",
        "CRATE_CC_NO_DEFAULTS",
        "SOURCE_DATE_EPOCH",
        "LDFLAGS",
        "CPPFLAGS",
        "CPATH",
        "C_INCLUDE_PATH",
        "CPLUS_INCLUDE_PATH",
        "LIBRARY_PATH",
    ];
    const PREFIXES: &[&str] =
        &["CARGO_BUILD_", "CARGO_PROFILE_", "CARGO_TARGET_", "CARGO_FEATURE_", "PKG_CONFIG"];
    const TOOLS: &[&str] = &["CC", "CXX", "AR", "CFLAGS", "CXXFLAGS", "ARFLAGS", "RANLIB"];
    const PLACES: &[&str] =
        &["CARGO_TARGET_DIR", "CARGO_BUILD_TARGET_DIR", "CARGO_BUILD_BUILD_DIR", "CARGO_BUILD_JOBS"];
    let wanted = |name: &str| {
        !PLACES.contains(&name)
            && (EXACT.contains(&name)
                || PREFIXES.iter().any(|prefix| name.starts_with(prefix))
                || TOOLS.iter().any(|tool| {
                    [
                        name,
                        name.strip_prefix("HOST_").unwrap_or(name),
                        name.strip_prefix("TARGET_").unwrap_or(name),
                    ]
                    .iter()
                    .any(|name| {
                        name.strip_prefix(tool).is_some_and(|rest| rest.is_empty() || rest.starts_with('_'))
                    })
                }))
    };
    vars.into_iter()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .filter(|(name, _)| wanted(name))
        .collect()
}

/// The name of a profile as cargo's environment variables have it.
pub(crate) fn env_name(text: &str) -> String {
    text.chars().map(|c| if c == '-' || c == '.' { '_' } else { c.to_ascii_uppercase() }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(args: &[&str]) -> BuildArgs {
        BuildArgs::parse(&args.iter().map(|arg| (*arg).to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn profiles_and_places() {
        assert_eq!(parse(&[]).profile, "dev");
        assert_eq!(parse(&["-vr"]).profile, "release");
        assert_eq!(parse(&["-p", "r"]).profile, "dev");
        assert_eq!(parse(&["--profile=fat-lto"]).profile, "fat-lto");
        let args = parse(&["--release", "--target-dir", "/t", "--message-format=json", "--target", "x"]);
        assert_eq!(args.what, ["--release", "--target", "x"]);
        assert_eq!((args.target_dir, args.targets), (Some("/t".into()), vec!["x".to_owned()]));
    }

    #[test]
    fn what_is_recorded() {
        let vars = [
            "RUSTFLAGS",
            "CC_x86_64_unknown_linux_gnu",
            "CARGO_TARGET_DIR",
            "CARGO",
            "CCACHE_DIR",
            "HOST_CC",
        ];
        let kept = recorded(vars.map(|name| (name.into(), "1".into())));
        assert_eq!(
            kept.into_keys().collect::<Vec<_>>(),
            ["CC_x86_64_unknown_linux_gnu", "HOST_CC", "RUSTFLAGS"]
        );
    }
}
