//! A soak: calls of random size, alignment, algorithm, mode and delay for a given time. The bits of
//! every result are compared.

mod burst;

use std::ops::RangeInclusive;
use std::process::ExitCode;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use peersum_artifact::Dtype;

use crate::grid::case::{Adversarial, Case, Work};
use crate::grid::event::Event;
use crate::grid::machine::{CheckedGpus, GridMachine};
use crate::grid::session::Session;
use crate::grid::settings::{GridKind, Settings, parse_world_sizes, world_sizes};
use crate::machine::{DeviceChoice, DeviceKind, Emulators, decide, give_each_stream_a_queue};
use crate::ranks::{Member, run_threads};

/// In the first bursts the counters of both families wrap at 32 bits, and their sum at 16.
const START_EPOCHS: (u32, u64) = (u32::MAX - 20, u32::MAX as u64 - 12);
/// The minimum number of bursts, also on a slow machine.
const LEAST_BURSTS: usize = 8;
/// How long a call may wait for a peer.
const TIMEOUT: Duration = Duration::from_secs(30);
/// Mismatches that are printed; all are counted.
const PRINTED: usize = 10;

/// The flags of `soak`.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct SoakArgs {
    /// What the ranks run on.
    #[arg(long, value_enum, default_value = "auto")]
    device: DeviceChoice,
    /// How long to make calls, in total. Each world size gets an equal share.
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// World sizes, one after the other.
    #[arg(
        long,
        value_name = "LIST",
        value_delimiter = ',',
        default_value = "2,4,8",
        value_parser = parse_world_sizes
    )]
    world_size: Vec<RangeInclusive<u32>>,
    /// The seed of all data, sizes, choices and delays [default: random].
    #[arg(long)]
    seed: Option<u64>,
    /// For tests: change one bit of a result of each burst before it is compared on the host.
    #[arg(long, hide = true)]
    corrupt: bool,
}

/// Lets the ranks agree on the last burst: the first rank that asks for a new one when the time is
/// up ends the soak for all.
struct Gate {
    ends: Instant,
    state: Mutex<GateState>,
}

#[derive(Default)]
struct GateState {
    /// Bursts that at least one rank has entered.
    entered: usize,
    closed: bool,
}

impl Gate {
    /// Whether a rank may enter a burst. Ranks ask for each in order.
    fn enter(&self, burst: usize) -> bool {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if burst < state.entered {
            return true;
        }
        state.closed |= burst >= LEAST_BURSTS && Instant::now() >= self.ends;
        if !state.closed {
            state.entered = burst + 1;
        }
        !state.closed
    }
}

/// What one rank did.
#[derive(Default)]
struct Spent {
    calls: u64,
    bursts: usize,
    mismatches: u64,
    /// The first of them, each with its case.
    first: Vec<String>,
}

/// Soaks each world size. Exit status 1 if any result was wrong.
pub(crate) fn run(args: &SoakArgs) -> Result<ExitCode> {
    give_each_stream_a_queue();
    let sizes = world_sizes(&args.world_size);
    let largest = sizes.iter().copied().max();
    let largest = largest.context("--world-size: a group of one launches nothing")?;
    let decision = decide(args.device, largest)?;
    let seed = args.seed.unwrap_or_else(|| u64::from(fastrand::u32(..)));
    println!("device: {}", decision.line);
    println!("seed {seed}");
    let share = Duration::from_secs(args.seconds) / sizes.len() as u32;
    let (mut calls, mut mismatches) = (0, 0);
    for world_size in sizes {
        let settings = settings(decision.kind, world_size, seed);
        let gate = Gate {
            ends: Instant::now() + share,
            state: Mutex::default(),
        };
        let corrupt = args.corrupt;
        let soaked = match decision.kind {
            DeviceKind::Cuda => soak(&CheckedGpus::open(world_size)?, &settings, &gate, corrupt),
            DeviceKind::Emulator => {
                soak(&Emulators::with_delayed_blocks(), &settings, &gate, corrupt)
            }
        }
        .with_context(|| format!("ws{world_size}"))?;
        calls += soaked.calls;
        mismatches += soaked.mismatches;
        println!(
            "ws{world_size}: {} calls in {} bursts, {} mismatches",
            soaked.calls, soaked.bursts, soaked.mismatches
        );
        for mismatch in &soaked.first {
            println!("  {mismatch}");
        }
    }
    println!("{calls} calls of each rank, {mismatches} mismatches, seed {seed}");
    Ok(if mismatches == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn settings(device: DeviceKind, world_size: u32, seed: u64) -> Settings {
    let grid = match device {
        DeviceKind::Cuda => GridKind::Full,
        DeviceKind::Emulator => GridKind::Smoke,
    };
    Settings {
        timeout: TIMEOUT,
        start_epochs: START_EPOCHS,
        ..Settings::of(device, grid, vec![world_size], seed)
    }
}

/// Soaks one world size: rank 0's calls, every rank's mismatches.
fn soak<M: GridMachine>(
    machine: &M,
    settings: &Settings,
    gate: &Gate,
    corrupt: bool,
) -> Result<Spent> {
    let ranks = run_threads(settings.world_sizes[0], 1, |member| {
        soak_rank(machine, settings, gate, corrupt, member)
    })?;
    let mut all = Spent::default();
    for (rank, spent) in ranks.into_iter().enumerate() {
        if rank == 0 {
            (all.calls, all.bursts) = (spent.calls, spent.bursts);
        }
        all.mismatches += spent.mismatches;
        all.first.extend(spent.first);
    }
    all.first.truncate(PRINTED);
    Ok(all)
}

fn soak_rank<M: GridMachine>(
    machine: &M,
    settings: &Settings,
    gate: &Gate,
    corrupt: bool,
    mut member: Member<'_>,
) -> Result<Spent> {
    let world_size = settings.world_sizes[0];
    let rank = member.peers.rank();
    // Only for its size: no burst has larger calls.
    let largest = Case {
        world_size,
        dtype: Dtype::F32,
        work: Work::Adversarial(Adversarial::Mixed),
        rounds: 1,
    };
    let mut join = |_, _| member.next_group();
    let mut session = Session::new(machine, settings, &[&largest], rank, 1, &mut join)?;
    session.corrupts = corrupt && rank == 0;
    let spent = Mutex::new(Spent::default());
    for burst in 0.. {
        if !gate.enter(burst) {
            break;
        }
        let seed = settings.seed.wrapping_add(burst as u64);
        session.settings.seed = seed;
        let case = burst::draw(&session.settings, world_size);
        session
            .run_case(burst, &case, &|event| {
                let mut spent = spent.lock().unwrap_or_else(PoisonError::into_inner);
                match event {
                    Event::Ended { calls, .. } => {
                        spent.calls += calls;
                        spent.bursts += 1;
                    }
                    Event::Mismatch(mismatch) => {
                        spent.mismatches += 1;
                        if spent.first.len() < PRINTED {
                            let mismatch = mismatch.describe(&case, seed);
                            spent.first.push(format!("{case}: {mismatch}"));
                        }
                    }
                    _ => {}
                }
            })
            .with_context(|| format!("seed {seed}, {case}"))?;
    }
    Ok(spent.into_inner().unwrap_or_else(PoisonError::into_inner))
}
