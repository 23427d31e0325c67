//! Code that differs in line numbers that it holds as numbers, as `log`'s macros put them there.
//!
//! A panic's location is a constant of its own, which the comparison knows. `line!()` is a number like any other. So a
//! function differs in line numbers only if all of this holds: its code is the same but for immediate operands; each of these
//! differs by one and the same number; its text moved by that many lines, and is not older than the numbers; and the source
//! says that no change reaches it.

use crate::findings::Place;
use crate::guard::FunctionInfo;
use crate::objects::Section;
use crate::source::{Side, SourceDiff};
use iced_x86::{Decoder, DecoderOptions, Instruction, OpKind};
use std::collections::HashMap;

/// How a piece of code differs from another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Shift {
    /// What is added to each number that differs.
    lines: i64,
    /// The smallest of these in the old code.
    least: u64,
}

impl Shift {
    /// The difference between two pieces of code whose references agree; `None` if it is more than a shift.
    pub(super) fn between(old: &Section<'_>, new: &Section<'_>) -> Option<Self> {
        if old.bytes.len() != new.bytes.len() || old.relocs.len() != new.relocs.len() {
            return None;
        }
        let decode = |bytes| Decoder::with_ip(64, bytes, 0, DecoderOptions::NONE).into_iter();
        let mut shift: Option<Self> = None;
        for (old, new) in decode(old.bytes).zip(decode(new.bytes)) {
            let Some((was, is)) = immediate(&old).zip(immediate(&new)) else {
                if old == new { continue } else { return None }
            };
            let lines = is.wrapping_sub(was).cast_signed();
            if old.code() != new.code() || old.len() != new.len() || !is_same_but_number(old, new) {
                return None;
            }
            if lines == 0 {
                continue;
            }
            let least = shift.map_or(was, |shift| shift.least.min(was));
            if shift.is_some_and(|shift| shift.lines != lines) {
                return None;
            }
            shift = Some(Self { lines, least });
        }
        shift
    }

    /// Whether these are the lines of what stood in one place and stands in the other.
    fn fits(self, old: &Place, new: &Place) -> bool {
        let moved = i64::from(new.line) - i64::from(old.line);
        // Nothing is known of the end of the text; more lines than that no function has.
        let text = u64::from(old.line)..u64::from(old.line) + 20_000;
        old.file == new.file && moved == self.lines && text.contains(&self.least)
    }
}

fn immediate(instruction: &Instruction) -> Option<u64> {
    let last = instruction.op_count().checked_sub(1)?;
    let wide = matches!(
        instruction.op_kind(last),
        OpKind::Immediate16
            | OpKind::Immediate32
            | OpKind::Immediate64
            | OpKind::Immediate32to64
            | OpKind::Immediate8
            | OpKind::Immediate8to16
            | OpKind::Immediate8to32
            | OpKind::Immediate8to64
    );
    wide.then(|| instruction.immediate(last))
}

fn is_same_but_number(mut old: Instruction, mut new: Instruction) -> bool {
    old.set_immediate32(0);
    new.set_immediate32(0);
    old.set_immediate64(0);
    new.set_immediate64(0);
    old == new
}

/// Where functions are declared, by the names that they go by: their own and those of what is inlined.
pub(super) type Places<'i> = HashMap<&'i str, &'i Place>;

pub(super) fn places<'i>(
    infos: impl Iterator<Item = &'i FunctionInfo>,
    key: impl Fn(&'i str) -> &'i str,
) -> Places<'i> {
    let mut places = Places::new();
    for info in infos {
        let inlined =
            info.inlined.iter().filter_map(|one| Some((one.symbol.as_deref()?, one.place.as_ref()?)));
        let own = info.place.as_ref().map(|place| (&*info.symbol, place));
        places.extend(inlined.chain(own).map(|(symbol, place)| (key(symbol), place)));
    }
    places
}

/// Whether a shift of the function of this name is one of its lines.
pub(super) fn is_of_lines(
    shift: Shift,
    name: &str,
    (old, new): (&Places<'_>, &Places<'_>),
    source: &SourceDiff,
) -> bool {
    let untouched = |place: &Place, side| {
        source.tainted().is_function_tainted(&place.file, place.line, side) == Some(false)
    };
    let (Some(old), Some(new)) = (old.get(name), new.get(name)) else { return false };
    shift.fits(old, new) && untouched(old, Side::Old) && untouched(new, Side::New)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::objects::Kind;

    fn code(bytes: &[u8]) -> Section<'_> {
        Section::of_bytes(Kind::Text, bytes)
    }

    #[test]
    fn numbers_that_moved_together() {
        // mov esi,40; mov edx,50; ret
        let old = code(&[0xbe, 40, 0, 0, 0, 0xba, 50, 0, 0, 0, 0xc3]);
        let moved = code(&[0xbe, 43, 0, 0, 0, 0xba, 53, 0, 0, 0, 0xc3]);
        let shift = Shift::between(&old, &moved).unwrap();
        assert_eq!(shift, Shift { lines: 3, least: 40 });
        let place = |line| Place { file: "src/main.rs".into(), line };
        assert!(shift.fits(&place(38), &place(41)));
        assert!(!shift.fits(&place(38), &place(40)), "moved by other lines");
        assert!(!shift.fits(&place(41), &place(44)), "a number from before the function");
    }

    #[test]
    fn other_differences() {
        let old = code(&[0xbe, 40, 0, 0, 0, 0xba, 50, 0, 0, 0, 0xc3]);
        let apart = code(&[0xbe, 43, 0, 0, 0, 0xba, 54, 0, 0, 0, 0xc3]);
        assert_eq!(Shift::between(&old, &apart), None);
        // mov edi,43 instead of mov esi
        let register = code(&[0xbf, 43, 0, 0, 0, 0xba, 53, 0, 0, 0, 0xc3]);
        assert_eq!(Shift::between(&old, &register), None);
        assert_eq!(Shift::between(&old, &old), None);
    }
}
