//! The linked artifacts among cargo's messages, and their files.

use crate::baseline::{Artifact, ArtifactKind};
use crate::config::Setup;
use crate::error::{IoContext, Result, utf8};
use crate::linker::build_id;
use cargo_metadata::{Target, TargetKind};
use livepatch_patch::BuildId;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

/// An artifact that cargo linked, or found up to date.
#[derive(Clone, Debug)]
pub(crate) struct Linked {
    pub artifact: Artifact,
    pub output: PathBuf,
    pub fresh: bool,
}

impl Linked {
    pub(crate) fn build_id(&self) -> Result<Option<BuildId>> {
        build_id(&self.output)
    }
}

/// The executable or shared object of a message, if it is one that can be patched later.
pub(super) fn linked(message: cargo_metadata::Artifact, setup: &Setup) -> Result<Option<Linked>> {
    let Some(kind) = kind(&message.target, message.profile.test) else { return Ok(None) };
    let output = match (&message.executable, kind) {
        (Some(executable), _) => executable.as_std_path().to_path_buf(),
        (None, ArtifactKind::Cdylib | ArtifactKind::Dylib | ArtifactKind::Example) => {
            match message.filenames.iter().find(|name| name.extension() == Some("so")) {
                Some(name) => name.as_std_path().to_path_buf(),
                None => return Ok(None),
            }
        }
        _ => return Ok(None),
    };
    let (package, package_version) = name_and_version(&message.package_id.repr);
    let artifact = Artifact {
        package,
        package_version,
        name: message.target.name.clone(),
        kind,
        test: message.profile.test,
        file_name: utf8("the output's name", output.file_name().unwrap_or_default())?,
        triple: triple(&output, setup),
    };
    Ok(Some(Linked { artifact, output, fresh: message.fresh }))
}

fn kind(target: &Target, test: bool) -> Option<ArtifactKind> {
    if test {
        return Some(ArtifactKind::Test);
    }
    target.kind.iter().find_map(|kind| match kind {
        TargetKind::Bin => Some(ArtifactKind::Bin),
        TargetKind::Example => Some(ArtifactKind::Example),
        TargetKind::Test | TargetKind::Bench => Some(ArtifactKind::Test),
        TargetKind::CDyLib => Some(ArtifactKind::Cdylib),
        TargetKind::DyLib => Some(ArtifactKind::Dylib),
        _ => None,
    })
}

/// From a package id (`path+file:///a/name#0.1.0`, `registry+https://…#name@1.0.0`).
pub(super) fn name_and_version(id: &str) -> (String, String) {
    let (url, fragment) = id.rsplit_once('#').unwrap_or((id, ""));
    match fragment.split_once('@') {
        Some((name, version)) => (name.to_owned(), version.to_owned()),
        None => {
            let path = url.split('?').next().unwrap_or(url);
            (path.rsplit('/').next().unwrap_or(path).to_owned(), fragment.to_owned())
        }
    }
}

/// Outputs for an explicit target lie in a folder of its name.
fn triple(output: &Path, setup: &Setup) -> String {
    let folders: Vec<_> = output.iter().filter_map(|part| part.to_str()).collect();
    let explicit = setup.triples.iter().find(|triple| folders.contains(&triple.as_str()));
    explicit.unwrap_or(&setup.host).clone()
}

/// Removes an output and the file in the build folder that it is a link or copy of, so that cargo links it again.
pub(crate) fn remove_output(output: &Path, target_dir: &Path, build_dir: &Path) -> Result<()> {
    let meta = fs::metadata(output).at("read", output)?;
    let parent = output.parent().unwrap_or(output);
    let inside = parent.strip_prefix(target_dir).unwrap_or(parent);
    let build = build_dir.join(inside);
    let id = build_id(output)?;
    for folder in [build.join("deps"), build] {
        let Ok(entries) = fs::read_dir(&folder) else { continue };
        for entry in entries {
            let path = entry.at("list", &folder)?.path();
            let Ok(other) = fs::metadata(&path) else { continue };
            let linked = (other.dev(), other.ino()) == (meta.dev(), meta.ino());
            let copied = || other.len() == meta.len() && build_id(&path).is_ok_and(|other| other == id);
            if other.is_file() && path != output && (linked || copied()) {
                fs::remove_file(&path).at("remove", &path)?;
            }
        }
    }
    fs::remove_file(output).at("remove", output)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn package_ids() {
        let pair = |id| name_and_version(id);
        assert_eq!(pair("path+file:///a/b/app#0.1.0"), ("app".into(), "0.1.0".into()));
        assert_eq!(pair("path+file:///a/b/dir#app@0.1.0"), ("app".into(), "0.1.0".into()));
        assert_eq!(pair("git+https://x/y/z?rev=1#1.2.3"), ("z".into(), "1.2.3".into()));
    }
}
