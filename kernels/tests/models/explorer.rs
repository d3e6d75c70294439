//! Visits every state that a model can reach, depth first.
//!
//! Own code rather than a model checking crate: these graphs have no cycle (every step is progress; a wait is a step that is not enabled), so a
//! search needs no liveness machinery, and eighty lines do what stateright does with an HTTP server, a thread pool and 80 crates behind it. loom and shuttle
//! run real Rust code, but the kernels are CUDA C++, and their memory model knows no store that outlives its thread.
//!
//! A visited state is remembered as 64 bits of SipHash: with 10 million states the chance that two share a value, and one goes unexplored, is 3 in a million.

use std::collections::HashSet;
use std::fmt;
use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};

use crate::machine::{Machine, State, Step, Violation};

/// What an exploration found.
pub(crate) struct Explored {
    pub(crate) states: usize,
    pub(crate) counterexample: Option<Counterexample>,
}

/// A run that breaks a promise: its steps in order, and the promise.
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

/// Explores `machine` until a promise is broken or nothing new is left.
pub(crate) fn explore(machine: &Machine) -> Explored {
    let hasher = BuildHasherDefault::<DefaultHasher>::default();
    let mut seen: HashSet<u64> = HashSet::new();
    // The path to the state that is being looked at: each state on it with the steps not yet taken from there.
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
