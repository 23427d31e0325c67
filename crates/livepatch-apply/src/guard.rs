//! What no thread may be inside of at the switch.

use crate::branches::entry_is_fresh;
use crate::elf::Peek;
use crate::error::ThreadInside;
use crate::jump::JUMP_SIZE;
use crate::registry::State;
use crate::report::Policy;
use crate::stacks::ThreadStack;
use crate::unwind::{Frame, FrameKind, Walk};
use livepatch_patch::RunAddr;
use livepatch_process::Tid;
use std::ops::Range;

/// Size of a `syscall` instruction: the kernel takes a thread back by as much when it restarts an interrupted call.
const RESTART: u64 = 2;
/// So many frames of each end of a stack are reported, at most.
const END_OF_STACK: usize = 32;

/// A forbidden piece of code.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Forbidden {
    /// Where it is.
    pub range: Range<RunAddr>,
    /// What it is: a function's path, if it is one.
    pub name: String,
    /// The patch that the function is of, if it is one of a patch.
    pub patch: Option<Box<str>>,
    /// A thread at the very first instruction has not begun ([`entry_is_fresh`]).
    pub fresh_entry: bool,
    /// It is only what a jump overwrites.
    pub only_start: bool,
}

impl Forbidden {
    fn holds(&self, frame: &Frame) -> bool {
        let just_called = self.fresh_entry && frame.kind != FrameKind::Caller && frame.pc == self.range.start;
        self.range.contains(&frame.lookup()) && !just_called
    }
}

/// All forbidden pieces of one switch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Guard {
    pieces: Vec<Forbidden>,
}

/// A thread that is in the way.
#[derive(Clone, Debug)]
pub struct Inside {
    /// The thread.
    pub tid: Tid,
    /// Its stack.
    pub walk: Walk,
    /// The outermost piece that it is inside of; `None` if its stack could not be proven.
    pub function: Option<String>,
    /// The patch that this is of, if it is a function of a patch.
    pub patch: Option<Box<str>>,
    /// It is in what a jump overwrites of that.
    pub at_start: bool,
    /// Frame address of the outermost frame in such a piece: below it, everything is inside.
    pub outermost: Option<RunAddr>,
}

impl Guard {
    /// Forbids a whole function (quiescent) or what a jump overwrites (immediate). `code` is the function as the image has
    /// it.
    pub fn function(&mut self, policy: Policy, start: RunAddr, code: &[u8], name: &str, memory: &dyn Peek) {
        let size = match policy {
            Policy::Quiescent | Policy::Snapshot => code.len().max(JUMP_SIZE) as u64,
            Policy::Immediate => JUMP_SIZE as u64 + RESTART,
        };
        self.pieces.push(Forbidden {
            range: start..start.offset(size as i64),
            name: name.into(),
            patch: None,
            fresh_entry: entry_is_fresh(start, code, memory),
            only_start: policy == Policy::Immediate,
        });
    }

    /// Forbids a function that nothing replaces, and that replaced functions jump to.
    pub fn orphan(&mut self, start: RunAddr, size: u64, name: &str) {
        self.whole(start..start.offset(size as i64), name, None);
    }

    /// Forbids the code of every patch in the process, but for `allowed` (quiescent only: it stays mapped, so old calls may finish in it).
    pub fn patches(&mut self, policy: Policy, state: &State, allowed: &[Range<RunAddr>]) {
        if policy == Policy::Immediate {
            return;
        }
        for record in &state.patches {
            // Those of other patches are guarded with these.
            let text = record.mapping.text_range();
            for function in record.functions.iter().filter(|function| text.contains(&function.new)) {
                let range = function.new..function.new.offset(function.new_size as i64);
                if !allowed.contains(&range) {
                    self.whole(range, &function.path, Some(&record.name));
                }
            }
            for range in without(record.mapping.text_range(), allowed) {
                self.whole(range, &format!("patch {}", record.name), None);
            }
        }
    }

    /// Forbids the code that leads from a breakpoint into a function.
    pub fn landing(&mut self, range: Range<RunAddr>) {
        self.whole(range, "a replaced function", None);
    }

    /// Forbids the place right behind a breakpoint: a thread there has a signal to come that takes it back, and until then its
    /// stack is not what the tables say of that place.
    pub fn breakpoint(&mut self, entry: RunAddr) {
        self.whole(entry.offset(1)..entry.offset(2), "a breakpoint", None);
    }

    fn whole(&mut self, range: Range<RunAddr>, name: &str, patch: Option<&str>) {
        let (name, patch) = (name.to_owned(), patch.map(Into::into));
        self.pieces.push(Forbidden { range, name, patch, fresh_entry: false, only_start: false });
    }

    /// The threads that are in the way.
    pub fn inside(&self, stacks: Vec<ThreadStack>) -> Vec<Inside> {
        stacks.into_iter().filter_map(|stack| self.judge(stack.tid, stack.walk).err()).collect()
    }

    /// Whether a thread is outside of everything that is guarded, by its stack.
    ///
    /// # Errors
    /// It is in the way.
    pub fn judge(&self, tid: Tid, walk: Walk) -> Result<(), Inside> {
        let piece = |frame: &Frame| self.pieces.iter().find(|piece| piece.holds(frame));
        // The outermost one: those within it return sooner.
        let outermost = walk.frames.iter().rev().find_map(|frame| Some((frame.cfa, piece(frame)?)));
        if outermost.is_none() && walk.end.is_ok() {
            return Ok(());
        }
        let (outermost, piece) = outermost.unzip();
        let at_start = piece.is_some_and(|piece| piece.only_start);
        let function = piece.map(|piece| piece.name.clone());
        let patch = piece.and_then(|piece| piece.patch.clone());
        Err(Inside { tid, walk, function, patch, at_start, outermost })
    }
}

/// What is left of a range without some others.
fn without(range: Range<RunAddr>, others: &[Range<RunAddr>]) -> Vec<Range<RunAddr>> {
    let inside = others.iter().filter(|other| range.start <= other.start && other.end <= range.end);
    let mut inside: Vec<_> = inside.collect();
    inside.sort_by_key(|other| other.start);
    let (mut left, mut start) = (Vec::new(), range.start);
    for other in inside {
        left.push(start..other.start);
        start = start.max(other.end);
    }
    left.push(start..range.end);
    left.retain(|range| range.start < range.end);
    left
}

impl Inside {
    /// What a person wants to know about it. `symbolise` turns the address of a frame into text.
    pub fn describe(&self, name: String, symbolise: &dyn Fn(RunAddr) -> String) -> ThreadInside {
        let reason = match (&self.function, &self.walk.end) {
            (Some(function), _) if self.at_start => {
                format!("is at the start of {function}, where a jump is to be written")
            }
            (Some(function), _) => match &self.patch {
                Some(patch) => format!("is inside `{function}` of patch {patch}"),
                None => format!("is inside {function}"),
            },
            (None, Err(why)) => format!("has a stack that cannot be proven: {why}"),
            (None, Ok(())) => "is in the way".to_owned(),
        };
        ThreadInside {
            tid: self.tid.0,
            name,
            function: self.function.clone(),
            patch: self.patch.as_deref().map(str::to_owned),
            reason,
            inlines: None,
            backtrace: self.backtrace(symbolise),
            leave_running: None,
        }
    }

    /// Of a stack deeper than a person reads, both ends.
    fn backtrace(&self, symbolise: &dyn Fn(RunAddr) -> String) -> Vec<String> {
        let frames = &self.walk.frames;
        let named = |frames: &[Frame]| frames.iter().map(|f| symbolise(f.lookup())).collect::<Vec<_>>();
        let left_out = frames.len().saturating_sub(2 * END_OF_STACK);
        if left_out <= 1 {
            return named(frames);
        }
        let mut backtrace = named(&frames[..END_OF_STACK]);
        backtrace.push(format!("({left_out} more frames)"));
        backtrace.extend(named(&frames[frames.len() - END_OF_STACK..]));
        backtrace
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inside(depth: u64) -> Inside {
        let frame = |pc| Frame {
            pc: RunAddr(pc),
            kind: FrameKind::Innermost,
            signal: false,
            cfa: RunAddr(0),
            function: RunAddr(0),
        };
        let walk = Walk { frames: (0..depth).map(frame).collect(), end: Ok(()) };
        Inside { tid: Tid(1), walk, function: None, patch: None, at_start: false, outermost: None }
    }

    #[test]
    fn what_is_left_of_a_range() {
        let range = |(start, end): (u64, u64)| RunAddr(start)..RunAddr(end);
        let left = |others: &[(u64, u64)]| {
            let others: Vec<_> = others.iter().copied().map(range).collect();
            without(range((10, 20)), &others).into_iter().map(|r| (r.start.0, r.end.0)).collect::<Vec<_>>()
        };
        assert_eq!(left(&[]), [(10, 20)]);
        assert_eq!(left(&[(15, 17), (10, 12), (15, 17), (30, 40)]), [(12, 15), (17, 20)]);
        assert!(left(&[(10, 20)]).is_empty());
    }

    #[test]
    fn a_deep_stack_is_told_by_its_ends() {
        let told = |depth| inside(depth).backtrace(&|at| at.0.to_string());
        assert_eq!(told(3), ["0", "1", "2"]);
        assert_eq!(told(65).len(), 65);
        let deep = told(30_000);
        assert_eq!(deep[31..=33], ["31", "(29936 more frames)", "29968"]);
        assert_eq!((deep.len(), deep[64].as_str()), (65, "29999"));
    }
}
