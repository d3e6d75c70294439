//! A group that is measured: its ranks, with their communicators and memory.

use std::time::Duration;

use anyhow::{Context, Result};
use half::bf16;
use peersum::device::{Device, MemorySharing};
use peersum::dispatch::Placement;
use peersum::loader::LoadPolicy;
use peersum::{Communicator, CommunicatorBuilder, Error, Output, Rendezvous, SymmetricBuffer};

use super::norm_arrays::NormArrays;
use super::timing::{Stopwatch, Timed};
use crate::data::{self, Content, Key};
use crate::machine::{DeviceKind, DeviceOf};
use crate::memory::{Guarded, write_repeated};
use crate::ranks::{PATIENCE, run_threads};

/// The seed of all arrays.
pub(super) const DATA_SEED: u64 = 7;

/// Settings of a group that is measured.
#[derive(Debug, Clone, Default)]
pub(crate) struct GroupSettings {
    pub(crate) world_size: u32,
    /// The largest message, in bytes.
    pub(crate) largest_bytes: usize,
    /// Whether there are calls with RMSNorm.
    pub(crate) normalises: bool,
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
    pub(super) memory: Memory<D>,
    pub(crate) stopwatch: Stopwatch<'a, D>,
    /// Calls whose results were compared.
    pub(super) checks: u32,
}

/// One allocation for each place a message can be in, used for all sizes and types.
pub(super) struct Memory<D: Device> {
    pub(super) input: Guarded<D>,
    pub(super) output: Guarded<D>,
    // Held for its memory; used by its address.
    _symmetric: SymmetricBuffer<f32, D>,
    symmetric_address: u64,
    pub(super) norm: NormArrays<D>,
    pub(super) bytes: usize,
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
        body(&mut Rank::new(communicator, stopwatch, settings)?)
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
        settings: &GroupSettings,
    ) -> Result<Self> {
        let device = &stopwatch.device;
        let bytes = settings.largest_bytes.next_multiple_of(16);
        let mut symmetric = communicator.symmetric_alloc::<f32>(bytes / size_of::<f32>())?;
        let symmetric_address = symmetric
            .as_view_mut()
            .with_output(device.stream(), Ok::<_, Error>)?;
        let memory = Memory {
            input: Guarded::new(device, bytes, MemorySharing::Auto)?,
            output: Guarded::new(device, bytes, MemorySharing::Auto)?,
            _symmetric: symmetric,
            symmetric_address,
            norm: NormArrays::new(device, if settings.normalises { bytes } else { 64 })?,
            bytes,
        };
        // The same in every run. A check writes other data.
        let key = Key::of(DATA_SEED, stopwatch.peers.rank());
        let pattern: Vec<bf16> = data::input(Content::Ordinary, key, 1 << 15);
        for placement in [Placement::Ordinary, Placement::Symmetric] {
            // SAFETY: both places have so many bytes.
            unsafe { write_repeated(device, memory.input_address(placement), bytes, &pattern)? };
        }
        Ok(Rank {
            memory,
            communicator,
            stopwatch,
            checks: 0,
        })
    }
}

impl<D: Device> Memory<D> {
    pub(super) fn input_address(&self, placement: Placement) -> u64 {
        match placement {
            Placement::Ordinary => self.input.base(),
            Placement::Symmetric | Placement::SymmetricInPlace => self.symmetric_address,
        }
    }
}
