//! Libraries that a patch brings in: those that the rebuilt program needs and the running one has not loaded.
//!
//! The program's own loader loads them, found as it finds everything: by soname. Nothing refers to a library until the patch is
//! linked, and it is never unloaded, so what a failed attempt leaves behind is a library that nobody uses.

use crate::error::ApplyError;
use crate::load::{CALL_LIMIT, DLOPEN_CALLS, Loader, RTLD_NOW};
use crate::safepoint;
use crate::scope::Scope;
use livepatch_patch::RunAddr;
use livepatch_process::{Process, ProcessError, RemoteCall, Seized};
use std::time::Instant;

/// A library that the loader has loaded for us, or had loaded already.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Library {
    /// Its soname.
    pub name: String,
    /// The loader's handle.
    pub handle: u64,
}

/// `RTLD_NODELETE` of `<dlfcn.h>`: the library stays, whatever the program closes.
const RTLD_NODELETE: u64 = 0x1000;
/// What a loader does to find a library by its name, besides [`DLOPEN_CALLS`]: `newfstatat`.
const SEARCH_CALLS: [i64; 1] = [262];
/// Longest text of the loader that is repeated.
const MOST_TEXT: u64 = 512;

/// Makes sure that the process has a loader to ask.
///
/// # Errors
/// [`ApplyError::Refused`]: it has none.
pub fn check(scope: &Scope<'_>, names: &[String]) -> Result<(), ApplyError> {
    opener(scope, names).map(drop)
}

fn opener(scope: &Scope<'_>, names: &[String]) -> Result<RunAddr, ApplyError> {
    scope.function("dlopen")?.ok_or_else(|| {
        ApplyError::refused(format!(
            "the patch needs {}, which this process has not loaded, and it has no loader that could (`dlopen`; a static program \
             has none); ship the change with the next release",
            names.join(", ")
        ))
    })
}

impl Loader<'_> {
    /// Has the program's loader load a library.
    ///
    /// # Errors
    /// [`ApplyError::Refused`] if the loader cannot: nothing is changed then.
    pub fn load_library(&self, seized: &mut Seized, name: &str) -> Result<Library, ApplyError> {
        let dlopen = opener(self.scope, &[name.to_owned()])?;
        let dlerror = self.scope.function("dlerror")?;
        safepoint::on_any_thread(seized, self.deadline, |thread| {
            let calls = DLOPEN_CALLS.iter().chain(&SEARCH_CALLS);
            calls.into_iter().try_for_each(|number| Ok(thread.check_syscall(*number, [0; 6])?))
        })?;
        self.clear_site(seized)?;
        let text = self.site().put_string(self.process, name.as_bytes())?;
        let call = |name, function, args| RemoteCall { name, function, args, site: self.site() };
        let open = call("dlopen", dlopen, [text.0, RTLD_NOW | RTLD_NODELETE, 0, 0, 0, 0]);
        let (handle, why) =
            safepoint::on_safe_thread(seized, self.rules, self.tables, self.deadline, |thread| {
                let limit = self.deadline.max(Instant::now() + CALL_LIMIT);
                let handle = thread.remote_call(&open, limit)?;
                // The loader keeps the reason for this thread, and the program is not to find it there.
                let why = match dlerror.filter(|_| handle == 0) {
                    Some(dlerror) => thread.remote_call(&call("dlerror", dlerror, [0; 6]), limit)?,
                    None => 0,
                };
                Ok((handle, why))
            })?;
        if handle != 0 {
            return Ok(Library { name: name.to_owned(), handle });
        }
        let why = string(self.process, why).unwrap_or_else(|_| "no reason given".to_owned());
        Err(ApplyError::refused(format!(
            "the patch needs the library {name}, which the program's loader cannot load ({why}); install it on this host and try \
             again, or ship the change with the next release"
        )))
    }
}

fn string(process: &Process, at: u64) -> Result<String, ProcessError> {
    let mut bytes = Vec::new();
    for offset in 0..MOST_TEXT {
        match process.read_array::<1>(RunAddr(at).offset(offset as i64))? {
            [0] => break,
            [byte] => bytes.push(byte),
        }
    }
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}
