//! Faults between ranks that are threads of one process on one device: what every rank is told when
//! a peer is absent, aborted or calls something else, and that the process lives on; also replayed
//! graphs mixed with eager calls, two communicators at once, and a few cases of processes. Each
//! case is a process of its own, so that a spinning kernel costs one case. (`kill` is about ranks
//! that die or stop.)

mod abort;
mod absent;
mod captures;
mod disagreement;
mod processes;
mod replays;
mod two;

use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::{Args, ValueEnum};
use half::bf16;
use peersum::device::DeviceStream;
use peersum::loader::LoadPolicy;
use peersum::{Communicator, CommunicatorBuilder, Rendezvous};

use crate::arrays::Arrays;
use crate::data::Content;
use crate::machine::{
    DeviceChoice, DeviceKind, Emulators, Gpus, Machine, decide, give_each_stream_a_queue,
};
use crate::memory::POISON;
use crate::ranks::run_threads;

/// How long a call waits for a peer in these cases.
const TIMEOUT: Duration = Duration::from_secs(1);

/// The data of most calls, and their size.
const SEED: u64 = 3;
const ELEMENTS: usize = 3000;

/// An element of an output that was not reduced.
const NAN: bf16 = bf16::from_bits(0x7FFF);
/// An element of memory that was poisoned and not written since.
const POISONED: bf16 = bf16::from_bits(u16::from_ne_bytes([POISON; 2]));

/// Beyond this a case hangs.
const CASE_PATIENCE: Duration = Duration::from_secs(120);

/// One case.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Case {
    /// Four layers captured, 100 replays mixed with eager calls, with and without programmatic dependent launch.
    GraphReplays,
    /// Two communicators with default settings on the same GPUs, one rank a GPU if there are two:
    /// ranks enqueue their calls in opposite orders, eager and as graphs.
    TwoCommunicators,
    /// A rank never calls; the others name it, outputs are NaN, a graph captured before is refused and moves no data, a new communicator works.
    AbsentRank,
    /// Another thread aborts a rank that waits.
    Abort,
    /// Ranks call with different sizes, types or algorithms, in another order, or skip a call; eager and in graphs.
    Disagreement,
    /// A process is killed with SIGKILL between calls of others that wait for it.
    Killed,
    /// Processes that share memory by legacy CUDA IPC.
    LegacyIpc,
    /// The program captures a rank's stream itself; cudarc's event tracking; slices of another GPU.
    /// On two GPUs where there are so many.
    Captures,
}

impl Case {
    /// Why the emulator does not have it, if so.
    fn not_emulated(self) -> Option<&'static str> {
        match self {
            Case::LegacyIpc => Some("the emulator has no CUDA IPC"),
            Case::Captures => Some("the emulator has no cudarc"),
            _ => None,
        }
    }
}

/// Which cases to run.
#[derive(Debug, Clone, Args)]
pub(crate) struct FaultsArgs {
    /// The case [default: all that the device has].
    #[arg(long)]
    case: Option<Case>,
    /// What the ranks run on. All share GPU 0 unless the case says otherwise, or have one emulated
    /// device each.
    #[arg(long, value_enum, default_value = "auto")]
    device: DeviceChoice,
    /// What a rank may take beyond its deadline, in milliseconds.
    #[arg(long, default_value_t = 1000)]
    grace_ms: u64,
    /// Within how many milliseconds an abort must end every wait.
    #[arg(long, default_value_t = 10)]
    abort_ms: u64,
    /// One rank of a case whose ranks are processes.
    #[arg(long, hide = true)]
    rank: Option<u32>,
    /// Where those ranks meet.
    #[arg(long, hide = true)]
    directory: Option<std::path::PathBuf>,
}

/// Runs one case or all.
///
/// # Errors
/// A case did not end as it must.
pub(crate) fn run(args: &FaultsArgs) -> Result<()> {
    give_each_stream_a_queue();
    // All on one device, so any number of ranks will do.
    let kind = decide(args.device, 1)?.kind;
    let Some(case) = args.case else {
        return all(args, kind);
    };
    match kind {
        DeviceKind::Cuda if case == Case::Captures => {
            let began = Instant::now();
            captures::captures(args)?;
            report(case, began);
            Ok(())
        }
        DeviceKind::Cuda => {
            let ranks = match case {
                Case::TwoCommunicators => 8,
                _ => 1,
            };
            run_on(case, args, &Gpus::open(ranks)?)
        }
        DeviceKind::Emulator => run_on(case, args, &Emulators::default()),
    }
}

fn run_on<M: Machine>(case: Case, args: &FaultsArgs, machine: &M) -> Result<()> {
    let stream = |rank| machine.stream(rank);
    run_case(case, &Stage::new(args, machine.kind(), &stream))
}

/// What a case has of the device and the flags.
struct Stage<'a, S> {
    args: &'a FaultsArgs,
    kind: DeviceKind,
    stream: &'a (dyn Fn(u32) -> Result<S> + Sync),
    grace: Duration,
}

impl<'a, S> Stage<'a, S> {
    fn new(
        args: &'a FaultsArgs,
        kind: DeviceKind,
        stream: &'a (dyn Fn(u32) -> Result<S> + Sync),
    ) -> Self {
        Stage {
            args,
            kind,
            stream,
            grace: Duration::from_millis(args.grace_ms),
        }
    }
}

impl<S: DeviceStream> Stage<'_, S> {
    /// A rank's communicator on a stream of its own.
    fn build(
        &self,
        rendezvous: Rendezvous,
        settings: impl FnOnce(CommunicatorBuilder) -> CommunicatorBuilder,
    ) -> Result<Communicator<S::Device>> {
        let stream = (self.stream)(rendezvous.rank())?;
        let mut builder = Communicator::builder()
            .rendezvous(rendezvous)
            .load_policy(LoadPolicy::from_env()?)
            .max_bytes(64 << 10)
            .timeout(TIMEOUT)
            .setup_timeout(Duration::from_secs(60));
        if self.kind == DeviceKind::Emulator {
            // Every thread of a grid is a thread of the host, and all of them spin.
            builder = builder.max_blocks(1);
        }
        Ok(settings(builder).build(&stream)?)
    }

    /// A rank's arrays. All ranks must ask for the same.
    fn arrays(
        &self,
        communicator: &Communicator<S::Device>,
        seed: u64,
        elements: usize,
    ) -> Result<Arrays<bf16, S::Device>> {
        Arrays::new(communicator, seed, elements, Content::Ordinary)
    }
}

fn run_case<S: DeviceStream + Send>(case: Case, stage: &Stage<'_, S>) -> Result<()> {
    let began = Instant::now();
    match (case, stage.args.rank, &stage.args.directory) {
        (Case::GraphReplays, ..) => {
            let forms: &[(u32, bool)] = match stage.kind {
                DeviceKind::Cuda => &[(2, true), (2, false), (4, true), (8, true), (8, false)],
                // It has no programmatic dependent launch.
                DeviceKind::Emulator => &[(2, false), (3, false)],
            };
            for &(world_size, pdl) in forms {
                run_threads(world_size, 1, |member| {
                    replays::graph_replays(member, stage, pdl)
                })?;
                println!(
                    "  world size {world_size}, pdl {pdl}: 100 replays of 4 layers and 10 eager calls, all equal to the reference"
                );
            }
        }
        (Case::TwoCommunicators, ..) => {
            let (largest, pdl): (u32, &[bool]) = match stage.kind {
                DeviceKind::Cuda => (Gpus::count()?.clamp(2, 8), &[true, false]),
                DeviceKind::Emulator => (3, &[false]),
            };
            let mut world_sizes = vec![2, largest];
            world_sizes.dedup();
            for world_size in world_sizes {
                for &pdl in pdl {
                    run_threads(world_size, 2, |member| {
                        two::two_communicators(member, stage, pdl)
                    })?;
                    println!(
                        "  world size {world_size}, pdl {pdl}: two communicators at once, all results \
                         equal to the reference"
                    );
                }
            }
        }
        (Case::AbsentRank, ..) => {
            run_threads(3, 2, |member| absent::absent_rank(member, stage))?;
        }
        (Case::Abort, ..) => abort::aborts(stage)?,
        (Case::Disagreement, ..) => disagreement::disagreements(stage)?,
        (case, Some(rank), Some(directory)) => {
            let rendezvous = Rendezvous::unix(directory, "faults", rank, 2);
            return if case == Case::Killed {
                processes::calls_until_failure(rendezvous, stage)
            } else {
                processes::legacy_ipc(rendezvous, stage)
            };
        }
        (Case::Killed, ..) => processes::killed(stage)?,
        (Case::LegacyIpc, ..) => processes::processes_succeed(stage)?,
        (Case::Captures, ..) => bail!("{case:?} is a case of GPUs"),
    }
    report(case, began);
    Ok(())
}

fn report(case: Case, began: Instant) {
    println!(
        "{case:?}: as it must, {:.1} s",
        began.elapsed().as_secs_f64()
    );
}

/// Runs every case that the device has, each in a process of its own.
fn all(args: &FaultsArgs, kind: DeviceKind) -> Result<()> {
    for case in Case::value_variants() {
        if let (DeviceKind::Emulator, Some(reason)) = (kind, case.not_emulated()) {
            println!("{case:?}: {reason}");
            continue;
        }
        let mut child = again(args, kind, *case)?
            .spawn()
            .with_context(|| format!("starting {case:?}"))?;
        let began = Instant::now();
        let status = loop {
            if let Some(status) = child.try_wait()? {
                break status;
            }
            if began.elapsed() > CASE_PATIENCE {
                child.kill()?;
                child.wait()?;
                bail!("{case:?} did not end within {CASE_PATIENCE:?}");
            }
            std::thread::sleep(Duration::from_millis(20));
        };
        ensure!(status.success(), "{case:?} ended with {status}");
    }
    Ok(())
}

/// This program, for a part of what it does.
fn again(args: &FaultsArgs, kind: DeviceKind, case: Case) -> Result<Command> {
    let name = case.to_possible_value().context("a case without a name")?;
    let mut command = Command::new(std::env::current_exe()?);
    command
        .args(["faults", "--case", name.get_name()])
        .args(["--device", kind.name()])
        .args(["--grace-ms", &args.grace_ms.to_string()])
        .args(["--abort-ms", &args.abort_ms.to_string()]);
    Ok(command)
}
