//! The threads of a launch as fibers: each has a stack of its own, and all run by turns on one host
//! thread, that of their stream.
//!
//! A fiber runs until it waits. It then says what for, and the scheduler looks at that without a
//! switch of stacks. A fiber that polls a peer gets a turn in every round. Ranks are host threads
//! or processes that tell each other nothing but through the memory they share: so a launch that
//! cannot go on by itself looks again and again, and lets other threads of the host run meanwhile.

use std::ffi::c_void;
use std::ptr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use corosensei::{Coroutine, CoroutineResult, Yielder};

use crate::launch::{Launch, Running};
use crate::stacks::{Stack, Stacks};

/// Rounds in which no fiber got on, before the host thread sleeps between two rounds. A peer that
/// runs at the same time answers within fewer; one that does not may need this core.
const ROUNDS_BEFORE_NAPS: u32 = 200;

/// A fraction of the ten milliseconds within which a deadline or an abort must be seen, though a
/// fiber looks for one at every sixteenth turn only.
const NAP: Duration = Duration::from_micros(50);

/// What a fiber waits for.
#[derive(Clone, Copy)]
enum Wait {
    /// That the others have had their turns.
    Turn,
    /// That the word is another than `last`.
    Word {
        word: *const AtomicU32,
        last: u32,
    },
    Time(Instant),
}

impl Wait {
    fn is_over(self) -> bool {
        match self {
            Wait::Turn => true,
            // SAFETY: the word is in the memory of the launch, which outlives its fibers.
            Wait::Word { word, last } => unsafe { &*word }.load(Ordering::Acquire) != last,
            Wait::Time(time) => Instant::now() >= time,
        }
    }
}

/// What a fiber hands to the scheduler, and gets from it.
type FiberYielder = Yielder<(), Wait>;

struct Fiber {
    coroutine: Coroutine<(), Wait, (), Stack>,
    wait: Wait,
}

impl Fiber {
    /// Gives the fiber its turn if it need not wait any more. Returns whether it got on: a fiber
    /// that only waits for its next turn polls a peer.
    fn step(&mut self) -> bool {
        if !self.wait.is_over() {
            return false;
        }
        let before = self.wait;
        match self.coroutine.resume(()) {
            CoroutineResult::Yield(wait) => {
                self.wait = wait;
                !matches!((before, wait), (Wait::Turn, Wait::Turn))
            }
            CoroutineResult::Return(()) => true,
        }
    }
}

/// Called by `cpp/runtime.cpp` on a fiber's stack: suspends the fiber until `*word` is another than
/// `last`, or for one round if `word` is null.
unsafe extern "C" fn suspend(fiber: *const c_void, word: *const AtomicU32, last: u32) {
    // SAFETY: what `run` gave to this fiber's thread, which has not ended.
    let yielder = unsafe { &*fiber.cast::<FiberYielder>() };
    yielder.suspend(match word.is_null() {
        true => Wait::Turn,
        false => Wait::Word { word, last },
    });
}

/// Runs one launch and returns when all its threads have ended. Its stacks have been reserved.
pub(crate) fn run(launch: &Launch, seed: u32, stacks: &Stacks) {
    let running = Running::new(launch, seed);
    let began = Instant::now();
    let fiber = |(index, stack)| {
        let shared = (&raw const running).cast::<Running<'static>>();
        let body = move |yielder: &FiberYielder, ()| {
            // SAFETY: `running` outlives its fibers, which end below; the yielder is this fiber's
            // own and lives until it ends; all fibers run on this host thread.
            unsafe { (*shared).run_thread(index, suspend, ptr::from_ref(yielder).cast()) };
        };
        let delay = running.delay_of(index);
        Fiber {
            coroutine: Coroutine::with_stack(stack, body),
            wait: match delay.is_zero() {
                true => Wait::Turn,
                false => Wait::Time(began + delay),
            },
        }
    };
    let own_stacks = stacks.take(launch.thread_count());
    let mut fibers: Vec<Fiber> = (0..).zip(own_stacks).map(fiber).collect();
    let mut order = Order(seed | 1);
    let mut idle_rounds = 0;
    while !fibers.is_empty() {
        let mut got_on = false;
        for index in order.of(fibers.len()) {
            got_on |= fibers[index].step();
        }
        let ended = fibers.extract_if(.., |fiber| fiber.coroutine.done());
        stacks.give_back(ended.map(|fiber| fiber.coroutine.into_stack()));
        idle_rounds = if got_on { 0 } else { idle_rounds + 1 };
        let_others_run(idle_rounds);
    }
}

/// After so many rounds in which no fiber got on.
fn let_others_run(idle_rounds: u32) {
    match idle_rounds {
        0 => {}
        1..ROUNDS_BEFORE_NAPS => thread::yield_now(),
        _ => thread::sleep(NAP),
    }
}

/// Pseudo-random orders, so that the threads of a launch meet in many ways.
struct Order(u32);

impl Order {
    fn random(&mut self) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 17;
        self.0 ^= self.0 << 5;
        self.0 as usize
    }

    /// The numbers below `count`, each once: every so many-th, from anywhere.
    fn of(&mut self, count: usize) -> impl Iterator<Item = usize> + use<> {
        let first = self.random() % count;
        let mut step = 1 + self.random() % count;
        while greatest_common_divisor(step, count) != 1 {
            step = 1 + self.random() % count;
        }
        (0..count).scan(first, move |next, _| {
            let index = *next;
            *next = (index + step) % count;
            Some(index)
        })
    }
}

fn greatest_common_divisor(a: usize, b: usize) -> usize {
    if b == 0 {
        a
    } else {
        greatest_common_divisor(b, a % b)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_round_visits_every_fiber_once_and_rounds_differ() {
        let mut order = Order(7);
        for count in [1, 2, 3, 8, 18, 1000] {
            let rounds: Vec<Vec<usize>> = (0..4).map(|_| order.of(count).collect()).collect();
            for round in &rounds {
                let mut sorted = round.clone();
                sorted.sort_unstable();
                assert!(sorted.into_iter().eq(0..count), "{round:?}");
            }
            let is_same = rounds.iter().all(|round| *round == rounds[0]);
            assert!(!is_same || count < 8, "{rounds:?}");
        }
    }
}
