//! A rank's calls in a kill test, made and checked until one fails.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use half::bf16;
use peersum::device::Device;
use peersum::dispatch::Route;
use peersum::{Communicator, Error, Graph, SymmetricBuffer};

use super::scenario::{Phase, Scenario};
use super::words::{Place, Word};
use crate::call::Outcome;
use crate::calls::{Calls, Rows, Symmetric, What};
use crate::ranks::say;

/// Odd, so that the last unit is partial; large enough for several units per thread on the
/// emulator.
pub(super) const ELEMENTS: usize = 603;

/// The length of a row with RMSNorm. Short, because a row costs the emulator several barriers.
const HIDDEN: usize = 72;

/// The elements of a call with RMSNorm: two rows, which on the emulator have one block.
const ELEMENTS_OF_ROWS: usize = 2 * HIDDEN;

/// The seed of all data.
const SEED: u64 = 5;

/// Calls of a graph.
const LAYERS: usize = 4;

/// Maximum time that a rank makes calls while it waits for the blow.
pub(super) const PATIENCE: Duration = Duration::from_secs(120);

/// Calls, or launches a graph of calls.
type Launch<'a, D> = dyn Fn(&mut Communicator<D>) -> Result<(), Error> + 'a;

/// The calls of a scenario.
pub(super) fn calls_of<D: Device>(
    communicator: &Communicator<D>,
    scenario: &Scenario,
    symmetric: Option<SymmetricBuffer<bf16, D>>,
) -> Result<Calls<D>> {
    let elements = match scenario.what {
        What::Norm(_) => ELEMENTS_OF_ROWS,
        What::AllReduce | What::Other(_) => ELEMENTS,
    };
    let rows = Rows {
        hidden: HIDDEN,
        // The calls of a graph would add to the same residual one after the other.
        adds: scenario.phase != Phase::GraphReplay,
    };
    let symmetric = symmetric.map(|buffer| Symmetric {
        buffer,
        is_in_place: scenario.route == Route::SymmetricTwoShot,
    });
    Calls::with(communicator, scenario.what, SEED, elements, rows, symmetric)
}

/// Makes and checks `count` calls, or calls until one fails. Returns the error.
pub(super) fn make<D: Device>(
    calls: &Calls<D>,
    communicator: &mut Communicator<D>,
    count: Option<usize>,
) -> Result<Option<Error>> {
    repeat(calls, communicator, count, &|communicator| {
        calls.call(communicator)
    })
}

/// Launches a graph of calls until a launch fails. Returns the error.
pub(super) fn replay<D: Device>(
    calls: &Calls<D>,
    communicator: &mut Communicator<D>,
) -> Result<Option<Error>> {
    // An in-place call would sum its own result.
    let layers = if calls.is_in_place() { 1 } else { LAYERS };
    communicator.capture_begin()?;
    for _ in 0..layers {
        calls.call(communicator)?;
    }
    // SAFETY: `calls`, which is borrowed until the end of this function, owns the arrays; the graph
    // is dropped there.
    let graph: Graph<'static, D> = unsafe { communicator.capture_end()? };
    repeat(calls, communicator, None, &|communicator| {
        graph.launch(communicator)
    })
}

fn repeat<D: Device>(
    calls: &Calls<D>,
    communicator: &mut Communicator<D>,
    count: Option<usize>,
    launch: &Launch<'_, D>,
) -> Result<Option<Error>> {
    let began = Instant::now();
    for done in 0.. {
        if Some(done) == count {
            return Ok(None);
        }
        if done == 2 && count.is_none() {
            say(&Word::At(Place::Calling));
        }
        calls.prepare()?;
        let launched = launch(communicator);
        let was_launched = launched.is_ok();
        let ended = launched.and_then(|()| communicator.synchronize());
        calls.check(match (was_launched, &ended) {
            (true, Ok(())) => Outcome::Succeeded,
            (true, Err(_)) => Outcome::Failed,
            (false, _) => Outcome::Refused,
        })?;
        if let Err(error) = ended {
            check_refusal(calls, communicator, &error, launch)?;
            return Ok(Some(error));
        }
        ensure!(
            began.elapsed() < PATIENCE,
            "nothing has happened for {PATIENCE:?}"
        );
    }
    bail!("no end")
}

/// Every operation after a failure must return the same error and move no data.
fn check_refusal<D: Device>(
    calls: &Calls<D>,
    communicator: &mut Communicator<D>,
    error: &Error,
    launch: &Launch<'_, D>,
) -> Result<()> {
    calls.prepare()?;
    for later in [
        launch(communicator),
        communicator.synchronize(),
        communicator.status(),
    ] {
        let later = later.err().context("a failed communicator said Ok")?;
        ensure!(
            later.to_string() == error.to_string(),
            "first {error}, then {later}"
        );
    }
    calls.check(Outcome::Refused)
}
