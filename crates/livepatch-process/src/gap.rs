//! Where a patch can go: a hole in the memory map from which and to which a module's code can jump.
//!
//! `rel32` reaches ±2 GiB, and code here refers to code there in both directions, so every byte of the hole must be in reach
//! of every byte of the module. Among the possible holes:
//!
//! - Below the module is preferred, as close as possible: nothing grows there. The program break grows upwards from
//!   above the executable, and `mmap` fills from the top of the address space downwards.
//! - Above the module, the hole's far end is taken, away from a break that grows into it.
//! - 64 KiB stay free on both sides, so that running off a neighbour faults, and 16 MiB below a stack
//!   mapping, which grows downwards.

use crate::maps::Mapping;
use crate::memory::{PAGE_SIZE, USER_END};
use livepatch_patch::RunAddr;
use std::ops::Range;

/// Reach of a `rel32` in either direction, less one page for the length of an instruction and for addends.
const REACH: u64 = (1 << 31) - PAGE_SIZE;
/// Free space towards each neighbour.
const GUARD: u64 = 64 << 10;
/// Free space below a stack that grows: the usual limit of 8 MiB, with as much again to spare.
const STACK_GUARD: u64 = 16 << 20;

/// The start of a free, page aligned hole of `size` bytes in reach of all of `near`, or `None` if there is no such hole.
///
/// `maps` is in address order, as [`crate::Process::maps`] returns it. `floor` is the lowest address that may be mapped
/// ([`mmap_min_addr`]). The map may change before the hole is used: map it with `MAP_FIXED_NOREPLACE` and choose again if that fails.
pub fn near_gap(maps: &[Mapping], near: Range<RunAddr>, size: u64, floor: RunAddr) -> Option<RunAddr> {
    let size = size.checked_next_multiple_of(PAGE_SIZE).filter(|&size| 0 < size && size <= REACH)?;
    if near.is_empty() {
        return None;
    }
    // `first` and `last` bound the start of the hole.
    let first = near.end.0.saturating_sub(REACH).checked_next_multiple_of(PAGE_SIZE)?;
    let last = near.start.0.saturating_add(REACH).min(USER_END).checked_sub(size)? & !(PAGE_SIZE - 1);
    let starts = holes(maps, floor).filter_map(|hole| {
        let low = hole.start.max(first);
        let high = hole.end.checked_sub(size)?.min(last);
        (low <= high).then_some((low, high))
    });
    let (below, above): (Vec<_>, Vec<_>) = starts.partition(|&(low, _)| low < near.start.0);
    let closest_below = below.iter().map(|&(_, high)| high).max();
    closest_below.or_else(|| above.iter().map(|&(_, high)| high).max()).map(RunAddr)
}

/// The free ranges between the mappings less their guard space, page aligned, in address order.
fn holes(maps: &[Mapping], floor: RunAddr) -> impl Iterator<Item = Range<u64>> {
    let floor = floor.0.max(PAGE_SIZE).next_multiple_of(PAGE_SIZE);
    let starts = std::iter::once(floor).chain(maps.iter().map(|mapping| mapping.range.end.0 + GUARD));
    let ends = maps
        .iter()
        .map(|mapping| {
            let guard = if mapping.is_special("[stack]") { STACK_GUARD } else { GUARD };
            mapping.range.start.0.saturating_sub(guard)
        })
        .chain(std::iter::once(USER_END - GUARD));
    starts.zip(ends).map(move |(start, end)| start.max(floor)..end).filter(|hole| hole.start < hole.end)
}

/// The lowest address that a program may map, `vm.mmap_min_addr`. 64 KiB, the usual value, if the kernel does not tell.
pub fn mmap_min_addr() -> RunAddr {
    let text = std::fs::read_to_string("/proc/sys/vm/mmap_min_addr").unwrap_or_default();
    RunAddr(text.trim().parse().unwrap_or(64 << 10))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::maps::{Backing, Perms};

    const FLOOR: RunAddr = RunAddr(0x10000);
    const PIE: u64 = 0x5555_5555_4000;

    fn mapping(start: u64, end: u64, name: &str) -> Mapping {
        let backing = match name {
            "" => Backing::Anonymous,
            name if name.starts_with('[') => Backing::Special(name.into()),
            name => Backing::File(name.into()),
        };
        Mapping {
            range: RunAddr(start)..RunAddr(end),
            perms: Perms::default(),
            file_offset: 0,
            device: (0, 0),
            inode: 0,
            backing,
            deleted: false,
        }
    }

    fn module(maps: &[Mapping]) -> Range<RunAddr> {
        maps.iter().find(|mapping| mapping.path().is_some()).unwrap().range.clone()
    }

    fn assert_fits(maps: &[Mapping], near: &Range<RunAddr>, at: RunAddr, size: u64) {
        let end = at.0 + size;
        assert_eq!(at.0 % PAGE_SIZE, 0);
        assert!(at >= FLOOR && end <= USER_END);
        for other in maps {
            assert!(
                end + GUARD <= other.range.start.0 || at.0 >= other.range.end.0 + GUARD,
                "{at} next to {other:?}"
            );
        }
        let extremes = [(near.start.0, end), (near.end.0, at.0)];
        for (a, b) in extremes {
            assert!(a.abs_diff(b) <= i32::MAX as u64, "{b:#x} is out of reach of {a:#x}");
        }
    }

    #[test]
    fn just_below_a_pie() {
        let maps =
            [mapping(PIE, PIE + 0x10_0000, "/exe"), mapping(PIE + 0x20_0000, PIE + 0x30_0000, "[heap]")];
        let at = near_gap(&maps, module(&maps), 0x5001, FLOOR).unwrap();
        assert_eq!(at, RunAddr(PIE - GUARD - 0x6000));
        assert_fits(&maps, &module(&maps), at, 0x6000);
    }

    #[test]
    fn below_a_non_pie_while_it_fits_then_far_above_the_break() {
        let maps = [mapping(0x40_0000, 0x50_0000, "/exe"), mapping(0x51_0000, 0x60_0000, "[heap]")];
        let near = module(&maps);
        let small = near_gap(&maps, near.clone(), 0x1_0000, FLOOR).unwrap();
        assert_eq!(small, RunAddr(0x40_0000 - GUARD - 0x1_0000));
        let room_below = 0x40_0000 - GUARD - FLOOR.0;
        assert_eq!(near_gap(&maps, near.clone(), room_below, FLOOR), Some(FLOOR));
        let large = near_gap(&maps, near.clone(), room_below + 1, FLOOR).unwrap();
        assert!(large.0 > 0x7000_0000, "{large} is where the break grows");
        assert_fits(&maps, &near, large, room_below + PAGE_SIZE);
    }

    #[test]
    fn the_reach_is_kept_to_the_page_on_both_sides() {
        let near = RunAddr(1 << 40)..RunAddr((1 << 40) + 0x10_0000);
        // Everything is taken except one hole of exactly the size, once just in reach and once one page out of it.
        let size = 0x2000;
        for (start, fits) in [
            (near.end.0 - REACH, true),
            (near.end.0 - REACH - PAGE_SIZE, false),
            (near.start.0 + REACH - size, true),
            (near.start.0 + REACH - size + PAGE_SIZE, false),
        ] {
            let maps = [mapping(FLOOR.0, start - GUARD, ""), mapping(start + size + GUARD, USER_END, "")];
            assert_eq!(
                near_gap(&maps, near.clone(), size, FLOOR),
                fits.then_some(RunAddr(start)),
                "{start:#x}"
            );
        }
    }

    #[test]
    fn a_hole_too_small_by_one_page_is_none() {
        let end = PIE + 0x1000;
        let hole = |size: u64| {
            [
                mapping(FLOOR.0, PIE - 2 * GUARD - size, ""),
                mapping(PIE, end, "/exe"),
                mapping(end, USER_END, ""),
            ]
        };
        let maps = hole(0x3000);
        assert_eq!(near_gap(&maps, module(&maps), 0x3000, FLOOR), Some(RunAddr(PIE - GUARD - 0x3000)));
        let maps = hole(0x2000);
        assert_eq!(near_gap(&maps, module(&maps), 0x3000, FLOOR), None);
    }

    #[test]
    fn a_stack_keeps_room_to_grow() {
        let stack = 0x7ff0_0000_0000;
        let maps = [
            mapping(FLOOR.0, stack - (64 << 20), ""),
            mapping(stack, stack + 0x10000, "[stack]"),
            mapping(stack + 0x10000, USER_END, "/exe"),
        ];
        let near = RunAddr(stack + 0x10000)..RunAddr(stack + 0x20000);
        let at = near_gap(&maps, near, 0x1000, FLOOR).unwrap();
        assert_eq!(at.0 + 0x1000, stack - STACK_GUARD);
    }

    #[test]
    fn nonsense_has_no_gap() {
        let maps = [mapping(PIE, PIE + 0x1000, "/exe")];
        for size in [0, REACH + 1, u64::MAX] {
            assert_eq!(near_gap(&maps, module(&maps), size, FLOOR), None, "{size:#x}");
        }
        assert_eq!(near_gap(&maps, RunAddr(5)..RunAddr(5), 1, FLOOR), None);
        // The vsyscall page lies above everything a program can map.
        let maps = [mapping(0xffff_ffff_ff60_0000, 0xffff_ffff_ff60_1000, "[vsyscall]")];
        let near = RunAddr(0xffff_ffff_ff60_0000)..RunAddr(0xffff_ffff_ff60_1000);
        assert_eq!(near_gap(&maps, near, 0x1000, FLOOR), None);
    }

    #[test]
    fn own_module_has_a_gap() {
        let maps = crate::maps::parse(&std::fs::read("/proc/self/maps").unwrap()).unwrap();
        let here = RunAddr(own_module_has_a_gap as fn() as usize as u64);
        let near = maps.iter().find(|mapping| mapping.contains(here)).unwrap().range.clone();
        let at = near_gap(&maps, near.clone(), 1 << 20, mmap_min_addr()).unwrap();
        assert_fits(&maps, &near, at, 1 << 20);
    }
}
