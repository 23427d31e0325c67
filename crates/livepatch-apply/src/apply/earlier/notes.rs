//! What is no obstacle and has to be known of variables that earlier patches brought. `create` says the same of those of the image, but
//! it has not seen the earlier patches.

use super::super::Job;
use crate::bind::instances;
use crate::names::demangled;
use crate::registry::{Record, State};
use livepatch_patch::{NewItem, NewItemKind, Note, Once, Place, names_call_site};
use std::collections::BTreeSet;

/// A variable that an earlier patch brought.
struct Known {
    path: String,
    size: u64,
}

impl Job<'_> {
    /// Notes on variables: whose new initial value has no effect, and which begin anew in the place of others.
    pub(in super::super) fn notes_on_earlier(&self, state: &State) -> Vec<Note> {
        let others: Vec<&Record> = state.patches.iter().filter(|record| record.id != self.id).collect();
        let statics = others.iter().flat_map(|record| &record.statics).map(|of| (&of.name, of.size));
        let locals = others.iter().flat_map(|record| &record.thread_locals).map(|of| (&of.name, of.size));
        let known: Vec<Known> =
            statics.chain(locals).map(|(name, size)| Known { path: demangled(name), size }).collect();
        let items = self.patch.meta.new_items.iter();
        let items: Vec<&NewItem> =
            items.filter(|item| item.kind != NewItemKind::Function && !item.call_site).collect();
        let own: BTreeSet<String> = items.iter().map(|item| demangled(self.symbol_of(item))).collect();
        let mut notes = Vec::new();
        for item in items {
            let own_path = demangled(self.symbol_of(item));
            let running = instances(item.kind, self.symbol_of(item), &others);
            if let Some(running) = running.first() {
                let initial = self.patch.code_digest(item.symbol);
                let goes_on = running.is_alike(self.size_of(item), item.type_digest);
                if goes_on && running.initial.is_some() && running.initial != initial.as_ref() {
                    notes.push(kept(item));
                }
                continue;
            }
            let mut gone = known.iter().filter(|known| !own.contains(&known.path));
            if let Some(before) = gone.rfind(|known| is_alike(known, &own_path, self.size_of(item))) {
                notes.push(anew(item, before));
            }
        }
        let known =
            |path: &str| others.iter().rev().flat_map(|record| &record.once).find(|known| known.path == path);
        let computing = self.patch.meta.once.iter();
        let computing = computing.filter(|own| known(&own.path).is_some_and(|known| known.body != own.body));
        notes.extend(computing.map(computed));
        let constants = self.constants_of_earlier(state).into_iter();
        let other = constants.filter(|(own, known)| self.patch.code_digest(*own) != Some(known.value));
        let paths = other.map(|(_, known)| demangled(&known.name));
        notes.extend(paths.filter(|path| !describes_call_site(path)).map(|path| another_value(&path)));
        notes
    }

    fn symbol_of(&self, item: &NewItem) -> &str {
        &self.patch.symbols[item.symbol.0 as usize].name
    }

    fn size_of(&self, item: &NewItem) -> u64 {
        match self.patch.symbols[item.symbol.0 as usize].place {
            Place::Section { size, .. } => size,
            _ => 0,
        }
    }
}

/// Whether a constant is inside of a call site of `tracing`: it is referred to there alone, and the site comes with each patch anew.
fn describes_call_site(path: &str) -> bool {
    path.rsplit_once("::").is_some_and(|(within, _)| names_call_site(within))
}

/// Where a variable is declared: without what macros and closures put around it.
fn declared(path: &str) -> Vec<&str> {
    let of_macro = |segment: &&str| !segment.starts_with('{') && !segment.starts_with("__");
    path.split("::").filter(of_macro).filter(|segment| *segment != "VAL").collect()
}

/// Whether a variable has another's name elsewhere, or stands in its place under another name and is as large.
fn is_alike(known: &Known, path: &str, size: u64) -> bool {
    let (was, is) = (declared(&known.path), declared(path));
    let (by_name, by_place) = (was.last() == is.last(), was.iter().rev().skip(1).eq(is.iter().rev().skip(1)));
    by_name != by_place && (by_name || known.size == size)
}

fn kept(item: &NewItem) -> Note {
    note(
        "LP0101",
        &item.path,
        format!("initial value of `{}` changed; the running value is kept", item.path),
        "variables keep their values when a patch is applied, also those that an earlier patch brought",
        "set the variable from patched code if the running program needs the new value",
    )
}

fn computed(own: &Once) -> Note {
    let keeper = own.keeper.as_ref().map(|keeper| format!(" in `{keeper}`")).unwrap_or_default();
    note(
        "LP0111",
        &own.path,
        format!("what `{}` computed already is kept{keeper}", own.path),
        "it is run once for each value, when that is first asked for; values that are there stay when a patch is applied, also those \
         that an earlier patch had computed",
        "where the running program needs the new value, give the variable that keeps it another name, store the value from patched \
         code, or restart",
    )
}

fn another_value(path: &str) -> Note {
    note(
        "LP0113",
        path,
        format!("`{path}` has a new value; references that the program keeps lead to the old one"),
        "an earlier patch brought the constant with another value, and that one stays where it is",
        "if such references are kept and compared, store what has to change in a variable, or let the fix look the value up anew",
    )
}

fn anew(item: &NewItem, before: &Known) -> Note {
    let reason = format!(
        "nothing reads what `{}` holds, which an earlier patch brought and this one does not have; a variable is known by its path",
        before.path
    );
    note(
        "LP0112",
        &item.path,
        format!("`{}` is a new variable and begins at its initial value", item.path),
        &reason,
        "leave the variable where it is, under its name, if the fix needs the running value",
    )
}

/// About all of the patch: which of its functions a note is about is known to `create` alone.
fn note(code: &str, item: &str, title: String, reason: &str, help: &str) -> Note {
    let (code, item) = (code.to_owned(), item.to_owned());
    let (reason, help) = (reason.to_owned(), help.to_owned());
    Note { code, title, item, place: None, reason, help, functions: Vec::new() }
}
