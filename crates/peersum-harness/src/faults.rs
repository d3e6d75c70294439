//! Faults on a real device: what every rank is told when a peer is absent, killed, aborted or calls something else; and replayed graphs mixed
//! with eager calls. Each case is a process of its own, so that a spinning kernel costs one case.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::{Args, ValueEnum};
use half::bf16;
use peersum::device::{Device, DeviceStream, MemorySharing};
use peersum::loader::LoadPolicy;
use peersum::reference;
use peersum::{Communicator, CommunicatorBuilder, Error, Failure, Rendezvous};

use crate::data::{self, Content};
use crate::memory::TestBuffer;

/// How long a call waits for a peer in these cases.
const TIMEOUT: Duration = Duration::from_secs(1);

/// What a survivor may need beyond the timeout to say so.
const GRACE: Duration = Duration::from_secs(1);

const ELEMENTS: usize = 3000;

/// One case.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Case {
    /// Four layers captured, 100 replays mixed with eager calls, with and without programmatic dependent launch.
    GraphReplays,
    /// A rank never calls; the others name it, their outputs are NaN, and a new communicator works.
    AbsentRank,
    /// Another thread aborts a rank that waits.
    Abort,
    /// Ranks call with different sizes.
    Disagreement,
    /// A process is killed with SIGKILL between calls of others that wait for it.
    Killed,
    /// Processes that share memory by legacy CUDA IPC.
    LegacyIpc,
}

/// Which cases to run.
#[derive(Debug, Clone, Args)]
pub(crate) struct FaultsArgs {
    /// The case.
    #[arg(long)]
    case: Case,
    /// One rank of a case whose ranks are processes.
    #[arg(long, hide = true)]
    rank: Option<u32>,
    /// Where those ranks meet.
    #[arg(long, hide = true)]
    directory: Option<std::path::PathBuf>,
}

/// Runs one case on streams that `stream` makes.
///
/// # Errors
/// The case did not end as it must.
pub(crate) fn run<S: DeviceStream + Send>(
    args: &FaultsArgs,
    stream: &(dyn Fn() -> Result<S> + Sync),
) -> Result<()> {
    let began = Instant::now();
    match (args.case, args.rank, &args.directory) {
        (Case::GraphReplays, ..) => {
            for (world_size, pdl) in [(2, true), (2, false), (4, true), (8, true), (8, false)] {
                threads(world_size, &|rendezvous| {
                    graph_replays(rendezvous, stream, pdl)
                })?;
                println!(
                    "  world size {world_size}, pdl {pdl}: 100 replays of 4 layers and 10 eager calls, all equal to the reference"
                );
            }
        }
        (Case::AbsentRank, ..) => threads(3, &|rendezvous| absent_rank(rendezvous, stream))?,
        (Case::Abort, ..) => threads(2, &|rendezvous| abort(rendezvous, stream))?,
        (Case::Disagreement, ..) => threads(3, &|rendezvous| disagreement(rendezvous, stream))?,
        (case, Some(rank), Some(directory)) => {
            let rendezvous = Rendezvous::unix(directory, "faults", rank, 2);
            return if case == Case::Killed {
                calls_until_failure(rendezvous, stream)
            } else {
                legacy_ipc(rendezvous, stream)
            };
        }
        (Case::Killed, ..) => killed(args)?,
        (Case::LegacyIpc, ..) => processes_succeed(args)?,
    }
    println!(
        "{:?}: as it must, {:.1} s",
        args.case,
        began.elapsed().as_secs_f64()
    );
    Ok(())
}

fn builder(rendezvous: Rendezvous) -> Result<CommunicatorBuilder> {
    Ok(Communicator::builder()
        .rendezvous(rendezvous)
        .load_policy(LoadPolicy::from_env()?)
        .max_bytes(1 << 20)
        .timeout(TIMEOUT)
        .setup_timeout(Duration::from_secs(30)))
}

fn threads(world_size: u32, rank: &(dyn Fn(Rendezvous) -> Result<()> + Sync)) -> Result<()> {
    std::thread::scope(|scope| {
        let ranks: Vec<_> = Rendezvous::threads(world_size)
            .into_iter()
            .map(|rendezvous| scope.spawn(move || rank(rendezvous)))
            .collect();
        for (index, rank) in ranks.into_iter().enumerate() {
            rank.join()
                .unwrap_or_else(|_| bail!("panicked"))
                .with_context(|| format!("rank {index}"))?;
        }
        Ok(())
    })
}

/// A rank's buffers and what its calls must give.
struct Work<D: Device> {
    device: D,
    input: TestBuffer<bf16, D>,
    output: TestBuffer<bf16, D>,
    expected: Vec<bf16>,
}

impl<D: Device> Work<D> {
    fn new(stream: &D::Stream, rank: u32, world_size: u32) -> Result<Self> {
        let device = D::open(stream)?;
        let inputs: Vec<Vec<bf16>> = (0..world_size)
            .map(|rank| data::input(3, rank, ELEMENTS, Content::Ordinary))
            .collect();
        let slices: Vec<&[bf16]> = inputs.iter().map(Vec::as_slice).collect();
        let (input, output) = (
            TestBuffer::new(&device, ELEMENTS, 0)?,
            TestBuffer::new(&device, ELEMENTS, 0)?,
        );
        input.write(&device, &inputs[rank as usize])?;
        Ok(Work {
            device,
            input,
            output,
            expected: reference::all_reduce(&slices),
        })
    }

    fn call(&self, communicator: &mut Communicator<D>) -> Result<(), Error> {
        self.input.with(&self.device, |input| {
            self.output.with(&self.device, |output| {
                communicator.all_reduce(&*input, output)
            })
        })
    }

    fn output_is(&self, expected: &dyn Fn(usize) -> u16) -> Result<bool> {
        let (values, guards) = self.output.read(&self.device)?;
        Ok(guards
            && values
                .iter()
                .enumerate()
                .all(|(i, value)| value.to_bits() == expected(i)))
    }
}

fn graph_replays<S: DeviceStream>(
    rendezvous: Rendezvous,
    stream: &dyn Fn() -> Result<S>,
    pdl: bool,
) -> Result<()> {
    let stream = stream()?;
    let mut communicator = builder(rendezvous)?.pdl(pdl).build(&stream)?;
    let work = Work::<S::Device>::new(&stream, communicator.rank(), communicator.world_size())?;
    let equal = |work: &Work<S::Device>| work.output_is(&|i| work.expected[i].to_bits());
    communicator.capture_begin()?;
    for _ in 0..4 {
        work.call(&mut communicator)?;
    }
    // SAFETY: the buffers live until the end of this function, and so does the graph.
    let graph = unsafe { communicator.capture_end()? };
    for replay in 0..100 {
        if replay % 10 == 9 {
            work.output.poison(&work.device)?;
            work.call(&mut communicator)?;
            communicator.synchronize()?;
            ensure!(
                equal(&work)?,
                "the eager call before replay {replay} is wrong"
            );
            work.output.poison(&work.device)?;
        }
        graph.launch(&mut communicator)?;
        if replay % 10 == 9 {
            communicator.synchronize()?;
            ensure!(equal(&work)?, "replay {replay} is wrong");
        }
    }
    communicator.synchronize()?;
    Ok(())
}

fn absent_rank<S: DeviceStream>(
    rendezvous: Rendezvous,
    stream: &dyn Fn() -> Result<S>,
) -> Result<()> {
    let stream = stream()?;
    let mut communicator = builder(rendezvous)?.build(&stream)?;
    let rank = communicator.rank();
    let work = Work::<S::Device>::new(&stream, rank, communicator.world_size())?;
    work.call(&mut communicator)?;
    communicator.synchronize()?;
    if rank == 2 {
        std::thread::sleep(TIMEOUT + 2 * GRACE);
        return Ok(());
    }
    let began = Instant::now();
    work.call(&mut communicator)?;
    let failure = communicator.synchronize();
    let took = began.elapsed();
    ensure!(took < TIMEOUT + GRACE, "took {took:?}");
    match failure {
        Err(Error::Failed(Failure::PeerTimeout {
            peer: 2, rank: own, ..
        })) if own == rank => {}
        // The other waiting rank may be the first to give up.
        Err(Error::Failed(Failure::PeerFailed { origin, .. })) if origin != 2 => {}
        other => bail!("{other:?}"),
    }
    ensure!(
        work.output_is(&|_| 0x7FFF)?,
        "an output that was not reduced is not NaN"
    );
    ensure!(
        work.call(&mut communicator).is_err(),
        "a later call is accepted"
    );
    println!(
        "  rank {rank}: {:?} after {took:?}",
        communicator.status().map_err(|error| error.to_string())
    );
    Ok(())
}

fn abort<S: DeviceStream>(rendezvous: Rendezvous, stream: &dyn Fn() -> Result<S>) -> Result<()> {
    let stream = stream()?;
    let mut communicator = builder(rendezvous)?
        .timeout(Duration::from_secs(20))
        .build(&stream)?;
    let work = Work::<S::Device>::new(&stream, communicator.rank(), 2)?;
    work.call(&mut communicator)?;
    communicator.synchronize()?;
    if communicator.rank() == 1 {
        std::thread::sleep(Duration::from_millis(800));
        let later = work
            .call(&mut communicator)
            .and_then(|()| communicator.synchronize());
        ensure!(
            matches!(
                later,
                Err(Error::Failed(Failure::PeerFailed { origin: 0, .. }))
            ),
            "rank 1 got {later:?}"
        );
        return Ok(());
    }
    let handle = communicator.abort_handle();
    let aborter = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(300));
        let at = Instant::now();
        handle.abort();
        at
    });
    work.call(&mut communicator)?;
    let failure = communicator.synchronize();
    let ended = Instant::now();
    let aborted_at = aborter
        .join()
        .map_err(|_| anyhow::anyhow!("the aborting thread panicked"))?;
    let took = ended.duration_since(aborted_at);
    ensure!(
        matches!(
            failure,
            Err(Error::Failed(Failure::Aborted { rank: 0, .. }))
        ),
        "rank 0 got {failure:?}"
    );
    println!(
        "  synchronize returned {:.2} ms after the abort",
        took.as_secs_f64() * 1000.0
    );
    ensure!(took < Duration::from_millis(100), "took {took:?}");
    Ok(())
}

fn disagreement<S: DeviceStream>(
    rendezvous: Rendezvous,
    stream: &dyn Fn() -> Result<S>,
) -> Result<()> {
    let stream = stream()?;
    let mut communicator = builder(rendezvous)?.build(&stream)?;
    let rank = communicator.rank();
    let work = Work::<S::Device>::new(&stream, rank, communicator.world_size())?;
    work.call(&mut communicator)?;
    communicator.synchronize()?;
    // Rank 1 reduces fewer elements.
    let short = TestBuffer::<bf16, S::Device>::new(&work.device, ELEMENTS - 8, 0)?;
    let called = if rank == 1 {
        short.with(&work.device, |buffer| {
            communicator.all_reduce_in_place(buffer)
        })
    } else {
        work.call(&mut communicator)
    };
    let failure = called.and_then(|()| communicator.synchronize());
    match failure {
        Err(Error::Failed(Failure::Disagreement { own, theirs, .. })) => {
            ensure!(own.bytes.abs_diff(theirs.bytes) == 16, "{own} and {theirs}");
            println!("  rank {rank}: {own}; {theirs}");
        }
        other => bail!("rank {rank} got {other:?}"),
    }
    Ok(())
}

/// Calls until something fails; prints a line for the parent after the first call and when it has failed.
fn calls_until_failure<S: DeviceStream>(
    rendezvous: Rendezvous,
    stream: &dyn Fn() -> Result<S>,
) -> Result<()> {
    let stream = stream()?;
    let mut communicator = builder(rendezvous)?.build(&stream)?;
    let work = Work::<S::Device>::new(&stream, communicator.rank(), 2)?;
    work.call(&mut communicator)?;
    communicator.synchronize()?;
    println!("calling");
    loop {
        let outcome = work
            .call(&mut communicator)
            .and_then(|()| communicator.synchronize());
        if let Err(error) = outcome {
            println!("failed: {error}");
            return Ok(());
        }
    }
}

fn legacy_ipc<S: DeviceStream>(
    rendezvous: Rendezvous,
    stream: &dyn Fn() -> Result<S>,
) -> Result<()> {
    let stream = stream()?;
    let mut communicator = builder(rendezvous)?
        .memory_sharing(MemorySharing::LegacyIpc)
        .build(&stream)?;
    let work = Work::<S::Device>::new(&stream, communicator.rank(), 2)?;
    for _ in 0..20 {
        work.output.poison(&work.device)?;
        work.call(&mut communicator)?;
        communicator.synchronize()?;
        ensure!(
            work.output_is(&|i| work.expected[i].to_bits())?,
            "a result is wrong"
        );
    }
    Ok(())
}

fn spawn(args: &FaultsArgs, rank: u32, directory: &std::path::Path) -> Result<std::process::Child> {
    let case = args
        .case
        .to_possible_value()
        .context("a case without a name")?;
    Command::new(std::env::current_exe()?)
        .args([
            "faults",
            "--case",
            case.get_name(),
            "--rank",
            &rank.to_string(),
            "--directory",
        ])
        .arg(directory)
        .stdout(Stdio::piped())
        .spawn()
        .context("starting a rank")
}

fn private_directory() -> Result<tempfile::TempDir> {
    use std::os::unix::fs::PermissionsExt;
    let directory = tempfile::tempdir()?;
    std::fs::set_permissions(directory.path(), std::fs::Permissions::from_mode(0o700))?;
    Ok(directory)
}

fn killed(args: &FaultsArgs) -> Result<()> {
    let directory = private_directory()?;
    let mut survivor = spawn(args, 0, directory.path())?;
    let mut victim = spawn(args, 1, directory.path())?;
    let mut lines = BufReader::new(survivor.stdout.take().context("no pipe")?).lines();
    let first = lines.next().context("the survivor said nothing")??;
    ensure!(first == "calling", "{first}");
    // Calls follow each other without a pause, so the kill falls into one, at some place.
    std::thread::sleep(Duration::from_millis(200));
    let began = Instant::now();
    victim.kill()?;
    victim.wait()?;
    let last = lines
        .next()
        .context("the survivor ended without a word")??;
    let took = began.elapsed();
    survivor.wait()?;
    println!("  {took:?} after the kill: {last}");
    ensure!(last.contains("waited") && last.contains("rank 1"), "{last}");
    ensure!(took < TIMEOUT + GRACE, "took {took:?}");
    Ok(())
}

fn processes_succeed(args: &FaultsArgs) -> Result<()> {
    let directory = private_directory()?;
    let ranks = [
        spawn(args, 0, directory.path())?,
        spawn(args, 1, directory.path())?,
    ];
    for (rank, child) in ranks.into_iter().enumerate() {
        let output = child.wait_with_output()?;
        ensure!(
            output.status.success(),
            "rank {rank} ended with {}",
            output.status
        );
    }
    Ok(())
}
