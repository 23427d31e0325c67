//! The file in which `perf` looks for names of code that comes from no file: `/tmp/perf-PID.map`.
//!
//! The folder is one that everybody may write to, and the name is known beforehand. So nothing that stands there is
//! followed, overwritten or removed: a new file is made by this call alone, and to an old one lines are added only if nobody but the
//! process, the superuser or this user can have put it there, nobody else writes to it, and it is not an earlier process's.
//!
//! Path and number are those of the process's own namespaces, as perf wants it.

use crate::Process;
use crate::error::ProcessError;
use crate::{numbered, procfs, sys};
use nix::errno::Errno;
use nix::fcntl::{OFlag, open, openat};
use nix::sys::stat::Mode;
use std::collections::HashSet;
use std::fs::{File, Metadata};
use std::io::{Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

/// Why the map was not written.
#[derive(Debug, thiserror::Error)]
pub enum PerfMapError {
    /// What stands there is not to be touched.
    #[error("{} {what}", .path.display())]
    Untouchable {
        /// The map.
        path: PathBuf,
        /// What is wrong with it, and what to do.
        what: String,
    },
    /// It could not be written.
    #[error("{} cannot be written", .path.display())]
    Io {
        /// The map.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The process could not be read.
    #[error(transparent)]
    Process(#[from] ProcessError),
}

/// Largest map that lines are added to.
const MAX_SIZE: u64 = 256 << 20;
/// How far the clock that files are stamped with and the one that processes are may be apart.
const CLOCKS: Duration = Duration::from_secs(2);

impl Process {
    /// Adds those of the lines to the process's perf map that it does not have. Returns the map's path as this tool sees it.
    pub fn add_to_perf_map(&self, lines: &[String]) -> Result<PathBuf, PerfMapError> {
        let number = self.status()?.own_number.unwrap_or(self.pid().0);
        let (folder, flags) = self.tmp()?;
        let path = folder.join(format!("perf-{number}.map"));
        let mut file = self.open_map(&folder, flags, &path)?;
        // It lives, so everything above was about this process and not about a later one of its number.
        if !self.is_alive() {
            return Err(ProcessError::ended(self.pid()).into());
        }
        append(&mut file, lines).map_err(|source| PerfMapError::Io { path: path.clone(), source })?;
        Ok(path)
    }

    /// The folder where perf looks, from here, and how to open it. In another mount namespace a link could lead anywhere.
    fn tmp(&self) -> Result<(PathBuf, OFlag), PerfMapError> {
        let space = |path: PathBuf| match std::fs::metadata(&path) {
            Ok(meta) => Ok((meta.dev(), meta.ino())),
            Err(source) => Err(PerfMapError::Io { path, source }),
        };
        let process = procfs::task_dir(self.pid(), self.live_thread()?);
        Ok(match space("/proc/self/ns/mnt".into())? == space(process.join("ns/mnt"))? {
            true => (PathBuf::from("/tmp"), OFlag::empty()),
            false => (process.join("root/tmp"), OFlag::O_NOFOLLOW),
        })
    }

    /// Opens the map to add lines, or makes one.
    fn open_map(&self, folder: &Path, flags: OFlag, path: &Path) -> Result<File, PerfMapError> {
        let io = |source: std::io::Error| PerfMapError::Io { path: path.to_owned(), source };
        let untouchable = |what: String| PerfMapError::Untouchable { path: path.to_owned(), what };
        let flags = OFlag::O_DIRECTORY | OFlag::O_RDONLY | OFlag::O_CLOEXEC | flags;
        let tmp = open(folder, flags, Mode::empty()).map_err(|error| io(error.into()))?;
        let name = path.file_name().unwrap_or_default();
        // Neither a link nor a pipe without a reader makes this go elsewhere or wait.
        let flags =
            OFlag::O_RDWR | OFlag::O_APPEND | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
        match openat(&tmp, name, flags, Mode::empty()) {
            Ok(file) => {
                let file = File::from(file);
                self.check_map(&file.metadata().map_err(io)?).map_err(untouchable)?;
                Ok(file)
            }
            Err(Errno::ENOENT) => {
                let mode = Mode::from_bits_truncate(0o644);
                let made = openat(&tmp, name, flags | OFlag::O_CREAT | OFlag::O_EXCL, mode);
                Ok(made.map_err(|error| io(error.into()))?.into())
            }
            Err(Errno::ELOOP) => {
                Err(untouchable("is a symbolic link, which is not followed; remove it".into()))
            }
            Err(error) => Err(io(error.into())),
        }
    }

    /// Whether lines may be added to a map that is there.
    fn check_map(&self, map: &Metadata) -> Result<(), String> {
        let own = sys::own_euid();
        if !map.is_file() || map.nlink() != 1 {
            return Err("is no plain file of one name; remove it".into());
        }
        if ![0, own, self.uid()].contains(&map.uid()) {
            return Err(format!("belongs to user {}; remove it", map.uid()));
        }
        if map.len() > MAX_SIZE {
            return Err(format!("has {} bytes, more than {MAX_SIZE}", map.len()));
        }
        let started = procfs::started(self.pid()).map_err(|error| format!("cannot be dated: {error}"))?;
        let written = map.modified().unwrap_or(SystemTime::UNIX_EPOCH);
        if written + CLOCKS < started {
            return Err(
                "is older than the process, so it is of an earlier one of that number; remove it".into()
            );
        }
        match self.writes_to(map) {
            Ok(false) => Ok(()),
            Ok(true) => Err(
                "is open for writing in the process, which might write in the middle of our lines; use a \
                             symbol file for a debugger, or end what writes there"
                    .into(),
            ),
            Err(error) => Err(format!("may be open in the process: {error}")),
        }
    }

    /// Whether the process has the file open for writing.
    fn writes_to(&self, file: &Metadata) -> std::io::Result<bool> {
        let thread = self.live_thread().map_err(std::io::Error::other)?;
        let folder = procfs::task_dir(self.pid(), thread).join("fd");
        for name in numbered::names_in(&folder)? {
            let path = folder.join(name);
            // A descriptor may be closed meanwhile.
            let Ok(open) = std::fs::metadata(&path) else { continue };
            if (open.dev(), open.ino()) != (file.dev(), file.ino()) {
                continue;
            }
            // The link's permissions are those that the file was opened for.
            if path.symlink_metadata().is_ok_and(|link| link.mode() & 0o200 != 0) {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

/// Adds the lines that are missing, in one write.
fn append(file: &mut File, lines: &[String]) -> std::io::Result<()> {
    let mut known = Vec::new();
    (&*file).take(2 * MAX_SIZE).read_to_end(&mut known)?;
    let there: HashSet<&[u8]> = known.split(|byte| *byte == b'\n').collect();
    let mut new = String::new();
    if known.last().is_some_and(|byte| *byte != b'\n') {
        new.push('\n');
    }
    for line in lines.iter().filter(|line| !there.contains(line.as_bytes())) {
        new.push_str(line);
        new.push('\n');
    }
    file.write_all(new.as_bytes())
}
