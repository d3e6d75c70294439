//! Calls above the custom range on real GPUs: NCCL itself, in order with peersum's kernels on one stream, eager and in a graph. One process a rank.
//!
//! The elements are whole numbers ([`Content::Whole`]), so that NCCL's order of adding gives the reference's bits too.

use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use half::{bf16, f16};
use peersum::cuda::Cuda;
use peersum::cudarc::driver::CudaContext;
use peersum::device::{Device, DeviceError};
use peersum::loader::LoadPolicy;
use peersum::nccl::Nccl;
use peersum::{CallPath, Communicator, CommunicatorBuilder, Element, Error, Rendezvous, reference};

use crate::data::{self, Content};
use crate::memory::TestBuffer;

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

/// Flags of `above-range-rank`, a process that is one of the ranks.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct RankArgs {
    #[arg(long)]
    rank: u32,
    #[arg(long)]
    world_size: u32,
    #[arg(long)]
    seed: u64,
    /// The process that started it.
    #[arg(long)]
    parent: i32,
    /// Where the ranks meet.
    #[arg(long)]
    directory: PathBuf,
}

/// Runs all cases.
///
/// # Errors
/// There are no two GPUs or there is no NCCL; a result is wrong, or a call took another path than its size says.
pub(crate) fn run(args: &AboveRangeArgs) -> Result<()> {
    peersum::cuda::driver_present()?;
    let gpus = CudaContext::device_count()?.unsigned_abs();
    let world_size = args.world_size.unwrap_or(gpus.min(8));
    ensure!(
        (2..=gpus).contains(&world_size),
        "this test gives every rank its own GPU: {world_size} ranks, and {gpus} GPUs are here"
    );
    let directory = tempfile::Builder::new()
        .prefix("peersum-above-range-")
        .permissions(std::os::unix::fs::PermissionsExt::from_mode(0o700))
        .tempdir()?;
    let program = std::env::current_exe().context("finding this program")?;
    let ranks = (0..world_size).map(|rank| {
        Command::new(&program)
            .args(["above-range-rank", "--seed", &args.seed.to_string()])
            .args(["--world-size", &world_size.to_string()])
            .args(["--rank", &rank.to_string()])
            .args(["--parent", &std::process::id().to_string()])
            .arg("--directory")
            .arg(directory.path())
            .spawn()
            .with_context(|| format!("starting rank {rank}"))
    });
    // All of them, before the first is waited for.
    let ranks: Vec<Child> = ranks.collect::<Result<_>>()?;
    let mut failed = Vec::new();
    for (rank, mut child) in ranks.into_iter().enumerate() {
        let status = child.wait()?;
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
    crate::parent::end_with(args.parent)?;
    let meet = |group| Rendezvous::unix(&args.directory, group, args.rank, args.world_size);
    let context = peersum::open_context(args.rank)?;
    let stream = context.new_stream()?;
    let absent = Nccl::new().library(Path::new("/nowhere/libnccl.so.2"));
    match builder(meet("absent"), absent)?.build(&stream) {
        Err(Error::Device(DeviceError::LibraryMissing { .. })) => {}
        // A rank whose peer found it out first.
        Err(Error::Rendezvous(_)) => {}
        Err(other) => bail!("another error than that of a missing library: {other}"),
        Ok(_) => bail!("a communicator without the library that it was told to use"),
    }

    let device = <Cuda as Device>::open(&stream)?;
    let mut communicator = builder(meet("nccl"), Nccl::new())?.build(&stream)?;
    let mut calls = run_type::<bf16>(args.seed, &device, &mut communicator)?;
    calls += run_type::<f16>(args.seed, &device, &mut communicator)?;
    calls += run_type::<f32>(args.seed, &device, &mut communicator)?;
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

/// One call's arrays on this rank.
struct Arrays<T: Element> {
    input: TestBuffer<T, Cuda>,
    output: TestBuffer<T, Cuda>,
    own: Vec<T>,
    expected: Vec<T>,
}

fn run_type<T: Element>(seed: u64, device: &Cuda, communicator: &mut Communicator) -> Result<usize>
where
    T::Bits: TryFrom<u32>,
{
    let mut calls = 0;
    let mut arrays = Vec::new();
    for bytes in BYTES {
        let wanted = if bytes > MAX_BYTES {
            CallPath::Nccl
        } else {
            CallPath::Kernels
        };
        let path = communicator.path(bytes);
        ensure!(path == wanted, "{bytes} bytes go by {path:?}");
        arrays.push(Arrays::<T>::new(seed, device, communicator, bytes)?);
    }

    // Out of place, then in place, one path behind the other on the stream.
    for arrays in &arrays {
        arrays.reset(device)?;
        arrays.all_reduce(device, communicator)?;
        calls += 1;
    }
    communicator.synchronize()?;
    for arrays in &arrays {
        arrays
            .check(device, &arrays.output)
            .context("out of place")?;
    }
    for arrays in &arrays {
        arrays
            .input
            .with(device, |buffer| communicator.all_reduce_in_place(buffer))?;
        calls += 1;
    }
    communicator.synchronize()?;
    for arrays in &arrays {
        arrays.check(device, &arrays.input).context("in place")?;
    }

    communicator.capture_begin()?;
    for arrays in &arrays {
        arrays.all_reduce(device, communicator)?;
    }
    // SAFETY: `arrays` lives to the end of this function, and the graph is launched here only.
    let graph = unsafe { communicator.capture_end()? };
    for _ in 0..REPLAYS {
        for arrays in &arrays {
            arrays.reset(device)?;
        }
        graph.launch(communicator)?;
        communicator.synchronize()?;
        for arrays in &arrays {
            arrays.check(device, &arrays.output).context("in a graph")?;
            calls += 1;
        }
    }
    Ok(calls)
}

impl<T: Element> Arrays<T>
where
    T::Bits: TryFrom<u32>,
{
    fn new(seed: u64, device: &Cuda, communicator: &Communicator, bytes: usize) -> Result<Self> {
        let len = bytes / size_of::<T>();
        let inputs: Vec<Vec<T>> = (0..communicator.world_size())
            .map(|rank| data::input(seed ^ bytes as u64, rank, len, Content::Whole))
            .collect();
        let slices: Vec<&[T]> = inputs.iter().map(Vec::as_slice).collect();
        let expected = reference::all_reduce(&slices);
        let own = inputs
            .into_iter()
            .nth(communicator.rank() as usize)
            .context("a rank outside its group")?;
        Ok(Arrays {
            input: TestBuffer::new(device, len, 0)?,
            output: TestBuffer::new(device, len, 0)?,
            own,
            expected,
        })
    }

    /// The input as it was before any call, and an output that no sum gives.
    fn reset(&self, device: &Cuda) -> Result<()> {
        self.input.write(device, &self.own)?;
        self.output.poison(device)
    }

    fn all_reduce(&self, device: &Cuda, communicator: &mut Communicator) -> Result<()> {
        self.input.with(device, |input| {
            self.output
                .with(device, |output| communicator.all_reduce(&*input, output))
        })?;
        Ok(())
    }

    fn check(&self, device: &Cuda, result: &TestBuffer<T, Cuda>) -> Result<()> {
        let (actual, intact) = result.read(device)?;
        ensure!(intact, "{} elements: written outside", self.own.len());
        // No sum of these is a negative zero, in any order.
        let wrong =
            (0..self.own.len()).find(|&index| actual[index].raw() != self.expected[index].raw());
        if let Some(index) = wrong {
            bail!(
                "{} x {}: element {index} is {:x}, not {:x}",
                T::DTYPE,
                self.own.len(),
                actual[index].raw(),
                self.expected[index].raw()
            );
        }
        Ok(())
    }
}
