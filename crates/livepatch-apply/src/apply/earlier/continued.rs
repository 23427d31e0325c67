//! What becomes of each function of an earlier patch that the process may come to.
//!
//! A function is known by its symbol, or by its path where that changed (a block of `impl` more before it). It is continued by the
//! function of that name and path if no other item of either patch goes by that path, and if both take and return the same in the same
//! way; or if the code is the same. It may stand for others, whose code LLVM found equal, and then these must have the same code, too, and
//! if not all of them are in the newer patch, the code that they had.

use super::named;
use super::own::Own;
use crate::names::demangled;
use crate::registry::{Function, FunctionRecord, KeptRecord, Record, State};
use livepatch_patch::{RunAddr, SymbolId};
use std::collections::{HashMap, HashSet};

/// A function of an earlier patch that the process may come to.
pub(super) struct Earlier<'s> {
    pub(super) record: &'s Record,
    pub(super) start: RunAddr,
    pub(super) size: u64,
    /// Its mangled name.
    pub(super) symbol: &'s str,
    /// Bytes from its start to the next function.
    pub(super) room: u64,
    pub(super) becomes: Becomes,
}

/// What it is in the patch that is applied.
#[derive(Clone, PartialEq, Eq)]
pub(super) enum Becomes {
    /// This function.
    Continued(SymbolId),
    /// Something else may have its name.
    Other,
    /// Part of other functions.
    Inlined,
    /// The function of the image, of which it was another version.
    Back,
    /// Nothing; but it calls this function, which is another now.
    Calls(String),
    /// Nothing; what runs in its place is this function, of which nothing tells what it calls.
    Unknown,
}

/// The functions of one earlier patch.
pub(super) struct Walk<'s, 'o> {
    pub(super) record: &'s Record,
    own: &'o Own<'o>,
    code: Vec<Function<'s>>,
    kept: HashMap<RunAddr, &'s KeptRecord>,
    /// Functions of the image that they replaced.
    image: HashMap<RunAddr, RunAddr>,
    /// What goes on to run functions of other patches, as it does now.
    pub(super) carried: Vec<&'s FunctionRecord>,
}

impl<'s, 'o> Walk<'s, 'o> {
    pub(super) fn new(record: &'s Record, state: &State, own: &'o Own<'o>) -> Self {
        let of_image = record.functions.iter().filter(|function| !state.is_in_patch(function.old));
        Self {
            record,
            own,
            code: record.code(),
            kept: record.kept.iter().map(|kept| (kept.start, kept)).collect(),
            image: of_image.map(|function| (function.new, function.old)).collect(),
            carried: Vec::new(),
        }
    }

    /// Those that something can come to.
    pub(super) fn all(&self) -> Vec<Earlier<'s>> {
        let (mut found, mut staying) = (Vec::new(), Vec::new());
        for kept in self.record.kept.iter().filter(|kept| kept.addressed) {
            match self.becomes(kept.start) {
                Some(becomes) => found.extend(self.earlier(kept.start, becomes)),
                None if self.carried.iter().any(|led| led.old == kept.start) => {}
                None => staying.push(kept.start),
            }
        }
        let to_others = self.carried.iter().filter(|led| self.is_kept(led.new) != Some(true));
        for led in to_others.filter(|led| self.function(led.new).is_some()) {
            match (self.is_kept(led.new), self.becomes(led.new)) {
                (None, _) => found.extend(self.earlier(led.new, Becomes::Unknown)),
                (_, Some(becomes)) => found.extend(self.earlier(led.new, becomes)),
                (_, None) => staying.push(led.new),
            }
        }
        found.extend(self.others_behind_same_code());
        let mut seen = HashSet::new();
        while let Some(start) = staying.pop() {
            let calls = self.kept.get(&start).map(|kept| kept.calls.as_slice()).unwrap_or_default();
            for call in calls.iter().filter(|_| !seen.contains(&start)) {
                match self.is_other_now(*call) {
                    true => found.extend(self.earlier(start, Becomes::Calls(self.name(*call)))),
                    false => staying.push(*call),
                }
            }
            seen.insert(start);
        }
        found
    }

    /// What is other than it was and is called by functions that are the same by their code alone: a body that only a number tells from
    /// others, behind the code that hands the call on to it.
    fn others_behind_same_code(&self) -> Vec<Earlier<'s>> {
        let by_code = |start: &RunAddr| match (self.kept.get(start), self.becomes(*start)) {
            (Some(kept), Some(Becomes::Continued(newer))) => {
                !self.image.contains_key(start) && !self.own.continues(kept, newer)
            }
            _ => false,
        };
        let addressed = self.record.kept.iter().filter(|kept| kept.addressed).map(|kept| kept.start);
        let mut work: Vec<RunAddr> = addressed.filter(by_code).collect();
        let (mut seen, mut found) = (HashSet::new(), Vec::new());
        while let Some(start) = work.pop() {
            if !seen.insert(start) {
                continue;
            }
            for call in self.kept[&start].calls.iter().filter(|call| self.function(**call).is_some()) {
                match self.becomes(*call) {
                    Some(Becomes::Continued(_)) if by_code(call) => work.push(*call),
                    Some(Becomes::Continued(_)) => {}
                    other => found.extend(self.earlier(*call, other.unwrap_or(Becomes::Other))),
                }
            }
        }
        found
    }

    /// Functions that this patch has with the same code, down to whatever they call: it does not matter in which of them a thread is.
    pub(super) fn same(&self) -> HashSet<RunAddr> {
        let has_same_code = |kept: &&KeptRecord| match self.becomes(kept.start) {
            Some(Becomes::Continued(newer)) => self.own.is_same_code(kept, newer),
            _ => false,
        };
        let same = self.record.kept.iter().filter(has_same_code);
        let mut same: HashSet<RunAddr> = same.map(|kept| kept.start).collect();
        loop {
            // What is not of the patch is of the image, and calls of that come to where everybody's come to.
            let is_other = |call: &RunAddr| self.function(*call).is_some() && !same.contains(call);
            let calls_other = |start: &&RunAddr| self.kept[*start].calls.iter().any(is_other);
            let others: Vec<RunAddr> = same.iter().filter(calls_other).copied().collect();
            if others.is_empty() {
                return same;
            }
            same.retain(|start| !others.contains(start));
        }
    }

    /// Whether this patch does not have a function of that one at all.
    pub(super) fn is_gone(&self, start: RunAddr) -> bool {
        self.kept.contains_key(&start) && self.becomes(start).is_none()
    }

    /// Whether the process may have the address of a function, if anything is known of it.
    fn is_kept(&self, start: RunAddr) -> Option<bool> {
        self.kept.get(&start).map(|kept| kept.addressed)
    }

    pub(super) fn becomes(&self, start: RunAddr) -> Option<Becomes> {
        let (kept, function) = (self.kept.get(&start)?, self.function(start)?);
        self.own.becomes(kept, function.symbol, self.image.get(&start).copied())
    }

    /// Whether a function that one which stays as it is calls is not what that was compiled for.
    fn is_other_now(&self, start: RunAddr) -> bool {
        let Some(kept) = self.kept.get(&start) else { return self.own.redirects.contains_key(&start) };
        match self.becomes(start) {
            Some(Becomes::Continued(newer)) => !self.own.is_same_code(kept, newer),
            Some(_) => true,
            None => false,
        }
    }

    pub(super) fn symbol(&self, start: RunAddr) -> Option<&'s str> {
        self.function(start).map(|function| function.symbol)
    }

    fn function(&self, start: RunAddr) -> Option<&Function<'s>> {
        self.code.iter().find(|function| function.start == start)
    }

    fn name(&self, start: RunAddr) -> String {
        let of_image = || {
            let redirects = &self.own.patch.meta.redirects;
            let to = self.own.redirects.get(&start)?;
            Some(redirects.iter().find(|redirect| redirect.symbol == *to)?.path.clone())
        };
        let own = self.function(start).map(Function::path);
        own.or_else(of_image).unwrap_or_else(|| start.to_string())
    }

    fn earlier(&self, start: RunAddr, becomes: Becomes) -> Option<Earlier<'s>> {
        let function = self.function(start)?;
        let next = self.code.iter().map(|other| other.start).find(|other| *other > start);
        let end = next.unwrap_or(self.record.mapping.text_range().end);
        Some(Earlier {
            record: self.record,
            start,
            size: function.size,
            symbol: function.symbol,
            room: end.0 - start.0,
            becomes,
        })
    }
}

impl Earlier<'_> {
    pub(super) fn path(&self) -> String {
        demangled(self.symbol)
    }

    pub(super) fn which(&self) -> String {
        format!("`{}` of patch {}", self.path(), named(self.record))
    }

    /// Why it does not go together with the patch that is applied.
    pub(super) fn refusal(&self) -> Option<String> {
        let which = self.which();
        Some(match &self.becomes {
            Becomes::Continued(_) => return None,
            Becomes::Other => format!(
                "the process may keep values that run {which}, and this patch has other code under that name, which may be another function, \
                 closure, or one that is called otherwise; leave what the earlier patch brought as it was and write what is new elsewhere, or \
                 restart the program"
            ),
            Becomes::Inlined => format!(
                "the process may keep the address of {which}, and in this patch it is only inlined into other functions; make it a function of \
                 its own (`#[inline(never)]`), or restart the program"
            ),
            Becomes::Back => format!(
                "the process may keep the address of {which}, and in this patch that function is as the program was shipped with it; have the \
                 change in this patch, too, or restart the program"
            ),
            Becomes::Unknown => format!(
                "the process may come to {which}, which this patch does not have, and nothing tells whether what it calls is as it was; leave the \
                 function where it is, or restart the program"
            ),
            Becomes::Calls(callee) => format!(
                "the process may keep the address of {which}, which this patch does not have, and which calls `{callee}`, another one now; leave \
                 the function where it is, or restart the program"
            ),
        })
    }
}

impl State {
    pub(super) fn is_in_patch(&self, at: RunAddr) -> bool {
        self.patches.iter().any(|record| record.mapping.text_range().contains(&at))
    }
}
