//! Calls above the custom range on real GPUs: NCCL itself, in order with peersum's kernels on one
//! stream, eager and in a graph. One process a rank.
//!
//! The elements are whole numbers ([`Content::Whole`]), so that NCCL's order of adding gives the
//! reference's bits too.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use peersum::cuda::Cuda;
use peersum::device::DeviceError;
use peersum::loader::LoadPolicy;
use peersum::nccl::Nccl;
use peersum::{CallPath, Communicator, CommunicatorBuilder, Error, Rendezvous};
use peersum_artifact::Dtype;

use crate::call::SumCall;
use crate::calls::{Calls, What};
use crate::data::{Content, Key};
use crate::machine::{Gpus, Machine};
use crate::ranks::{ChildProcess, RankArgs, meeting_directory, rank_command};

/// The custom range of these communicators; what is larger goes to NCCL.
const MAX_BYTES: usize = 1 << 20;
/// Message sizes on either side of it.
const BYTES: [usize; 5] = [
    4096,
    MAX_BYTES,
    MAX_BYTES + 16,
    3 * MAX_BYTES + 4,
    8 * MAX_BYTES,
];
/// How often a graph of one call of each size is launched.
const REPLAYS: usize = 3;

/// Flags of `above-range`.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct AboveRangeArgs {
    /// Ranks, each a process with a GPU of its own [default: the GPUs that there are, at most 8]
    #[arg(long)]
    world_size: Option<u32>,
    /// The seed of all inputs.
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

/// Runs all cases.
///
/// # Errors
/// There are fewer than two GPUs, there is no NCCL, a result is wrong, or a call took another path
/// than its size requires.
pub(crate) fn run(args: &AboveRangeArgs) -> Result<()> {
    let gpus = Gpus::count()?;
    let world_size = args.world_size.unwrap_or(gpus.min(8));
    ensure!(
        (2..=gpus).contains(&world_size),
        "this test gives every rank its own GPU: {world_size} ranks, and {gpus} GPUs are here"
    );
    let directory = meeting_directory("above-range")?;
    let ranks = (0..world_size).map(|rank| {
        let mut command = rank_command("above-range-rank", rank, &(world_size, args.seed))?;
        ChildProcess::spawn(command.arg("--directory").arg(directory.path()))
    });
    // Start all of them before waiting for the first.
    let ranks: Vec<ChildProcess> = ranks.collect::<Result<_>>()?;
    let mut failed = Vec::new();
    for (rank, mut process) in ranks.into_iter().enumerate() {
        let status = process.wait()?;
        if !status.success() {
            failed.push(format!("rank {rank}: {status}"));
        }
    }
    ensure!(failed.is_empty(), "{}", failed.join(", "));
    println!(
        "{world_size} ranks: without NCCL's library a typed error; with it every result exact"
    );
    Ok(())
}

/// One of the ranks.
///
/// # Errors
/// As [`run`].
pub(crate) fn run_rank(args: &RankArgs) -> Result<()> {
    let (world_size, seed) = args.begin()?;
    let meet = |group| Rendezvous::unix(&args.directory, group, args.rank, world_size);
    let stream = Gpus::open_for(args.rank)?.stream(args.rank)?;
    let absent = Nccl::new().library(Path::new("/nowhere/libnccl.so.2"));
    match builder(meet("absent"), absent)?.build(&stream) {
        Err(Error::Device(DeviceError::LibraryMissing { .. })) => {}
        // A rank whose peer failed first.
        Err(Error::Rendezvous(_)) => {}
        Err(other) => bail!("another error than that of a missing library: {other}"),
        Ok(_) => bail!("a communicator without the library that it was told to use"),
    }

    let mut communicator = builder(meet("nccl"), Nccl::new())?.build(&stream)?;
    let mut calls = 0;
    for &dtype in Dtype::REDUCED {
        calls += run_type(dtype, seed, &mut communicator)?;
    }
    println!(
        "rank {}: {calls} calls through peersum's kernels and through NCCL",
        args.rank
    );
    Ok(())
}

fn builder(rendezvous: Rendezvous, nccl: Nccl) -> Result<CommunicatorBuilder> {
    Ok(Communicator::builder()
        .rendezvous(rendezvous)
        .load_policy(LoadPolicy::from_env()?)
        .max_bytes(MAX_BYTES)
        .timeout(Duration::from_secs(5))
        .setup_timeout(Duration::from_secs(30))
        .above_range(nccl))
}

/// Makes calls of every size, out of place, in place and in a graph. Returns how many.
fn run_type(dtype: Dtype, seed: u64, communicator: &mut Communicator) -> Result<usize> {
    for bytes in BYTES {
        let wanted = if bytes > MAX_BYTES {
            CallPath::Nccl
        } else {
            CallPath::Kernels
        };
        let path = communicator.path(bytes);
        ensure!(path == wanted, "{bytes} bytes go by {path:?}");
    }
    let (rank, world_size) = (communicator.rank(), communicator.world_size());
    let calls = |in_place| -> Result<Vec<Calls<Cuda>>> {
        let of_size = |bytes: usize| {
            let keys = Key::of_all(seed ^ bytes as u64, world_size);
            let elements = bytes / dtype.size_bytes();
            let sum = SumCall::aligned(None, elements, false, in_place, Content::Whole);
            let call = sum.of_rank(dtype, &keys, rank);
            Calls::of(communicator, What::AllReduce, call, None)
        };
        BYTES.into_iter().map(of_size).collect()
    };
    let (beside, in_place) = (calls(false)?, calls(true)?);
    // Both paths one after the other on the stream.
    for (calls, how) in [(&beside, "out of place"), (&in_place, "in place")] {
        let mut all = calls.iter();
        all.try_for_each(|call| call.call(communicator))?;
        communicator.synchronize()?;
        let mut all = calls.iter();
        all.try_for_each(Calls::ensure_result).context(how)?;
    }

    communicator.capture_begin()?;
    for call in &beside {
        call.call(communicator)?;
    }
    // SAFETY: `beside` lives to the end of this function, and the graph is launched here only.
    let graph = unsafe { communicator.capture_end()? };
    for _ in 0..REPLAYS {
        beside.iter().try_for_each(Calls::prepare)?;
        graph.launch(communicator)?;
        communicator.synchronize()?;
        let mut all = beside.iter();
        all.try_for_each(Calls::ensure_result)
            .context("in a graph")?;
    }
    Ok((2 + REPLAYS) * BYTES.len())
}
