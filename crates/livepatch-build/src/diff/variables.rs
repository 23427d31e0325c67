//! Functions that may have been compiled for what the compiler knew of a variable.
//!
//! Of a static or thread-local that one code unit has to itself the compiler may know that it is only read (then its first value is
//! all there is), only written (then it is not there at all), or what values it can have (LLVM's `GlobalOpt`, and `IPSCCP` for
//! ranges). A change that reads or writes it elsewhere ends that, for functions of which not a word changed. All that may rest on
//! such a variable and whose code differs is replaced, too.
//!
//! Nothing is known of a variable whose address is given away, as an argument of a call or in data, or that is counted atomically: these
//! analyses follow loads and stores alone.

use super::compare::{Ref, reference};
use super::graph::{Graph, Node};
use super::knowledge::{ARGUMENTS, instructions, writes};
use super::meaning::Meaning;
use super::program::{At, Program};
use super::repartition::Infos;
use super::uses::Uses;
use super::{Changed, Diff};
use crate::emit::name_of;
use crate::guard::{FunctionInfo, demangle};
use crate::objects::{Kind, Reloc};
use crate::source::Side;
use iced_x86::{FlowControl, Instruction, InstructionInfoFactory, Mnemonic, OpAccess};
use livepatch_patch::reloc::{Formula, RelocKind};
use std::collections::{BTreeSet, HashSet};

/// Which names are those of variables: of the program's own crates raw code tells, of others the images. Those of others do not count
/// unless they are compiled together with ours: what the compiler sees of them is a declaration.
struct Variables<'m> {
    meaning: &'m Meaning,
    /// Data of each image.
    images: [HashSet<&'m str>; 2],
}

impl<'m> Variables<'m> {
    fn new(meaning: &'m Meaning, diff: &Diff<'m>) -> Self {
        let images = [&diff.old, &diff.new].map(|program| {
            let symbols = program.image.all_symbols();
            let data = symbols.filter(|(_, list)| list.iter().any(|symbol| !symbol.code && !symbol.constant));
            data.map(|(name, _)| meaning.key(whole(name))).collect()
        });
        Self { meaning, images }
    }

    fn graph(&self, side: Side) -> &'m Graph {
        self.meaning.graphs()[usize::from(side == Side::New)]
    }

    fn is_one(&self, graph: &Graph, name: &str) -> bool {
        match graph.nodes.get(name) {
            Some(node) => node.kind.is_some_and(Kind::is_variable),
            None => self.meaning.is_together && self.images.iter().any(|data| data.contains(name)),
        }
    }

    /// The variables that code refers to, itself or by a function that only returns where they are.
    fn of<'s>(&'s self, graph: &'m Graph, node: &'m Node) -> impl Iterator<Item = &'m str> + 's {
        let is_code = node.kind == Some(Kind::Text);
        references(node).filter(move |_| is_code).flat_map(move |name| {
            let own = self.is_one(graph, name).then_some(name);
            let behind =
                graph.nodes.get(name).filter(|node| node.is_accessor).into_iter().flat_map(references);
            own.into_iter().chain(behind.filter(move |name| self.is_one(graph, name)))
        })
    }
}

impl<'m> Variables<'m> {
    /// The variables that changed functions refer to, and so those that they call or reach by the address, of a table as well: what one of
    /// these stores may have been known from what it was called with so far.
    fn reached(&self, graph: &'m Graph, settled: &HashSet<&str>) -> HashSet<&'m str> {
        let mut found = HashSet::new();
        let mut seen: HashSet<&str> = HashSet::new();
        let changed = self.meaning.changed.iter();
        let mut work: Vec<&Node> = changed.filter_map(|name| graph.nodes.get(name)).collect();
        while let Some(node) = work.pop() {
            found.extend(self.of(graph, node));
            let open = references(node).filter(|name| !settled.contains(name));
            work.extend(open.filter_map(|name| graph.nodes.get(name).filter(|_| seen.insert(name))));
        }
        found
    }
}

/// Variables that the change reads, writes or gives away, and of which something may have been known.
pub(crate) struct Touched<'m> {
    variables: Variables<'m>,
    names: HashSet<&'m str>,
}

impl<'m> Touched<'m> {
    /// Finds them.
    pub(super) fn new(meaning: &'m Meaning, diff: &Diff<'m>) -> Self {
        let variables = Variables::new(meaning, diff);
        let mut names = HashSet::new();
        let settled = settled(meaning, diff);
        for graph in meaning.graphs() {
            names.extend(variables.reached(graph, &settled));
        }
        let given_away = if names.is_empty() { HashSet::new() } else { given_away(&variables, diff) };
        names.retain(|name| !given_away.contains(name));
        Self { variables, names }
    }

    /// Those that were found.
    pub(crate) fn found(meaning: &'m Meaning, diff: &'m Diff<'_>) -> Self {
        let names = diff.touched.iter().map(String::as_str).collect();
        Self { variables: Variables::new(meaning, diff), names }
    }

    pub(super) fn names(&self) -> HashSet<String> {
        self.names.iter().map(|name| (*name).to_owned()).collect()
    }

    /// One of these variables that a function refers to, itself or in what is inlined into it.
    pub(super) fn by(&self, change: &Changed, diff: &Diff<'_>, infos: &Infos) -> Option<&'m str> {
        let sides = [(Side::Old, change.old), (Side::New, change.new)];
        sides.into_iter().find_map(|place| self.first(place, diff, infos))
    }

    /// Whether a function of one of the programs refers to one of these variables.
    pub(super) fn is_in(&self, place: (Side, At), diff: &Diff<'_>, infos: &Infos) -> bool {
        self.first(place, diff, infos).is_some()
    }

    fn first(&self, (side, at): (Side, At), diff: &Diff<'_>, infos: &Infos) -> Option<&'m str> {
        self.of(name_of(diff.program(side), at), infos.of(side).get(&at)).next()
    }

    /// Those of these variables that a function refers to, itself or in what is inlined into it.
    pub(crate) fn of<'s>(
        &'s self,
        symbol: &'s str,
        info: Option<&'s FunctionInfo>,
    ) -> impl Iterator<Item = &'m str> + 's {
        let inlined = info.into_iter().flat_map(|info| &info.inlined);
        let symbols = inlined.filter_map(|inlined| inlined.symbol.as_deref()).chain([symbol]);
        let names = symbols.map(|symbol| self.variables.meaning.key(symbol));
        let nodes = names.flat_map(|name| {
            let graphs = [Side::Old, Side::New].map(|side| self.variables.graph(side));
            graphs.into_iter().filter_map(move |graph| Some((graph, graph.nodes.get(name)?)))
        });
        let referred = nodes.flat_map(|(graph, node)| self.variables.of(graph, node));
        referred.filter_map(|name| self.names.get(name).copied())
    }
}

fn references(node: &Node) -> impl Iterator<Item = &str> {
    node.calls.iter().chain(&node.others).map(|(name, _)| name.as_str())
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

/// Functions that both programs have with the same code: what they do to variables does not depend on who calls them.
fn settled<'m>(meaning: &'m Meaning, diff: &Diff<'m>) -> HashSet<&'m str> {
    let [old, new] = [&diff.old, &diff.new].map(|program| {
        let symbols = program.image.all_symbols();
        let code = symbols.filter(|(_, list)| list.iter().any(|symbol| symbol.code));
        code.map(|(name, _)| meaning.key(name)).collect::<HashSet<&str>>()
    });
    let differing = diff.changed.iter().map(|change| change.new).chain(diff.repartitioned.iter().copied());
    let differing: HashSet<&str> = differing.map(|at| meaning.key(name_of(&diff.new, at))).collect();
    old.intersection(&new).filter(|name| !differing.contains(*name)).copied().collect()
}

/// Variables of which machine code or data show that nothing can have been known.
fn given_away<'m>(variables: &Variables<'m>, diff: &Diff<'m>) -> HashSet<&'m str> {
    let (meaning, old, program) = (variables.meaning, variables.graph(Side::Old), &diff.old);
    let mut names = HashSet::new();
    for (at, section) in program.all() {
        let mut code: Option<Vec<Instruction>> = None;
        for reloc in &section.relocs {
            let Ref::Named { name, .. } = reference(program, at.unit, reloc) else { continue };
            let name = meaning.key(name);
            if names.contains(name) || !variables.is_one(old, name) {
                continue;
            }
            let gives = section.kind != Kind::Text || {
                let code = code.get_or_insert_with(|| instructions(section.bytes));
                is_given_away(code, reloc.offset)
            };
            if gives {
                names.insert(name);
            }
        }
    }
    names
}

/// Whether the address that the instruction with this relocation forms is an argument of the next call, or it reads and writes at once:
/// either is more than the loads and stores that the compiler follows.
fn is_given_away(code: &[Instruction], reloc: u64) -> bool {
    let at = code.partition_point(|instruction| instruction.next_ip() <= reloc);
    let Some((first, rest)) = code.get(at..).and_then(<[Instruction]>::split_first) else { return false };
    let register = first.op0_register();
    if first.has_lock_prefix() {
        return true;
    }
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
        if writes(instruction, register, &mut factory) {
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
    instructions(section.bytes).iter().all(|instruction| {
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
    let mut found = used_aside(diff, brought);
    found.extend(brought.iter().filter(|at| diff.partial.contains(at)).map(|at| name_of(&diff.new, *at)));
    if let Some(meaning) = diff.meaning.any() {
        found.extend(optimised_in(meaning, diff, (brought, shared), code));
    }
    found.into_iter().map(|name| declared(&demangle(name))).collect()
}

/// Those that come with the patch, and that the new code of a function refers to whose meaning did not change: the old one should have
/// referred to it, too. This tells of dependencies that are compiled together with the program, and of which there is no raw code.
fn used_aside<'d>(diff: &'d Diff<'_>, brought: &[At]) -> BTreeSet<&'d str> {
    let names: HashSet<&str> = brought.iter().map(|at| diff.new.key(name_of(&diff.new, *at))).collect();
    let replaced = diff.changed.iter().filter(|change| diff.compiled_for.contains_key(&change.old));
    let same = diff.repartitioned.iter().copied().chain(replaced.map(|change| change.new));
    let uses = same.map(|at| Uses::of(&diff.new, at));
    uses.flat_map(|uses| uses.others.into_keys()).filter(|name| names.contains(name)).collect()
}

fn optimised_in<'m>(
    meaning: &'m Meaning,
    diff: &'m Diff<'_>,
    (brought, shared): (&[At], &[(At, At)]),
    code: &'m [FunctionInfo],
) -> BTreeSet<&'m str> {
    let variables = Variables::new(meaning, diff);
    let (old, new) = (variables.graph(Side::Old), variables.graph(Side::New));
    let is_own =
        |name: &str| old.nodes.get(name).is_some_and(|node| node.kind.is_some_and(Kind::is_variable));
    let alive = alive(meaning, diff);
    let names = brought.iter().map(|at| meaning.key(whole(name_of(&diff.new, *at))));
    let mut found: BTreeSet<&str> = names.filter(|name| is_own(name) && alive.contains(name)).collect();
    let others = shared.iter().filter(|(old, _)| !diff.old.section(*old).kind.is_variable());
    found.extend(others.map(|(_, at)| meaning.key(name_of(&diff.new, *at))));
    let symbols = code.iter().flat_map(|info| {
        info.inlined.iter().filter_map(|inlined| inlined.symbol.as_deref()).chain([info.symbol.as_str()])
    });
    let nodes = symbols.filter_map(|symbol| new.nodes.get(meaning.key(symbol)));
    let [in_old, in_new] = &variables.images;
    let referred = nodes.flat_map(|node| variables.of(new, node));
    found.extend(referred.filter(|name| in_old.contains(name) && !in_new.contains(name)));
    found
}

/// The path that a person knows of a variable: a thread-local is inside what `thread_local!` makes.
pub(super) fn declared(path: &str) -> String {
    path.split("::{{constant}}").next().unwrap_or(path).to_owned()
}

/// The name of a variable of which LLVM left whether it has the one of two values.
fn whole(name: &str) -> &str {
    name.strip_suffix(".b").unwrap_or(name)
}
