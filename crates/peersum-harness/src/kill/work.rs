//! A rank's arrays in a kill test, the calls that use them, and what they must hold.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use half::bf16;
use peersum::device::Device;
use peersum::dispatch::Route;
use peersum::{Communicator, Error, Graph, Output, SymmetricBuffer};

use super::scenario::{Phase, Scenario};
use super::words::{Place, Word};
use crate::arrays::Arrays;
use crate::collective::CollectiveCall;
use crate::data::{Content, bytes_of};
use crate::memory::{POISON, elements_of, lend};
use crate::norm_sides::{NAN, NormKind, Outcome, Sides};
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
type Launch<'a, D> = dyn Fn(&mut Work<D>, &mut Communicator<D>) -> Result<(), Error> + 'a;

/// A rank's arrays.
pub(super) struct Work<D: Device> {
    arrays: Arrays<bf16, D>,
    route: Route,
    symmetric: Option<SymmetricBuffer<bf16, D>>,
    /// Of calls with RMSNorm.
    sides: Option<Sides<D>>,
    /// Of calls that are no all-reduces.
    collective: Option<CollectiveCall<D>>,
    /// What the output must hold after a call.
    expected: Vec<bf16>,
    /// Whether a test asked for a wrong result.
    corrupts: bool,
}

impl<D: Device> Work<D> {
    pub(super) fn new(
        communicator: &Communicator<D>,
        scenario: &Scenario,
        symmetric: Option<SymmetricBuffer<bf16, D>>,
    ) -> Result<Self> {
        let elements = match scenario.normalised {
            Some(_) => ELEMENTS_OF_ROWS,
            None => ELEMENTS,
        };
        let arrays = Arrays::new(communicator, SEED, elements, Content::Ordinary)?;
        let mut work = Work {
            expected: arrays.expected.clone(),
            arrays,
            route: scenario.route,
            symmetric,
            sides: None,
            collective: match scenario.collective {
                Some(kind) => Some(CollectiveCall::new(communicator, kind, SEED, ELEMENTS)?),
                None => None,
            },
            corrupts: false,
        };
        if let Some(output) = scenario.normalised {
            let kind = NormKind {
                seed: SEED,
                hidden: HIDDEN,
                // The calls of a graph would add to the same residual one after the other.
                adds: scenario.phase != Phase::GraphReplay,
                output,
            };
            let Arrays { device, .. } = &work.arrays;
            let (sides, output) = Sides::new(communicator, device, &work.expected, kind)?;
            (work.sides, work.expected) = (Some(sides), output);
        }
        Ok(work)
    }

    /// Makes results wrong before they are checked, for a test.
    pub(super) fn corrupt(&mut self) {
        self.corrupts = true;
        if let Some(collective) = &mut self.collective {
            collective.corrupts = true;
        }
    }

    /// Whether the result of a call replaces its input.
    fn is_in_place(&self) -> bool {
        let has_fp8 = self.sides.as_ref().is_some_and(Sides::is_in_place);
        self.route == Route::SymmetricTwoShot || has_fp8
    }

    fn symmetric_address(&mut self) -> Result<Option<u64>, Error> {
        let stream = self.arrays.device.stream();
        let view = self.symmetric.as_mut().map(SymmetricBuffer::as_view_mut);
        view.map(|mut view| view.with_output(stream, Ok))
            .transpose()
    }

    /// Writes the input again if a call has replaced it, and poisons the output.
    fn prepare(&mut self) -> Result<()> {
        if let Some(collective) = &self.collective {
            return collective.prepare();
        }
        self.arrays.output.poison(&self.arrays.device)?;
        if let Some(address) = self.symmetric_address()? {
            let own = bytes_of(&self.arrays.own);
            // SAFETY: the symmetric buffer has at least as many elements as `own`.
            unsafe { self.arrays.device.write(address, own)? };
        } else if self.is_in_place() {
            self.arrays
                .output
                .write(&self.arrays.device, &self.arrays.own)?;
        }
        match &self.sides {
            Some(sides) => sides.prepare(&self.arrays.device),
            None => Ok(()),
        }
    }

    fn call(&mut self, communicator: &mut Communicator<D>) -> Result<(), Error> {
        if let Some(collective) = &self.collective {
            return collective.call(communicator);
        }
        if self.sides.is_some() {
            return self.call_with_norm(communicator);
        }
        let Arrays { device, output, .. } = &self.arrays;
        match (self.route, &mut self.symmetric) {
            (Route::SymmetricTwoShot, Some(symmetric)) => {
                communicator.all_reduce_in_place(&mut symmetric.as_view_mut())
            }
            (Route::SymmetricOneShot, Some(symmetric)) => output
                .with::<bf16, _, _>(device, |output| {
                    communicator.all_reduce(&**symmetric, output)
                }),
            _ => self.arrays.call(communicator),
        }
    }

    fn call_with_norm(&mut self, communicator: &mut Communicator<D>) -> Result<(), Error> {
        let symmetric = self.symmetric_address()?;
        let Arrays {
            device,
            input,
            output,
            own,
            ..
        } = &self.arrays;
        let Some(sides) = &self.sides else {
            return Ok(());
        };
        let Some(address) = symmetric else {
            if sides.is_in_place() {
                return output.with::<bf16, _, _>(device, |output| {
                    sides.call(device, communicator, None, output)
                });
            }
            return input.with::<bf16, _, _>(device, |input| {
                output.with::<bf16, _, _>(device, |output| {
                    sides.call(device, communicator, Some(&*input), output)
                })
            });
        };
        // SAFETY: the symmetric buffer has at least as many elements, and `self` keeps it until
        // its calls have ended.
        unsafe {
            lend::<bf16, D, _, _>(device, address, own.len(), |buffer| match self.route {
                Route::SymmetricTwoShot => sides.call(device, communicator, None, buffer),
                _ => output.with::<bf16, _, _>(device, |output| {
                    sides.call(device, communicator, Some(&*buffer), output)
                }),
            })
        }
    }

    /// The bits of the array that the call writes.
    fn result(&mut self) -> Result<Vec<u16>> {
        let values: Vec<bf16> = match self.symmetric_address()? {
            Some(address) if self.route == Route::SymmetricTwoShot => {
                let mut bytes = vec![0; size_of_val(&self.arrays.own[..])];
                // SAFETY: the symmetric buffer has at least so many elements.
                unsafe { self.arrays.device.read(address, &mut bytes)? };
                elements_of(&bytes)
            }
            _ => {
                let (values, intact) = self.arrays.output.read(&self.arrays.device)?;
                ensure!(intact, "memory beside the output was written");
                values
            }
        };
        let mut bits: Vec<u16> = values.into_iter().map(bf16::to_bits).collect();
        if self.corrupts {
            let middle = bits.len() / 2;
            bits[middle] ^= 1;
        }
        Ok(bits)
    }

    /// What the array of the result held before the call.
    fn untouched(&self, index: usize) -> u16 {
        match self.is_in_place() {
            true => self.arrays.own[index].to_bits(),
            false => u16::from_ne_bytes([POISON; 2]),
        }
    }

    /// Checks the result: right if the calls succeeded, right, NaN or ones if they failed, the old
    /// contents if nothing was launched.
    fn check(&mut self, outcome: Outcome) -> Result<()> {
        if let Some(collective) = &self.collective {
            return collective.check(outcome);
        }
        for (index, bits) in self.result()?.into_iter().enumerate() {
            let expected = self.expected[index].to_bits();
            let is_right = match outcome {
                Outcome::Succeeded => bits == expected,
                Outcome::Failed => bits == expected || bits == NAN,
                Outcome::Refused => bits == self.untouched(index),
            };
            ensure!(
                is_right,
                "element {index} is {bits:#06x}, the reference {expected:#06x} ({outcome:?})"
            );
        }
        match &self.sides {
            Some(sides) => sides.check(&self.arrays.device, outcome),
            None => Ok(()),
        }
    }

    /// Makes and checks `count` calls, or calls until one fails. Returns the error.
    pub(super) fn calls(
        &mut self,
        communicator: &mut Communicator<D>,
        count: Option<usize>,
    ) -> Result<Option<Error>> {
        let call = |work: &mut Self, communicator: &mut Communicator<D>| work.call(communicator);
        self.repeat(communicator, count, &call)
    }

    /// Launches a graph of calls until a launch fails. Returns the error.
    pub(super) fn replays(&mut self, communicator: &mut Communicator<D>) -> Result<Option<Error>> {
        // An in-place call would sum its own result.
        let layers = if self.is_in_place() { 1 } else { LAYERS };
        communicator.capture_begin()?;
        for _ in 0..layers {
            self.call(communicator)?;
        }
        // SAFETY: the arrays live as long as `self`, the graph until the end of this function.
        let graph: Graph<'static, D> = unsafe { communicator.capture_end()? };
        let launch = |_: &mut Self, communicator: &mut Communicator<D>| graph.launch(communicator);
        self.repeat(communicator, None, &launch)
    }

    fn repeat(
        &mut self,
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
            self.prepare()?;
            let launched = launch(self, communicator);
            let was_launched = launched.is_ok();
            let ended = launched.and_then(|()| communicator.synchronize());
            self.check(match (was_launched, &ended) {
                (true, Ok(())) => Outcome::Succeeded,
                (true, Err(_)) => Outcome::Failed,
                (false, _) => Outcome::Refused,
            })?;
            if let Err(error) = ended {
                self.check_refusal(communicator, &error, launch)?;
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
    fn check_refusal(
        &mut self,
        communicator: &mut Communicator<D>,
        error: &Error,
        launch: &Launch<'_, D>,
    ) -> Result<()> {
        self.prepare()?;
        for later in [
            launch(self, communicator),
            communicator.synchronize(),
            communicator.status(),
        ] {
            let later = later.err().context("a failed communicator said Ok")?;
            ensure!(
                later.to_string() == error.to_string(),
                "first {error}, then {later}"
            );
        }
        self.check(Outcome::Refused)
    }
}
