//! A soak: calls of random size, alignment, algorithm, mode and delay for as long as asked, the bits of every result compared.

mod burst;

use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use peersum::Rendezvous;
use peersum::dispatch::Route;
use peersum_artifact::Dtype;

use crate::grid::case::{Adversarial, Case, Work};
use crate::grid::event::{Event, Mismatch};
use crate::grid::machine::{self, Emulators, Gpus, Machine};
use crate::grid::session::Session;
use crate::grid::settings::{
    DeviceChoice, DeviceKind, GridKind, RankKind, Settings, SharingChoice, parse_world_sizes,
};

/// The most bursts of one world size: some millions of calls.
const MOST_BURSTS: u64 = 1 << 16;
/// Both families' counters pass 32 bits, and their sum 16, in the first bursts.
const START_EPOCHS: (u32, u64) = (u32::MAX - 20, u32::MAX as u64 - 12);
/// However slow the machine is.
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
    /// How long to make calls, shared out equally among the world sizes.
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// World sizes, one after the other.
    #[arg(long, value_name = "LIST", default_value = "2,4,8")]
    world_size: String,
    /// The seed of all data, sizes, choices and delays; a random one unless given.
    #[arg(long)]
    seed: Option<u64>,
    /// For tests: one bit of a result of each burst is changed before it is compared on the host.
    #[arg(long, hide = true)]
    corrupt: bool,
}

/// Lets the ranks agree on the last burst: the first to come to one after the time is up ends it for all.
struct Gate {
    ends: Instant,
    state: Mutex<GateState>,
}

#[derive(Default)]
struct GateState {
    /// Bursts that some rank has entered.
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
    /// The first of them, each with the seed of its burst.
    first: Vec<(u64, Case, Mismatch)>,
}

/// Soaks each world size. Exit status 1 if any result was wrong.
pub(crate) fn run(args: &SoakArgs) -> Result<ExitCode> {
    crate::grid::give_each_stream_a_queue();
    let sizes = parse_world_sizes(&args.world_size)?;
    let sizes: Vec<u32> = sizes.into_iter().filter(|size| *size > 1).collect();
    let largest = sizes.iter().copied().max();
    let largest = largest.context("--world-size: a group of one launches nothing")?;
    let decision = machine::decide(args.device, largest)?;
    let seed = args.seed.unwrap_or_else(|| u64::from(fastrand::u32(..)));
    println!("device: {}", decision.line);
    println!("seed {seed}");
    let share = Duration::from_secs(args.seconds) / sizes.len() as u32;
    let (mut calls, mut mismatches) = (0, 0);
    for world_size in sizes {
        let settings: Vec<Settings> = (0..MOST_BURSTS)
            .map(|burst| settings(decision.kind, world_size, seed.wrapping_add(burst)))
            .collect();
        let settings = Arc::new(settings);
        let soaked = match decision.kind {
            DeviceKind::Cuda => soak(Arc::new(Gpus::open(world_size)?), &settings, args, share)?,
            DeviceKind::Emulator => soak(Arc::new(Emulators::default()), &settings, args, share)?,
        };
        calls += soaked.calls;
        mismatches += soaked.mismatches;
        println!(
            "ws{world_size}: {} calls in {} bursts, {} mismatches",
            soaked.calls, soaked.bursts, soaked.mismatches
        );
        for (seed, case, mismatch) in &soaked.first {
            println!(
                "  rank {}, seed {seed}, {case}, round {}, layer {}, {}, {} elements: {}",
                mismatch.rank,
                mismatch.round,
                mismatch.layer,
                mismatch.algorithm,
                mismatch.elements,
                mismatch.wrong
            );
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
    Settings {
        world_sizes: vec![world_size],
        dtypes: Dtype::ALL.to_vec(),
        routes: Route::ALL.to_vec(),
        device,
        ranks: RankKind::Threads,
        grid: match device {
            DeviceKind::Cuda => GridKind::Full,
            DeviceKind::Emulator => GridKind::Smoke,
        },
        sharing: SharingChoice::Auto,
        seed,
        filter: None,
        timeout: TIMEOUT,
        fault: None,
        start_epochs: START_EPOCHS,
    }
}

/// Soaks one world size: rank 0's calls, every rank's mismatches.
fn soak<M: Machine>(
    machine: Arc<M>,
    settings: &Arc<Vec<Settings>>,
    args: &SoakArgs,
    share: Duration,
) -> Result<Spent> {
    let world_size = settings.first().map_or(0, |first| first.world_sizes[0]);
    let gate = Arc::new(Gate {
        ends: Instant::now() + share,
        state: Mutex::default(),
    });
    let ranks: Vec<_> = (0..)
        .zip(Rendezvous::threads(world_size))
        .map(|(rank, rendezvous)| {
            let (machine, settings, gate) = (
                Arc::clone(&machine),
                Arc::clone(settings),
                Arc::clone(&gate),
            );
            let corrupts = args.corrupt && rank == 0;
            thread::Builder::new()
                .name(format!("rank {rank}"))
                .spawn(move || soak_rank(&*machine, &settings, &gate, rank, rendezvous, corrupts))
                .with_context(|| format!("starting the thread of rank {rank}"))
        })
        .collect::<Result<_>>()?;
    // All are waited for, so that the error of each is told: one rank's is often another's doing.
    let outcomes: Vec<Result<Spent>> = (0..)
        .zip(ranks)
        .map(|(rank, thread): (u32, _)| {
            let outcome = thread.join();
            outcome
                .unwrap_or_else(|_| Err(anyhow!("it panicked")))
                .with_context(|| format!("rank {rank}"))
        })
        .collect();
    let failures: Vec<String> = outcomes
        .iter()
        .filter_map(|outcome| outcome.as_ref().err().map(|error| format!("{error:#}")))
        .collect();
    ensure!(
        failures.is_empty(),
        "ws{world_size}: {}",
        failures.join("; ")
    );
    let mut all = Spent::default();
    for (rank, spent) in outcomes.into_iter().flatten().enumerate() {
        if rank == 0 {
            (all.calls, all.bursts) = (spent.calls, spent.bursts);
        }
        all.mismatches += spent.mismatches;
        all.first.extend(spent.first);
    }
    all.first.truncate(PRINTED);
    Ok(all)
}

fn soak_rank<M: Machine>(
    machine: &M,
    settings: &[Settings],
    gate: &Gate,
    rank: u32,
    rendezvous: Rendezvous,
    corrupts: bool,
) -> Result<Spent> {
    let first = settings.first().context("a soak without bursts")?;
    let world_size = first.world_sizes[0];
    // For its size: no burst has larger calls.
    let largest = Case {
        world_size,
        dtype: Dtype::F32,
        work: Work::Adversarial(Adversarial::Mixed),
        rounds: 1,
    };
    let mut rendezvous = Some(rendezvous);
    let mut join = |_, _| rendezvous.take().context("a soak forms one group");
    let mut session = Session::new(machine, first, &[(0, &largest)], rank, 1, &mut join)?;
    session.corrupts = corrupts;
    let spent = Mutex::new(Spent::default());
    for (index, settings) in settings.iter().enumerate() {
        if !gate.enter(index) {
            break;
        }
        let case = burst::draw(settings, world_size);
        session.settings = settings;
        session
            .run_case(index, &case, &|event| {
                let mut spent = spent.lock().unwrap_or_else(PoisonError::into_inner);
                match event {
                    Event::Ended { calls, .. } => {
                        spent.calls += calls;
                        spent.bursts += 1;
                    }
                    Event::Mismatch(mismatch) => {
                        spent.mismatches += 1;
                        if spent.first.len() < PRINTED {
                            spent.first.push((settings.seed, case, mismatch));
                        }
                    }
                    _ => {}
                }
            })
            .with_context(|| format!("seed {}, {case}", settings.seed))?;
    }
    Ok(spent.into_inner().unwrap_or_else(PoisonError::into_inner))
}
