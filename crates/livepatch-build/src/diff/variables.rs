//! Functions that may have been compiled for what the compiler knew of a variable.
//!
//! Of a static or thread-local that one code unit has to itself the compiler may know that it is only read (then its first value is
//! all there is), only written (then it is not there at all), or what values it can have (LLVM's `GlobalOpt`, and `IPSCCP` for
//! ranges). A change that reads or writes it elsewhere ends that, for functions of which not a word changed. All that may rest on
//! such a variable and whose code differs is replaced, too.
//!
//! Nothing is known of a variable whose address is given away: as an argument of a call, or in data.

use super::compare::{Ref, reference};
use super::graph::{Graph, Node};
use super::knowledge::ARGUMENTS;
use super::meaning::Meaning;
use super::program::{At, Program};
use super::repartition::Infos;
use super::{Changed, Diff};
use crate::emit::name_of;
use crate::guard::{FunctionInfo, demangle};
use crate::objects::{Kind, Reloc, Section};
use crate::source::Side;
use iced_x86::{
    Decoder, DecoderOptions, FlowControl, Instruction, InstructionInfoFactory, Mnemonic, OpAccess,
};
use livepatch_patch::reloc::{Formula, RelocKind};
use std::collections::{BTreeSet, HashSet};

/// Variables that the change reads, writes or gives away, and of which something may have been known.
pub(super) struct Touched<'m> {
    meaning: &'m Meaning,
    names: HashSet<&'m str>,
}

impl<'m> Touched<'m> {
    pub(super) fn new(meaning: &'m Meaning, diff: &Diff<'m>) -> Self {
        let mut names = HashSet::new();
        for graph in meaning.graphs() {
            for node in meaning.changed.iter().filter_map(|name| graph.nodes.get(name)) {
                names.extend(variables_of(graph, node));
            }
        }
        names.extend(newly_alive(meaning, diff));
        let given_away = if names.is_empty() { HashSet::new() } else { given_away(&diff.old, meaning) };
        names.retain(|name| !given_away.contains(name));
        Self { meaning, names }
    }

    /// One of these variables that a function refers to, itself or in what is inlined into it.
    pub(super) fn by(&self, change: &Changed, diff: &Diff<'_>, infos: &Infos) -> Option<&'m str> {
        [(Side::Old, change.old), (Side::New, change.new)].into_iter().find_map(|(side, at)| {
            let graph = self.meaning.graphs()[usize::from(side == Side::New)];
            let inlined = infos.of(side).get(&at).into_iter().flat_map(|info| &info.inlined);
            let own = name_of(diff.program(side), at);
            let names = inlined.filter_map(|inlined| inlined.symbol.as_deref()).chain([own]);
            let nodes = names.filter_map(|name| graph.nodes.get(self.meaning.key(name)));
            let mut variables = nodes.flat_map(|node| variables_of(graph, node));
            variables.find_map(|name| self.names.get(name).copied())
        })
    }
}

fn references(node: &Node) -> impl Iterator<Item = &str> {
    node.calls.iter().chain(&node.others).map(|(name, _)| name.as_str())
}

/// The variables that code refers to, itself or by a function that only returns where they are.
fn variables_of<'g>(graph: &'g Graph, node: &'g Node) -> impl Iterator<Item = &'g str> {
    let is_code = node.kind == Some(Kind::Text);
    let known = references(node).filter(move |_| is_code);
    let known = known.filter_map(|name| graph.nodes.get_key_value(name));
    known.flat_map(move |(name, node)| {
        let is_variable = |node: &Node| node.kind.is_some_and(Kind::is_variable);
        let own = is_variable(node).then_some(name.as_str());
        let behind = references(node).filter(|_| node.is_accessor);
        let behind = behind.filter(move |name| graph.nodes.get(*name).is_some_and(is_variable));
        own.into_iter().chain(behind)
    })
}

/// What can be reached in the old program.
fn alive<'m>(meaning: &'m Meaning, diff: &Diff<'m>) -> HashSet<&'m str> {
    let [old, _] = meaning.graphs();
    let mut alive: HashSet<&str> = HashSet::new();
    let in_image = diff.old.image.all_symbols().map(|(name, _)| meaning.key(name));
    let mut work: Vec<&str> = in_image.collect();
    while let Some(name) = work.pop() {
        if alive.insert(name) {
            work.extend(old.nodes.get(name).into_iter().flat_map(references));
        }
    }
    alive
}

/// Variables of functions that nothing reached in the old program, and that the change reaches.
fn newly_alive<'m>(meaning: &'m Meaning, diff: &Diff<'m>) -> HashSet<&'m str> {
    let [_, new] = meaning.graphs();
    let alive = alive(meaning, diff);
    let mut found = HashSet::new();
    let mut seen: HashSet<&str> = HashSet::new();
    let mut work: Vec<&Node> = meaning.changed.iter().filter_map(|name| new.nodes.get(name)).collect();
    while let Some(node) = work.pop() {
        for name in references(node).filter(|name| !alive.contains(name)) {
            if let Some(node) = new.nodes.get(name).filter(|_| seen.insert(name)) {
                found.extend(variables_of(new, node));
                work.push(node);
            }
        }
    }
    found
}

/// Variables whose address machine code or data gives away.
fn given_away<'m>(program: &Program<'_>, meaning: &'m Meaning) -> HashSet<&'m str> {
    let mut names = HashSet::new();
    let [old, _] = meaning.graphs();
    for (at, section) in program.all() {
        let mut code: Option<Vec<Instruction>> = None;
        for reloc in &section.relocs {
            let Ref::Named { name, .. } = reference(program, at.unit, reloc) else { continue };
            let Some((name, node)) = old.nodes.get_key_value(meaning.key(name)) else { continue };
            if names.contains(name.as_str()) || !node.kind.is_some_and(Kind::is_variable) {
                continue;
            }
            let gives = section.kind != Kind::Text || {
                let code = code.get_or_insert_with(|| instructions(section));
                is_argument(code, reloc.offset)
            };
            if gives {
                names.insert(name.as_str());
            }
        }
    }
    names
}

fn instructions(section: &Section<'_>) -> Vec<Instruction> {
    Decoder::new(64, section.bytes, DecoderOptions::NONE).into_iter().collect()
}

/// Whether the address that the instruction with this relocation forms is an argument of the next call.
fn is_argument(code: &[Instruction], reloc: u64) -> bool {
    let at = code.partition_point(|instruction| instruction.next_ip() <= reloc);
    let Some((first, rest)) = code.get(at..).and_then(<[Instruction]>::split_first) else { return false };
    let register = first.op0_register();
    if first.mnemonic() != Mnemonic::Lea || !ARGUMENTS.contains(&register) {
        return false;
    }
    let mut factory = InstructionInfoFactory::new();
    for instruction in rest {
        match instruction.flow_control() {
            FlowControl::Call | FlowControl::IndirectCall => return true,
            FlowControl::Next => {}
            _ => return false,
        }
        let info = factory.info(instruction);
        let is_write = |access| !matches!(access, OpAccess::Read | OpAccess::CondRead | OpAccess::None);
        let mut used = info.used_registers().iter();
        if used.any(|used| used.register().full_register() == register && is_write(used.access())) {
            return false;
        }
    }
    false
}

/// Whether a place gets the address of an entry of the global offset table.
fn is_by_table(reloc: &Reloc) -> bool {
    let formula = RelocKind::from_elf(reloc.kind).map(RelocKind::formula);
    matches!(formula, Some(Formula::Got | Formula::GotTpOff))
}

/// Whether code does nothing but form an address: it touches no memory except its own stack, the thread's control block and the global
/// offset table.
pub(super) fn is_accessor(program: &Program<'_>, at: At) -> bool {
    const LONGEST: u64 = 64;
    let section = program.section(at);
    if section.kind != Kind::Text || section.size > LONGEST {
        return false;
    }
    let mut factory = InstructionInfoFactory::new();
    instructions(section).iter().all(|instruction| {
        let loads_address = instruction.mnemonic() == Mnemonic::Mov && instruction.is_ip_rel_memory_operand();
        let by_table = loads_address && {
            let relocs = section.relocs.iter();
            let mut within = relocs.filter(|r| (instruction.ip()..instruction.next_ip()).contains(&r.offset));
            within.any(is_by_table)
        };
        let mut memory = factory.info(instruction).used_memory().iter();
        by_table
            || memory.all(|memory| {
                use iced_x86::Register::{FS, RBP, RSP};
                memory.segment() == FS
                    || matches!(memory.base(), RSP | RBP)
                    || memory.access() == OpAccess::NoMemAccess
            })
    })
}

/// Variables of the fixed source that are not in the running program as they are declared, or not in the fixed one, because the compiler
/// knew enough of them; of those that new code brings along, shares, or would have to refer to.
pub(crate) fn optimised(
    diff: &Diff<'_>,
    (brought, shared): (&[At], &[(At, At)]),
    code: &[FunctionInfo],
) -> BTreeSet<String> {
    let Some(meaning) = diff.meaning.any() else { return BTreeSet::new() };
    let [old, new] = meaning.graphs();
    let is_variable = |graph: &Graph, name: &str| {
        graph.nodes.get(name).is_some_and(|node| node.kind.is_some_and(Kind::is_variable))
    };
    let alive = alive(meaning, diff);
    let names = brought.iter().map(|at| meaning.key(whole(name_of(&diff.new, *at))));
    let mut found: BTreeSet<&str> =
        names.filter(|name| is_variable(old, name) && alive.contains(name)).collect();
    let others = shared.iter().filter(|(old, _)| !diff.old.section(*old).kind.is_variable());
    found.extend(others.map(|(_, at)| meaning.key(name_of(&diff.new, *at))));
    let images = [&diff.old, &diff.new].map(|program| {
        let data = program.image.all_symbols().filter(|(_, list)| list.iter().any(|symbol| !symbol.code));
        data.map(|(name, _)| meaning.key(whole(name))).collect::<HashSet<&str>>()
    });
    let symbols = code.iter().flat_map(|info| {
        info.inlined.iter().filter_map(|inlined| inlined.symbol.as_deref()).chain([info.symbol.as_str()])
    });
    let nodes = symbols.filter_map(|symbol| new.nodes.get(meaning.key(symbol)));
    let referred = nodes.flat_map(|node| variables_of(new, node));
    found.extend(referred.filter(|name| images[0].contains(name) && !images[1].contains(name)));
    found.into_iter().map(|name| declared(&demangle(name))).collect()
}

/// The path that a person knows of a variable: a thread-local is inside what `thread_local!` makes.
pub(super) fn declared(path: &str) -> String {
    path.split("::{{constant}}").next().unwrap_or(path).to_owned()
}

/// The name of a variable of which LLVM left whether it has the one of two values.
fn whole(name: &str) -> &str {
    name.strip_suffix(".b").unwrap_or(name)
}
