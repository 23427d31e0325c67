//! In which order threads are tried for work that any of them can do.
//!
//! To stop a thread ends the system call that it sleeps in. The kernel starts most calls again by itself, and the program
//! notices nothing. Some return EINTR whatever the signal handlers say (signal(7), "Interruption of system calls and library
//! functions by stop signals", and the kernel's sources), and a program may take that for an error. Threads in such
//! calls come last.

use livepatch_process::{Asleep, Process, Seized, Tid};
use std::collections::VecDeque;

/// Calls that the kernel starts again after a stop, with what is left of their time.
const RESTARTED: &[u64] = &[
    7,   // poll
    23,  // select
    34,  // pause
    35,  // nanosleep
    61,  // wait4
    130, // rt_sigsuspend
    202, // futex
    219, // restart_syscall: one of these after a stop
    230, // clock_nanosleep
    247, // waitid
    270, // pselect6
    271, // ppoll
];

/// Calls that end with EINTR after a stop; those on sockets do so if a timeout was set for the socket.
const BROKEN_OFF: &[u64] = &[
    42,  // connect
    43,  // accept
    44,  // sendto
    45,  // recvfrom
    46,  // sendmsg
    47,  // recvmsg
    65,  // semop
    128, // rt_sigtimedwait
    208, // io_getevents
    220, // semtimedop
    232, // epoll_wait
    281, // epoll_pwait
    288, // accept4
    299, // recvmmsg
    307, // sendmmsg
    333, // io_pgetevents
    426, // io_uring_enter
    441, // epoll_pwait2
];

/// So many threads are compared before the first one is tried.
const COMPARED: usize = 16;

/// Each thread once: first those that notice nothing when they are stopped, then those that run or wait for something else, last
/// those that notice. Of the first kind the one that did the work before comes first, so that no other is disturbed, and
/// then those that ran the fewest times: they are the least likely to be wanted meanwhile. A thread is looked at when its turn
/// may have come, so the first one is found fast among many.
pub(crate) struct Quietest {
    process: Process,
    worker: Option<Tid>,
    unseen: std::vec::IntoIter<Tid>,
    /// By descending number of times that they ran.
    first: Vec<(u64, Tid)>,
    second: VecDeque<Tid>,
    last: VecDeque<Tid>,
}

/// Whether a sleeping thread notices nothing when it is stopped.
pub(crate) fn notices_nothing(asleep: &Asleep) -> bool {
    asleep.syscall.is_some_and(|call| RESTARTED.contains(&call))
}

impl Quietest {
    pub(crate) fn of(seized: &Seized) -> Self {
        let worker = seized.worker();
        let mut tids = seized.threads();
        tids.retain(|tid| Some(*tid) != worker);
        Self {
            process: seized.process().clone(),
            worker,
            unseen: tids.into_iter(),
            first: Vec::new(),
            second: VecDeque::new(),
            last: VecDeque::new(),
        }
    }

    /// Looks at a thread and sorts it.
    fn sort(&mut self, tid: Tid) {
        let asleep = self.process.asleep(tid);
        match asleep.and_then(|asleep| Some((asleep.syscall?, asleep.times()))) {
            Some((call, times)) if RESTARTED.contains(&call) => self.first.push((times, tid)),
            Some((call, _)) if BROKEN_OFF.contains(&call) => self.last.push_back(tid),
            _ => self.second.push_back(tid),
        }
    }

    /// The next thread that notices nothing.
    fn next_of_first(&mut self) -> Option<Tid> {
        if let Some(worker) = self.worker.take() {
            self.sort(worker);
        } else {
            while self.first.len() < COMPARED
                && let Some(tid) = self.unseen.next()
            {
                self.sort(tid);
            }
            self.first.sort_unstable_by(|a, b| b.cmp(a));
        }
        self.first.pop().map(|(_, tid)| tid)
    }
}

impl Iterator for Quietest {
    type Item = Tid;

    fn next(&mut self) -> Option<Tid> {
        let first = self.next_of_first().or_else(|| self.next_of_first());
        first.or_else(|| self.second.pop_front()).or_else(|| self.last.pop_front())
    }
}
