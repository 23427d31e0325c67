//! Libraries that the rebuilt program needs and the running one has not loaded.

use super::{Job, Past, Prepared};
use crate::bind::Bound;
use crate::error::ApplyError;
use crate::library::{self, Library};
use crate::safepoint::Rules;
use crate::unwind::Tables;
use livepatch_process::Seized;

impl Job<'_> {
    /// The libraries that have to be there before the patch can be bound; none if everything that it imports was found, or is
    /// bound already.
    pub(super) fn libraries_to_bring(
        &self,
        prepared: &Prepared<'_>,
        bound: &Bound,
        past: &Past,
    ) -> Result<&[String], ApplyError> {
        let libraries = self.patch.meta.libraries.as_slice();
        let Some(missing) = bound.missing.first().or(bound.absent.first()) else { return Ok(&[]) };
        let needed = !bound.missing.is_empty() || (!libraries.is_empty() && past.libraries.is_none());
        if !needed || prepared.state().find(&self.id).is_some() {
            return Ok(&[]);
        }
        if libraries.is_empty() {
            let reason =
                format!("the patch needs `{missing}`, which no library loaded in this process provides");
            return Err(ApplyError::refused(reason));
        }
        if past.libraries.is_some() {
            return Err(ApplyError::refused(format!(
                "the patch needs `{missing}`, which neither the process nor {} of this host provides; the build was made with \
                 another version of it",
                libraries.join(", ")
            )));
        }
        library::check(&prepared.scope, libraries)?;
        Ok(libraries)
    }

    /// Has them loaded. The process is looked at afresh afterwards, so that they are found like all others.
    ///
    /// Each run does so for itself: a handle proves that the loader is done with the library, whoever asked for it first.
    pub(super) fn bring(
        &self,
        prepared: &Prepared<'_>,
        tables: &Tables,
        rules: &Rules,
        mut seized: Seized,
        libraries: &[String],
    ) -> Result<Vec<Library>, ApplyError> {
        let location = self.location(prepared, &mut seized, &prepared.state())?;
        let loader = self.loader(prepared, tables, rules, location);
        let brought =
            libraries.iter().map(|name| loader.load_library(&mut seized, name)).collect::<Result<_, _>>();
        seized.leave()?;
        brought
    }
}
