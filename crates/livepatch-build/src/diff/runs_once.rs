//! What of a program runs once, as set-up does.
//!
//! `main` runs once, and so does what the loader calls (`.init_array`). So does a function that such code calls by one call which is in no
//! loop, if nothing else refers to it, and what it starts a thread with: the standard library's own code for that refers to it by the
//! vtable of a `Box<dyn FnOnce()>`, whose function is called once a box, and to the function that its `catch_unwind` is to call. Loops are
//! those of the raw code's instructions: a call from which control comes back to it. Where control goes through a table, it may go to
//! whatever no other instruction leads to. The body of `async fn main` is a function that the runtime calls in a loop, but each call
//! goes on where the last one left off; so its own instructions tell what is in a loop. The same goes for the bodies that it awaits: they
//! are looked into, but do not run once themselves, nor does what is polled otherwise.

use super::compare::{Ref, is_call, reference};
use super::graph::Graph;
use super::knowledge::{falls_through, instructions};
use super::names::is_mangled;
use super::pair::ByName;
use super::program::Program;
use super::traces::last_name;
use super::uses::held;
use crate::guard::demangle;
use crate::objects::Kind;
use iced_x86::{FlowControl, Instruction};
use std::collections::{BTreeSet, HashMap, HashSet};

/// The functions that run once, by name, `main` left out: it goes on to be on the stack.
pub(super) fn running_once<'a>(program: &Program<'a>, names: &ByName<'a>, graph: &Graph) -> HashSet<String> {
    let mut references: HashMap<&str, usize> = HashMap::new();
    for node in graph.nodes.values() {
        for (name, count) in node.calls.iter().chain(&node.others) {
            *references.entry(name).or_default() += count;
        }
    }
    let mut found = HashSet::new();
    let mut work: Vec<&str> = mains(names, graph);
    for name in constructors(program) {
        // The loader's sections are not in the graph.
        if names.contains_key(name) && !references.contains_key(name) && found.insert(name.to_owned()) {
            work.push(name);
        }
    }
    while let Some(name) = work.pop() {
        let used = used_once(program, names, name).into_iter();
        for callee in used.filter(|callee| references.get(callee) == Some(&1)) {
            if !is_polled(callee) && found.insert(callee.to_owned()) {
                work.push(callee);
            }
        }
    }
    // It may be the body of a future, which goes on behind its awaits when it is called again.
    found.retain(|name| !demangle(name).ends_with('}'));
    found
}

/// Whether a function is called whenever there may be something to go on with.
fn is_polled(name: &str) -> bool {
    last_name(&demangle(name)).starts_with("poll")
}

/// The program's `main`, which the C function of that name refers to, and its body if it is `async`.
fn mains<'a>(names: &ByName<'a>, graph: &Graph) -> Vec<&'a str> {
    let Some(entry) = graph.nodes.get("main") else { return Vec::new() };
    let referred = entry.others.iter().chain(&entry.calls).filter(|(name, _)| is_mangled(name));
    let path = |name: &str| demangle(name);
    let own = referred.filter(|(name, _)| path(name).ends_with("::main"));
    let mut mains = Vec::new();
    for (main, _) in own {
        let Some((&main, _)) = names.get_key_value(main.as_str()) else { continue };
        mains.push(main);
        let calls = graph.nodes.get(main).into_iter().flat_map(|node| &node.calls);
        if calls.map(|(name, _)| path(name)).any(|path| path.contains("block_on")) {
            let bodies =
                [format!("{}::{{{{closure}}}}", path(main)), format!("{}::{{closure#0}}", path(main))];
            let mut blocks = names.keys().filter(|name| bodies.contains(&path(name)));
            // Where there are several it is not known which one is the body.
            mains.extend(blocks.next().filter(|_| blocks.next().is_none()));
        }
    }
    mains
}

/// What the loader calls.
fn constructors<'a>(program: &Program<'a>) -> BTreeSet<&'a str> {
    const SECTIONS: [&str; 3] = [".preinit_array", ".init_array", ".ctors"];
    let is_list = |name: &str| SECTIONS.iter().any(|list| name.starts_with(list));
    let lists = program.all().filter(|(_, section)| is_list(section.name));
    lists.flat_map(|(at, _)| held(program, at)).map(|(_, name)| name).collect()
}

/// Functions that a piece of code calls, or hands to what calls them once, but not in a loop.
fn used_once<'a>(program: &Program<'a>, names: &ByName<'a>, name: &str) -> BTreeSet<&'a str> {
    let Some([at]) = names.get(name).map(Vec::as_slice) else { return BTreeSet::new() };
    let section = program.section(*at);
    if section.kind != Kind::Text {
        return BTreeSet::new();
    }
    let flow = Flow::of(section.bytes, &section.relocs.iter().map(|reloc| reloc.offset).collect());
    let starts_thread = starts_thread(&demangle(name));
    let taken_once = |name: &&str| is_taken_once(&demangle(name), starts_thread);
    let mut used = BTreeSet::new();
    for reloc in &section.relocs {
        let names: Vec<&str> = match reference(program, at.unit, reloc) {
            Ref::Named { name, .. } if is_call(section.bytes, reloc) => {
                Some(name).filter(|name| is_mangled(name)).into_iter().collect()
            }
            Ref::Named { name, .. } => Some(name).filter(taken_once).into_iter().collect(),
            Ref::Constant { at: constant, .. } => {
                held(program, constant).into_iter().map(|(_, name)| name).filter(taken_once).collect()
            }
        };
        // Last, because it follows the instructions.
        if !names.is_empty() && !flow.is_in_loop(reloc.offset) {
            used.extend(names);
        }
    }
    used
}

/// Whether a function, by its path, is the standard library's for starting threads.
fn starts_thread(path: &str) -> bool {
    path.starts_with("std::thread::") && path.contains("spawn_unchecked")
}

/// Whether a function, by its path, is called once for each time that its address is taken: by what tries whether it panics, or as the body
/// of a thread.
fn is_taken_once(path: &str, by_what_starts_thread: bool) -> bool {
    let is_tried = path.starts_with("std::panicking::") && path.contains("do_call");
    is_tried || by_what_starts_thread && path.contains("call_once") && path.contains("shim")
}

/// Where control goes in a function.
struct Flow {
    /// Offset of each instruction, and of the end.
    starts: Vec<u64>,
    /// For each instruction, those that may come after it.
    next: Vec<Vec<usize>>,
}

impl Flow {
    /// Of some code, with the offsets of what the linker fills in.
    fn of(bytes: &[u8], filled: &BTreeSet<u64>) -> Self {
        let code = instructions(bytes);
        let starts: Vec<u64> = code.iter().map(Instruction::ip).chain([bytes.len() as u64]).collect();
        let relocated = |i: &Instruction| filled.range(i.ip()..i.next_ip()).next().is_some();
        let target = |i: &Instruction| {
            let jumps =
                matches!(i.flow_control(), FlowControl::ConditionalBranch | FlowControl::UnconditionalBranch);
            starts
                .binary_search(&i.near_branch_target())
                .ok()
                .filter(|at| jumps && *at < code.len() && !relocated(i))
        };
        let mut next: Vec<Vec<usize>> = vec![Vec::new(); code.len()];
        let mut led_to = vec![false; code.len()];
        for (at, instruction) in code.iter().enumerate() {
            let after = (falls_through(instruction) && at + 1 < code.len()).then_some(at + 1);
            next[at] = after.into_iter().chain(target(instruction)).collect();
            next[at].iter().for_each(|to| led_to[*to] = true);
        }
        let through_tables: Vec<usize> = (1..code.len()).filter(|at| !led_to[*at]).collect();
        for (at, instruction) in code.iter().enumerate() {
            if instruction.flow_control() == FlowControl::IndirectBranch {
                next[at].clone_from(&through_tables);
            }
        }
        Self { starts, next }
    }

    /// Whether control can come from an instruction, that with this offset in it, back to it.
    fn is_in_loop(&self, offset: u64) -> bool {
        let from = self.starts.partition_point(|start| *start <= offset).saturating_sub(1);
        let mut seen = HashSet::new();
        let mut work = self.next.get(from).cloned().unwrap_or_default();
        while let Some(at) = work.pop() {
            if at == from {
                return true;
            }
            if seen.insert(at) {
                work.extend(&self.next[at]);
            }
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flow(bytes: &[u8]) -> Flow {
        Flow::of(bytes, &BTreeSet::new())
    }

    #[test]
    fn loops_are_what_comes_back() {
        // 0: nop, 1: nop, 2: jne 1, 4: nop, 5: ret
        let code = flow(&[0x90, 0x90, 0x75, 0xfd, 0x90, 0xc3]);
        let looping: Vec<u64> = (0..6).filter(|offset| code.is_in_loop(*offset)).collect();
        assert_eq!(looping, [1, 2, 3]);
    }

    #[test]
    fn tables_lead_to_what_nothing_else_leads_to() {
        // 0: nop, 1: jmp rax, 3: nop, 4: jmp 0 (an arm of a match in a loop), 6: nop, 7: ret
        let code = flow(&[0x90, 0xff, 0xe0, 0x90, 0xeb, 0xfa, 0x90, 0xc3]);
        let looping: Vec<u64> = (0..8).filter(|offset| code.is_in_loop(*offset)).collect();
        assert_eq!(looping, [0, 1, 2, 3, 4, 5]);
    }
}
