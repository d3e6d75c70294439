//! Visits every state that a model can reach, depth first.
//!
//! This is our own code rather than a model checking crate. The graphs have no cycle: every step is
//! progress, and a wait is a step that is not enabled. So a search needs no liveness machinery, and
//! eighty lines do what stateright does with an HTTP server, a thread pool and 80 dependencies.
//! loom and shuttle run real Rust code, but the kernels are CUDA C++, and the memory model of these
//! tools has no store that outlives its thread.
//!
//! A visited state is remembered as a 64-bit hash. With 10 million states the probability that two
//! share a hash, and one stays unexplored, is 3 in a million. The hash folds 128-bit products, as
//! wyhash does; the standard library's SipHash would take most of the time of a search.

use std::collections::HashSet;
use std::fmt;
use std::hash::{BuildHasher, BuildHasherDefault, Hasher};

use crate::machine::Machine;
use crate::program::Violation;
use crate::state::{State, Step};

/// A running hash: the folded product of the value so far and the next 64 bits.
struct Folded(u64);

impl Default for Folded {
    fn default() -> Self {
        Folded(0x9E37_79B9_7F4A_7C15)
    }
}

impl Hasher for Folded {
    fn write(&mut self, bytes: &[u8]) {
        // Whole words apart: a copy of known length is one load.
        let (words, rest) = bytes.as_chunks();
        for &word in words {
            self.write_u64(u64::from_le_bytes(word));
        }
        if !rest.is_empty() {
            let mut word = [0; 8];
            word[..rest.len()].copy_from_slice(rest);
            self.write_u64(u64::from_le_bytes(word));
        }
    }
    fn write_u8(&mut self, byte: u8) {
        self.write_u64(byte.into());
    }
    fn write_usize(&mut self, word: usize) {
        self.write_u64(word as u64);
    }
    fn write_isize(&mut self, word: isize) {
        self.write_u64(word as u64);
    }
    fn write_u64(&mut self, word: u64) {
        // A factor is 0 only by chance. If one is, nothing is lost: the earlier value is in both.
        let left = u128::from(self.0.rotate_left(32) ^ 0xA076_1D64_78BD_642F);
        let product = left * u128::from(self.0 ^ word ^ 0xE703_7ED1_A0B4_28DB);
        self.0 = (product as u64) ^ (product >> 64) as u64 ^ word.rotate_left(17);
    }
    fn finish(&self) -> u64 {
        let mut last = Folded(self.0);
        last.write_u64(0x8EBC_6AF0_9C88_C6E3);
        last.0
    }
}

/// The result of an exploration.
pub(crate) struct Explored {
    pub(crate) states: usize,
    pub(crate) counterexample: Option<Counterexample>,
}

/// A run that breaks a promise: its steps in order, and which promise.
pub(crate) struct Counterexample {
    pub(crate) violation: Violation,
    pub(crate) trace: Vec<String>,
}

impl fmt::Display for Counterexample {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for step in &self.trace {
            writeln!(f, "  {step}")?;
        }
        write!(f, "  => {:?}", self.violation)
    }
}

/// Explores `machine` until a promise is broken or no new state is left.
pub(crate) fn explore(machine: &Machine) -> Explored {
    let hasher = BuildHasherDefault::<Folded>::default();
    let mut seen: HashSet<u64, BuildHasherDefault<Folded>> = HashSet::default();
    // The path to the current state. Each state on it comes with the steps not yet taken from it.
    let mut path: Vec<(State, Vec<Step>)> = Vec::new();
    let mut taken: Vec<Step> = Vec::new();

    let initial = machine.initial();
    seen.insert(hasher.hash_one(initial));
    path.push((initial, machine.steps(&initial)));
    while let Some((state, steps)) = path.last_mut() {
        let Some(step) = steps.pop() else {
            path.pop();
            taken.pop();
            continue;
        };
        let mut next = *state;
        let mut violation = machine.take(&mut next, step).err();
        let mut successors = Vec::new();
        if violation.is_none() {
            if !seen.insert(hasher.hash_one(next)) {
                continue;
            }
            successors = machine.steps(&next);
            if successors.is_empty() {
                violation = machine.check_end(&next).err();
            }
        }
        taken.push(step);
        if let Some(violation) = violation {
            let trace = path
                .iter()
                .zip(&taken)
                .map(|((state, _), &step)| machine.describe(state, step))
                .collect();
            return Explored {
                states: seen.len(),
                counterexample: Some(Counterexample { violation, trace }),
            };
        }
        path.push((next, successors));
    }
    Explored {
        states: seen.len(),
        counterexample: None,
    }
}
