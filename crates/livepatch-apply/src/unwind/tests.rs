//! Walks over assembled stacks with assembled tables.

use super::*;
use std::collections::BTreeMap;

const TEXT: u64 = 0x1000;
const EH_FRAME: u64 = 0x10_0000;

/// Functions of 16 bytes each, one after the other from `TEXT`.
#[derive(Clone, Copy)]
enum Function {
    /// The frame is this many bytes above the stack pointer, the return address on top of it.
    Frame(u8),
    /// `push rbp; mov rbp, rsp`
    FramePointer,
    /// No caller.
    Outermost,
    /// The kernel's trampoline; CFA and return address are two words at the stack pointer.
    Signal,
    /// CFA is `rsp + 24`, by an expression.
    Expression,
    /// Saves `rax` and `rdx`.
    Throwing,
    /// Not in the tables.
    Unknown,
}

impl Function {
    fn rules(self) -> Vec<u8> {
        match self {
            Self::Frame(size) => vec![0x0e, size],
            // CFA = rbp + 16, rbp at CFA - 16
            Self::FramePointer => vec![0x0c, 6, 16, 0x86, 2],
            Self::Outermost => vec![0x07, 16],
            // CFA = *(rsp), rip = *(rsp + 8)
            Self::Signal => vec![0x0f, 3, 0x77, 0, 0x06, 0x10, 16, 2, 0x77, 8],
            Self::Expression => vec![0x0f, 2, 0x77, 24],
            Self::Throwing => vec![0x0e, 32, 0x80, 2, 0x81, 3],
            Self::Unknown => Vec::new(),
        }
    }
}

fn entry(out: &mut Vec<u8>, body: &[u8]) {
    let padded = (body.len() + 4).next_multiple_of(8) - 4;
    out.extend_from_slice(&(padded as u32).to_le_bytes());
    out.extend_from_slice(body);
    out.resize(out.len() + padded - body.len(), 0);
}

fn tables(functions: &[Function]) -> Tables {
    let mut out = Vec::new();
    let mut cies = Vec::new();
    for augmentation in [b"zR\0".as_slice(), b"zRS\0"] {
        cies.push(out.len() as u32);
        let mut cie = vec![0, 0, 0, 0, 1];
        cie.extend_from_slice(augmentation);
        cie.extend_from_slice(&[1, 0x78, 16, 1, 0x1b, 0x0c, 7, 8, 0x90, 1]);
        entry(&mut out, &cie);
    }
    for (number, function) in functions.iter().enumerate() {
        if matches!(function, Function::Unknown) {
            continue;
        }
        let here = out.len() as u32 + 4;
        let cie = cies[usize::from(matches!(function, Function::Signal))];
        let start = (TEXT + 16 * number as u64) as i64 - (EH_FRAME + u64::from(here) + 4) as i64;
        let mut fde = (here - cie).to_le_bytes().to_vec();
        fde.extend_from_slice(&(start as i32).to_le_bytes());
        fde.extend_from_slice(&16u32.to_le_bytes());
        fde.push(0);
        fde.extend_from_slice(&function.rules());
        entry(&mut out, &fde);
    }
    out.extend_from_slice(&[0; 4]);
    let text = RunAddr(TEXT)..RunAddr(TEXT + 16 * functions.len() as u64);
    Tables::new(vec![Table::scanned("assembled", text, (RunAddr(EH_FRAME), out)).unwrap()])
}

/// Words by address.
struct Words(BTreeMap<u64, u64>);

impl Memory for Words {
    fn read(&mut self, addr: RunAddr, buf: &mut [u8]) -> bool {
        match self.0.get(&addr.0) {
            Some(word) if buf.len() == 8 => {
                buf.copy_from_slice(&word.to_le_bytes());
                true
            }
            _ => false,
        }
    }
}

fn at(function: u64, offset: u64) -> u64 {
    TEXT + 16 * function + offset
}

fn run(functions: &[Function], pc: u64, sp: u64, rbp: u64, words: &[(u64, u64)]) -> Walk {
    let mut registers = Registers([Some(0); dwarf::COUNT]);
    registers.0[dwarf::RIP] = Some(pc);
    registers.0[dwarf::RSP] = Some(sp);
    registers.0[6] = Some(rbp);
    walk(&tables(functions), &mut Words(words.iter().copied().collect()), registers)
}

#[test]
fn a_chain_ends_where_the_tables_say_so() {
    let functions = [Function::Frame(16), Function::FramePointer, Function::Outermost];
    // the call in function 1 is its last instruction: the return address is the start of function 2
    let words = [(0x9008, at(2, 0)), (0x9010, 0x9100), (0x9018, at(2, 9))];
    let walk = run(&functions, at(0, 3), 0x9000, 0x9010, &words);
    assert_eq!(walk.end, Ok(()));
    let seen: Vec<_> = walk.frames.iter().map(|f| (f.function.0, f.kind)).collect();
    assert_eq!(
        seen,
        [(at(0, 0), FrameKind::Innermost), (at(1, 0), FrameKind::Caller), (at(2, 0), FrameKind::Caller)]
    );
    assert_eq!(walk.frames[1].cfa, RunAddr(0x9020));
}

#[test]
fn a_signal_may_lead_to_another_stack_and_to_a_first_instruction() {
    let functions = [Function::Frame(16), Function::Signal, Function::Unknown, Function::Outermost];
    let words = [(0x9008, at(1, 1)), (0x9010, 0x5000), (0x9018, at(3, 0))];
    let walk = run(&functions, at(0, 3), 0x9000, 0, &words);
    assert_eq!(walk.end, Ok(()));
    assert!(walk.frames[1].signal);
    assert_eq!((walk.frames[2].kind, walk.frames[2].lookup().0), (FrameKind::Interrupted, at(3, 0)));
}

#[test]
fn expressions_are_evaluated() {
    let functions = [Function::Expression, Function::Outermost];
    let walk = run(&functions, at(0, 0), 0x9000, 0, &[(0x9010, at(1, 4))]);
    assert_eq!((walk.end, walk.frames[0].cfa), (Ok(()), RunAddr(0x9018)));
}

#[test]
fn whatever_is_doubtful_is_no_proof() {
    let end =
        |functions: &[Function], words: &[(u64, u64)]| run(functions, at(0, 3), 0x9000, 0x8000, words).end;
    let outside = 0xdead_0000;
    assert_eq!(
        end(&[Function::Frame(16)], &[(0x9008, outside)]),
        Err(Unverified::NoCfi(RunAddr(outside - 1)))
    );
    assert_eq!(
        end(&[Function::Frame(16), Function::Unknown], &[(0x9008, at(1, 4))]),
        Err(Unverified::NoCfi(RunAddr(at(1, 3))))
    );
    assert_eq!(end(&[Function::Frame(16)], &[]), Err(Unverified::Unreadable(RunAddr(0x9008))));
    assert_eq!(
        end(&[Function::FramePointer], &[]),
        Err(Unverified::NotGrowing { cfa: RunAddr(0x8010), sp: RunAddr(0x9000) })
    );
    assert_eq!(end(&[Function::Throwing], &[]), Err(Unverified::Throwing(RunAddr(at(0, 3)))));
    let endless: Vec<_> = (0..=MAX_FRAMES as u64).map(|i| (0x9008 + 16 * i, at(0, 5))).collect();
    assert_eq!(end(&[Function::Frame(16)], &endless), Err(Unverified::TooDeep));
}
