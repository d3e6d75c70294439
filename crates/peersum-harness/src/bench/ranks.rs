//! A group that is measured: what each of its ranks measures with.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use peersum::device::{Device, MemorySharing};
use peersum::dispatch::{Placement, Plan};
use peersum::loader::LoadPolicy;
use peersum::{
    Communicator, CommunicatorBuilder, Element, Error, Output, Rendezvous, SymmetricBuffer,
    reference,
};

use super::timing::{Launch, Method, Stopwatch, Timed, Times};
use crate::data::{self, Content, Key, TestElement, bytes_of};
use crate::machine::{DeviceKind, DeviceOf};
use crate::memory::{POISON, difference, lend};
use crate::ranks::{PATIENCE, run_threads};

/// The pattern that inputs repeat, in bytes: making more random numbers than this would take longer
/// than measuring.
const PATTERN_BYTES: usize = 1 << 16;

/// The seed of the inputs.
pub(super) const INPUT_SEED: u64 = 7;

/// Settings of a group that is measured.
#[derive(Debug, Clone)]
pub(crate) struct GroupSettings {
    pub(crate) world_size: u32,
    /// The largest message, in bytes.
    pub(crate) largest_bytes: usize,
    pub(crate) pdl: bool,
    pub(crate) load_policy: LoadPolicy,
    /// The largest grid; `None` leaves it to the dispatch table.
    pub(crate) max_blocks: Option<u32>,
    /// Tables instead of the shipped ones.
    pub(crate) tables: Option<String>,
}

/// One rank with its communicator and memory.
pub(crate) struct Rank<'a, D: Device> {
    // Dropped first: its teardown waits for the stream, which uses what follows.
    pub(crate) communicator: Communicator<D>,
    memory: Memory<D>,
    pub(crate) stopwatch: Stopwatch<'a, D>,
    /// Calls whose results were compared.
    checks: u32,
}

/// One allocation for each place a message can be in, used for all sizes and types.
struct Memory<D: Device> {
    input: D::Allocation,
    output: D::Allocation,
    // Held for its memory; used by its address.
    _symmetric: SymmetricBuffer<f32, D>,
    symmetric_address: u64,
    bytes: usize,
}

/// Runs `body` on a thread for each rank of a group, with a rendezvous of the group. All ranks
/// compute the same result from the times of all.
///
/// # Errors
/// As [`run_threads`].
pub(crate) fn run_ranks<M: Timed, R: Send>(
    machine: &M,
    world_size: u32,
    body: impl Fn(Stopwatch<'_, DeviceOf<M>>, Rendezvous) -> Result<R> + Sync,
) -> Result<R> {
    let ranks = run_threads(world_size, 1, |mut member| {
        body(machine.stopwatch(member.peers)?, member.next_group()?)
    })?;
    ranks.into_iter().next().context("a group without ranks")
}

/// As [`run_ranks`], with a communicator and memory for each rank.
///
/// # Errors
/// As [`run_ranks`]; building the group is part of it.
pub(crate) fn run_group<M: Timed, R: Send>(
    machine: &M,
    settings: &GroupSettings,
    body: impl Fn(&mut Rank<'_, DeviceOf<M>>) -> Result<R> + Sync,
) -> Result<R> {
    run_ranks(machine, settings.world_size, |stopwatch, rendezvous| {
        let (load_policy, pdl) = (&settings.load_policy, settings.pdl);
        let mut builder = builder(machine.kind(), rendezvous, load_policy, pdl)
            .max_bytes(settings.largest_bytes.max(1 << 20));
        if let Some(max_blocks) = settings.max_blocks {
            builder = builder.max_blocks(max_blocks);
        }
        if let Some(tables) = &settings.tables {
            builder = builder.dispatch_tables(tables);
        }
        let communicator = builder.build(stopwatch.device.stream())?;
        body(&mut Rank::new(
            communicator,
            stopwatch,
            settings.largest_bytes,
        )?)
    })
}

/// What every communicator that is measured is built with.
pub(crate) fn builder(
    device: DeviceKind,
    rendezvous: Rendezvous,
    load_policy: &LoadPolicy,
    pdl: bool,
) -> CommunicatorBuilder {
    // Many times what any call takes.
    let timeout = match device {
        // What a candidate costs that hangs.
        DeviceKind::Cuda => Duration::from_secs(2),
        // Its threads share few cores with all else that runs.
        DeviceKind::Emulator => Duration::from_secs(60),
    };
    let builder = Communicator::builder()
        .rendezvous(rendezvous)
        .load_policy(load_policy.clone())
        .pdl(pdl)
        .timeout(timeout)
        .setup_timeout(PATIENCE);
    // SAFETY: only a stopwatch captures. It launches the graph on the communicator's stream, one
    // launch after the other, waits for each and drops the graph, while communicator and buffers
    // live.
    unsafe { builder.allow_outside_capture() }
}

impl<'a, D: Device> Rank<'a, D> {
    fn new(
        mut communicator: Communicator<D>,
        stopwatch: Stopwatch<'a, D>,
        largest_bytes: usize,
    ) -> Result<Self> {
        let device = &stopwatch.device;
        let bytes = largest_bytes.next_multiple_of(16);
        let mut symmetric = communicator.symmetric_alloc::<f32>(bytes / size_of::<f32>())?;
        let symmetric_address = symmetric
            .as_view_mut()
            .with_output(device.stream(), Ok::<_, Error>)?;
        Ok(Rank {
            memory: Memory {
                input: device.allocate_shared(bytes, MemorySharing::Auto)?,
                output: device.allocate_shared(bytes, MemorySharing::Auto)?,
                _symmetric: symmetric,
                symmetric_address,
                bytes,
            },
            communicator,
            stopwatch,
            checks: 0,
        })
    }

    /// Fills inputs with values of a type, the same in every run.
    pub(crate) fn fill<T: TestElement>(&mut self) -> Result<()> {
        let (device, bytes) = (&self.stopwatch.device, self.memory.bytes);
        let key = Key::of(INPUT_SEED, self.stopwatch.peers.rank());
        let pattern: Vec<T> = pattern(key, bytes);
        for placement in [Placement::Ordinary, Placement::Symmetric] {
            // SAFETY: both places have so many bytes.
            unsafe { write_repeated(device, self.input_address(placement), bytes, &pattern)? };
        }
        Ok(())
    }

    /// The largest message, in bytes.
    pub(super) fn bytes(&self) -> usize {
        self.memory.bytes
    }

    pub(super) fn input_address(&self, placement: Placement) -> u64 {
        match placement {
            Placement::Ordinary => self.stopwatch.device.allocation_address(&self.memory.input),
            Placement::Symmetric | Placement::SymmetricInPlace => self.memory.symmetric_address,
        }
    }

    /// Where the output of a call is that is not in place.
    pub(super) fn output_address(&self) -> u64 {
        let device = &self.stopwatch.device;
        device.allocation_address(&self.memory.output)
    }

    /// Fills the output with what no call writes.
    pub(super) fn poison_output(&self) -> Result<()> {
        let (device, words) = (&self.stopwatch.device, self.memory.bytes / 4);
        // SAFETY: the output has so many words.
        unsafe {
            device.fill(
                self.output_address(),
                u32::from_ne_bytes([POISON; 4]),
                words,
            )?
        };
        Ok(())
    }

    /// Makes one call on a poisoned output, with data that no other call has, and compares every
    /// bit with the reference. The input holds other data after it.
    ///
    /// # Errors
    /// The result is wrong, or the call failed.
    pub(crate) fn check<T: TestElement>(
        &mut self,
        placement: Placement,
        bytes: usize,
        plan: Option<Plan>,
    ) -> Result<()> {
        self.checks += 1;
        let bytes = bytes.min(self.memory.bytes);
        let (own, world_size) = (self.communicator.rank(), self.communicator.world_size());
        let patterns: Vec<Vec<T>> = (0..world_size)
            .map(|rank| pattern(Key::new(INPUT_SEED, self.checks, 0, rank), bytes))
            .collect();
        let slices: Vec<&[T]> = patterns.iter().map(Vec::as_slice).collect();
        let expected = reference::all_reduce(&slices);
        let (device, input) = (&self.stopwatch.device, self.input_address(placement));
        // SAFETY: the input has at least as many bytes.
        unsafe { write_repeated(device, input, bytes, slices[own as usize])? };
        self.poison_output()?;
        let once = Method {
            launch: Launch::Eager,
            calls: 1,
            warm_up: 0,
            replays: 1,
        };
        self.time::<T>(placement, bytes, plan, once)?;
        let output = match placement {
            Placement::SymmetricInPlace => input,
            _ => self.output_address(),
        };
        let mut found = vec![0; bytes / size_of::<T>() * size_of::<T>()];
        // SAFETY: as above.
        unsafe { self.stopwatch.device.read(output, &mut found)? };
        match difference_from_repeated(&found, &expected) {
            Some(wrong) => bail!("{placement:?} of {bytes} bytes, {plan:?}: {wrong}"),
            None => Ok(()),
        }
    }

    /// Times calls with `plan`, `None` for what the table says.
    pub(crate) fn time<T: Element>(
        &mut self,
        placement: Placement,
        bytes: usize,
        plan: Option<Plan>,
        method: Method,
    ) -> Result<Times> {
        let len = bytes.min(self.memory.bytes) / size_of::<T>();
        let (input, output) = (self.input_address(placement), self.output_address());
        let communicator = &mut self.communicator;
        let (stopwatch, device) = (&self.stopwatch, &self.stopwatch.device);
        communicator.force_plan(plan)?;
        // SAFETY: each place has at least as many bytes, aligned for every type, and outlives the
        // wait below; the symmetric buffer itself is not used meanwhile.
        let times = unsafe {
            lend::<T, D, _, _>(device, input, len, |input| {
                lend::<T, D, _, _>(device, output, len, |output| {
                    stopwatch.time(method, |_| {
                        Ok(match placement {
                            Placement::SymmetricInPlace => communicator.all_reduce_in_place(input),
                            _ => communicator.all_reduce(&*input, output),
                        }?)
                    })
                })
            })
        }?;
        communicator.synchronize()?;
        communicator.force_plan(None)?;
        Ok(times)
    }

    /// As [`Rank::time`] for ordinary input, without what a call adds to the launch of its kernel.
    /// `None` if the call takes several launches.
    pub(crate) fn time_bare<T: Element>(
        &mut self,
        bytes: usize,
        method: Method,
    ) -> Result<Option<Times>> {
        let (input, output) = (
            self.input_address(Placement::Ordinary),
            self.output_address(),
        );
        let len = bytes.min(self.memory.bytes) / size_of::<T>();
        // SAFETY: both arrays hold so many elements and outlive the wait below; all ranks measure
        // the same, so they launch equally often.
        let times = unsafe {
            let launch = self.communicator.bare_launch::<T>(input, output, len);
            launch.map(|launch| self.stopwatch.time(method, |_| Ok(launch()?)))
        };
        let times = times.transpose()?;
        self.communicator.synchronize()?;
        Ok(times)
    }
}

/// What memory of `bytes` bytes repeats: ordinary values of a key.
pub(super) fn pattern<T: TestElement>(key: Key, bytes: usize) -> Vec<T> {
    let elements = PATTERN_BYTES.min(bytes) / size_of::<T>();
    data::input(Content::Ordinary, key, elements)
}

/// Says which element first differs from repetitions of a pattern, if any.
fn difference_from_repeated<T: Element>(found: &[u8], pattern: &[T]) -> Option<String> {
    let pattern = bytes_of(pattern);
    let parts = found.chunks(pattern.len()).enumerate();
    let mut wrong = parts.filter_map(|(index, part)| {
        let wrong = difference::<T>(part, &pattern[..part.len()], "output")?;
        Some(format!("repetition {index} of its pattern, {wrong}"))
    });
    wrong.next()
}

/// Fills memory with repetitions of a pattern.
///
/// # Safety
/// `address` is memory of the device with at least `bytes` bytes.
pub(super) unsafe fn write_repeated<T: Element, D: Device>(
    device: &D,
    address: u64,
    bytes: usize,
    pattern: &[T],
) -> Result<()> {
    let pattern = bytes_of(pattern);
    for at in (0..bytes).step_by(pattern.len()) {
        let part = &pattern[..pattern.len().min(bytes - at)];
        // SAFETY: the caller's promise.
        unsafe { device.write(address + at as u64, part)? };
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use half::bf16;

    use super::*;
    use crate::machine::Emulators;

    #[test]
    fn a_checked_call_is_right_whatever_was_called_before_it() {
        let settings = GroupSettings {
            world_size: 3,
            largest_bytes: PATTERN_BYTES + 1024,
            pdl: true,
            load_policy: LoadPolicy::default(),
            max_blocks: None,
            tables: None,
        };
        run_group(&Emulators::default(), &settings, |rank| {
            for placement in Placement::ALL {
                for bytes in [16, 1024, settings.largest_bytes] {
                    rank.check::<bf16>(placement, bytes, None)?;
                    rank.check::<f32>(placement, bytes, None)?;
                }
            }
            Ok(())
        })
        .unwrap();
    }

    #[test]
    fn a_wrong_bit_in_any_repetition_is_found() {
        let pattern: Vec<bf16> = (0..8).map(bf16::from_bits).collect();
        let mut found = bytes_of(&pattern).repeat(3);
        found.truncate(40);
        assert_eq!(difference_from_repeated(&found, &pattern), None);
        found[38] ^= 1;
        let wrong = difference_from_repeated(&found, &pattern).unwrap();
        assert!(
            wrong.starts_with("repetition 2 of its pattern, output, element 3"),
            "{wrong}"
        );
    }
}
