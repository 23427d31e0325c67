//! What no thread may be inside of at the switch.

use crate::error::ThreadInside;
use crate::jump::JUMP_SIZE;
use crate::registry::{Record, State};
use crate::report::Policy;
use crate::stacks::ThreadStack;
use livepatch_patch::RunAddr;
use livepatch_process::Tid;
use std::ops::Range;

/// Size of a `syscall` instruction: the kernel takes a thread back by as much when it restarts an interrupted call.
const RESTART: u64 = 2;

/// A forbidden piece of code.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Forbidden {
    /// Where it is.
    pub range: Range<RunAddr>,
    /// What it is.
    pub name: String,
}

/// All forbidden pieces of one switch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Guard {
    pieces: Vec<Forbidden>,
}

/// A thread that is in the way.
#[derive(Clone, Debug)]
pub struct Inside {
    /// Its stack.
    pub stack: ThreadStack,
    /// The piece that it is inside of; `None` if its stack could not be proven.
    pub function: Option<String>,
}

impl Guard {
    /// Forbids a whole function (quiescent) or what a jump overwrites (immediate).
    pub fn function(&mut self, policy: Policy, start: RunAddr, size: u64, name: &str) {
        let size = match policy {
            Policy::Quiescent => size.max(JUMP_SIZE as u64),
            Policy::Immediate => JUMP_SIZE as u64,
        };
        let end = start.offset((size + RESTART) as i64);
        let end = if policy == Policy::Quiescent { start.offset(size as i64) } else { end };
        self.pieces.push(Forbidden { range: start..end, name: name.into() });
    }

    /// Forbids the code of every patch in the process (quiescent only: it stays mapped, so old calls may finish in it).
    pub fn patches(&mut self, policy: Policy, state: &State) {
        if policy == Policy::Immediate {
            return;
        }
        for record in &state.patches {
            let name = format!("patch {}", record.name);
            self.pieces.push(Forbidden { range: record.mapping.text_range(), name });
        }
    }

    /// The threads that are in the way.
    pub fn inside(&self, stacks: Vec<ThreadStack>) -> Vec<Inside> {
        stacks
            .into_iter()
            .filter_map(|stack| {
                let hit = stack.active().find_map(|at| self.pieces.iter().find(|p| p.range.contains(&at)));
                let function = hit.map(|piece| piece.name.clone());
                (function.is_some() || stack.walk.end.is_err()).then_some(Inside { stack, function })
            })
            .collect()
    }
}

/// The function of a patch that an address belongs to: the last one that starts at or before it.
pub fn function_in_patch(record: &Record, at: RunAddr) -> Option<&str> {
    if !record.mapping.text_range().contains(&at) {
        return None;
    }
    let before = record.functions.iter().filter(|f| f.new <= at);
    before.max_by_key(|f| f.new).map(|f| f.path.as_str())
}

impl Inside {
    /// What a person wants to know about it. `symbolise` turns the address of a frame into text.
    pub fn describe(&self, name: String, symbolise: &dyn Fn(RunAddr) -> String) -> ThreadInside {
        let reason = match (&self.function, &self.stack.walk.end) {
            (Some(function), _) => format!("is inside {function}"),
            (None, Err(why)) => format!("has a stack that cannot be proven: {why}"),
            (None, Ok(())) => "is in the way".to_owned(),
        };
        ThreadInside {
            tid: self.stack.tid.0,
            name,
            function: self.function.clone(),
            reason,
            backtrace: self.stack.active().map(symbolise).collect(),
        }
    }
}

/// The thread that a busy answer is about.
pub fn tid(inside: &Inside) -> Tid {
    inside.stack.tid
}
