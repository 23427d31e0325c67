//! Running on every processor once, so that each has fetched changed code anew before it executes code of the target.
//!
//! A processor that runs a thread of this tool has this tool's address space loaded. Before it executes an instruction of the target
//! after that, the kernel switches to the target's address space: it writes CR3, which is a serialising instruction (Intel SDM
//! volume 3, "Serializing Instructions"; AMD APM volume 2, 7.6.4). The kernel's own `membarrier` rests on the same:
//! "we rely instead on write_cr3() performed by switch_mm() to provide core serialization after changing the current mm"
//! (`Documentation/features/sched/membarrier-sync-core/arch-support.txt`). So after a visit to every processor no code runs in
//! the target that was fetched before the visit began. Nothing is asked of the target for it, and none of its threads waits.
//!
//! One thread for each processor is bound to it ahead of time and sleeps there, with real-time priority where that is permitted: it
//! runs for microseconds, and else would wait for its turn behind the program's threads, which takes milliseconds. A processor that
//! does not get to it in time (a thread with a higher priority holds it), one that this tool may not use, or one that comes online
//! meanwhile fails the round, and the caller has to do otherwise.

use crate::sys;
use crate::tracer::start_small;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::thread::{Thread, current, park, park_timeout};
use std::time::{Duration, Instant};

/// For more processors than this, starting a thread for each takes longer than the work.
const MOST: usize = 128;
/// Orders to a visitor and its answers; anything else is the number of a round.
const NOTHING: u64 = 0;
const BOUND: u64 = u64::MAX - 1;
const END: u64 = u64::MAX;
const FAILED: u64 = u64::MAX;

/// A thread of this tool on every processor.
#[derive(Debug)]
pub struct Visitors {
    posts: Vec<Post>,
    round: u64,
}

#[derive(Debug)]
struct Post {
    thread: Thread,
    place: Arc<Place>,
}

#[derive(Debug)]
struct Place {
    processor: usize,
    order: AtomicU64,
    answer: AtomicU64,
}

impl Visitors {
    /// Starts them; [`Self::are_there`] says whether they got there. `None` if there are too many processors, or threads cannot be
    /// started.
    pub fn start() -> Option<Self> {
        let processors = online()?;
        if processors.len() > MOST {
            return None;
        }
        let mut visitors = Self { posts: Vec::with_capacity(processors.len()), round: NOTHING };
        for processor in processors {
            let place = Arc::new(Place {
                processor,
                order: AtomicU64::new(NOTHING),
                answer: AtomicU64::new(NOTHING),
            });
            let (own, starter) = (Arc::clone(&place), current());
            let visit = move || own.wait_for_orders(&starter);
            let thread = start_small("livepatch-visit", Box::new(visit)).ok()?.thread().clone();
            visitors.posts.push(Post { thread, place });
        }
        Some(visitors)
    }

    /// Waits until each is bound to its processor; false if one is not by the limit, or cannot be.
    pub fn are_there(&self, limit: Duration) -> bool {
        self.all_answer(BOUND, limit, None)
    }

    /// Lets each run once. Whether all did by the limit, on all the processors that are online.
    ///
    /// To be called by the thread that started them.
    pub fn visit(&mut self, limit: Duration) -> bool {
        self.round += 1;
        // This thread runs, too: its processor has been visited.
        let here = sys::current_processor();
        for Post { thread, place } in self.posts.iter().filter(|post| Some(post.place.processor) != here) {
            place.order.store(self.round, SeqCst);
            thread.unpark();
        }
        let answered = self.all_answer(self.round, limit, here);
        let online = online();
        answered
            && online.is_some_and(|online| {
                online.iter().copied().eq(self.posts.iter().map(|post| post.place.processor))
            })
    }

    fn all_answer(&self, answer: u64, limit: Duration, but: Option<usize>) -> bool {
        let started = Instant::now();
        for Post { place, .. } in self.posts.iter().filter(|post| Some(post.place.processor) != but) {
            loop {
                match place.answer.load(SeqCst) {
                    FAILED => return false,
                    found if found == answer => break,
                    // Bound, and visited before.
                    found if answer == BOUND && found != NOTHING => break,
                    _ => {}
                }
                let Some(left) = limit.checked_sub(started.elapsed()) else { return false };
                park_timeout(left);
            }
        }
        true
    }
}

impl Drop for Visitors {
    /// They end by themselves; one that gets no processor is not waited for.
    fn drop(&mut self) {
        for Post { thread, place } in &self.posts {
            place.order.store(END, SeqCst);
            thread.unpark();
        }
    }
}

impl Place {
    fn wait_for_orders(&self, starter: &Thread) {
        sys::run_at_once();
        let mut answer = if sys::bind_to_processor(self.processor) { BOUND } else { FAILED };
        let mut last = NOTHING;
        loop {
            // A processor that goes offline loses the threads that are bound to it to another one.
            if sys::current_processor() != Some(self.processor) {
                answer = FAILED;
            }
            self.answer.store(answer, SeqCst);
            starter.unpark();
            let mut order = self.order.load(SeqCst);
            while order == last {
                park();
                order = self.order.load(SeqCst);
            }
            if order == END || answer == FAILED {
                return;
            }
            (last, answer) = (order, order);
        }
    }
}

/// The numbers of the processors that are online.
fn online() -> Option<Vec<usize>> {
    parse_list(std::fs::read_to_string("/sys/devices/system/cpu/online").ok()?.trim())
}

/// A list of numbers and ranges, as `0-3,8`.
fn parse_list(text: &str) -> Option<Vec<usize>> {
    let mut list = Vec::new();
    for part in text.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (usize, usize) = (first.parse().ok()?, last.parse().ok()?);
        list.extend(first..=last);
    }
    (!list.is_empty()).then_some(list)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_processors() {
        assert_eq!(parse_list("0"), Some(vec![0]));
        assert_eq!(parse_list("0-2,8,10-11"), Some(vec![0, 1, 2, 8, 10, 11]));
        assert_eq!(parse_list(""), None);
        assert_eq!(parse_list("a-b"), None);
    }

    #[test]
    fn every_processor_is_visited() {
        const LONG: Duration = Duration::from_secs(60);
        let mut visitors = Visitors::start().unwrap();
        assert!(visitors.are_there(LONG));
        for _ in 0..100 {
            assert!(visitors.visit(LONG));
        }
    }

    #[test]
    fn a_processor_that_is_not_there_fails() {
        let place =
            Place { processor: 1 << 12, order: AtomicU64::new(NOTHING), answer: AtomicU64::new(NOTHING) };
        place.order.store(END, SeqCst);
        place.wait_for_orders(&current());
        assert_eq!(place.answer.load(SeqCst), FAILED);
    }
}
