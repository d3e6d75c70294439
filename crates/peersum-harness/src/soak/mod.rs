//! A soak: calls of random size, alignment, algorithm, mode and delay for a given time. The bits of
//! every result are compared. Half of the time is for all-reduces, a quarter for calls with RMSNorm
//! and the last quarter for calls of all operations behind each other.

mod burst;
mod found;
mod mixed;
mod norms;
mod turns;

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use peersum_artifact::Dtype;

use crate::grid::case::{Adversarial, Case, Work};
use crate::grid::event::Event;
use crate::grid::session::Session;
use crate::grid::settings::{GridKind, Settings, parse_world_sizes, random_seed};
use crate::machine::{
    DeviceChoice, DeviceKind, Emulators, Gpus, Machine, decide, give_each_stream_a_queue,
};
use crate::ranks::{Member, run_threads};
use found::Found;
use turns::Turns;

/// In the first bursts the counters of both families wrap at 32 bits, and their sum at 16.
const START_EPOCHS: (u32, u64) = (u32::MAX - 20, u32::MAX as u64 - 12);
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
        long = "world-size",
        value_name = "LIST",
        default_value = "2,4,8",
        value_parser = parse_world_sizes
    )]
    world_sizes: Box<[u32]>,
    /// The seed of all data, sizes, choices and delays [default: random].
    #[arg(long, default_value_t = random_seed(), hide_default_value = true)]
    seed: u64,
    /// For tests: change one bit of a result of each burst before it is compared on the host.
    #[arg(long, hide = true)]
    corrupt: bool,
}

/// The soak of one world size, which its ranks share.
struct Soak {
    settings: Settings,
    world_size: u32,
    corrupt: bool,
    turns: Turns,
    progress: Mutex<Progress>,
}

#[derive(Default)]
struct Progress {
    /// Calls of rank 0.
    calls: u64,
    mismatches: u64,
    /// The first of them, each with its case.
    first: Vec<String>,
}

impl Soak {
    fn progress<R>(&self, update: impl FnOnce(&mut Progress) -> R) -> R {
        update(&mut self.progress.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// One rank.
    fn run<M: Machine>(&self, machine: &M, mut member: Member<'_>) -> Result<()> {
        let (world_size, rank) = (self.world_size, member.peers.rank());
        // Only for its size: no burst has larger calls.
        let largest = Case {
            world_size,
            dtype: Dtype::F32,
            work: Work::Adversarial(Adversarial::Mixed),
            rounds: 1,
        };
        let mut join = |_, _| member.next_group();
        let mut session = Session::new(machine, &self.settings, &[&largest], rank, 1, &mut join)?;
        session.corrupts = self.corrupt && rank == 0;
        for burst in (0..).take_while(|burst| self.turns.enter(*burst)) {
            let seed = self.settings.seed.wrapping_add(burst as u64);
            session.settings.seed = seed;
            let case = burst::draw(&session.settings, world_size);
            let emit = |event| match event {
                Event::Ended { spent, .. } if rank == 0 => {
                    self.progress(|progress| progress.calls += spent.calls);
                }
                Event::Mismatch { text, .. } => self.progress(|progress| {
                    progress.mismatches += 1;
                    if progress.first.len() < PRINTED {
                        progress.first.push(format!("{case}: {text}"));
                    }
                }),
                _ => {}
            };
            session
                .run_case(burst, &case, &emit)
                .with_context(|| format!("seed {seed}, {case}"))?;
        }
        Ok(())
    }

    /// All ranks; then their calls with RMSNorm, and those of all operations. Returns what these
    /// two parts have found.
    fn run_on<M: Machine>(&self, machine: &M, turns: [&Turns; 2]) -> Result<[Found; 2]> {
        run_threads(self.world_size, 1, |member| self.run(machine, member))?;
        let (settings, world_size, [norms, mixed]) = (&self.settings, self.world_size, turns);
        let wrong = norms::run(machine, settings, world_size, norms, self.corrupt)?;
        let norms = Found {
            calls: norms.count() as u64,
            wrong,
        };
        let mixed = mixed::run(machine, settings, world_size, mixed, self.corrupt)?;
        Ok([norms, mixed])
    }
}

/// Soaks each world size. Returns whether every result was right.
pub(crate) fn run(args: &SoakArgs) -> Result<bool> {
    give_each_stream_a_queue();
    let largest = args.world_sizes.iter().copied().max();
    let largest = largest.context("--world-size: a group of one launches nothing")?;
    let decision = decide(args.device, largest)?;
    let (device, seed) = (decision.kind, args.seed);
    println!("device: {}", decision.line);
    println!("seed {seed}");
    let share = Duration::from_secs(args.seconds) / args.world_sizes.len() as u32;
    let grid = match device {
        DeviceKind::Cuda => GridKind::Full,
        DeviceKind::Emulator => GridKind::Smoke,
    };
    let (mut calls, mut mismatches) = (0, 0);
    for &world_size in &args.world_sizes {
        let soak = Soak {
            settings: Settings {
                timeout: TIMEOUT,
                start_epochs: START_EPOCHS,
                ..Settings::of(device, grid, [world_size], seed)
            },
            world_size,
            corrupt: args.corrupt,
            turns: Turns::new(Instant::now() + share / 2),
            progress: Mutex::default(),
        };
        let norms = Turns::new(Instant::now() + share * 3 / 4);
        let mixed = Turns::new(Instant::now() + share);
        let turns = [&norms, &mixed];
        let found = match device {
            DeviceKind::Cuda => soak.run_on(&Gpus::open(world_size)?.with_checks()?, turns),
            DeviceKind::Emulator => soak.run_on(&Emulators::with_delayed_blocks(), turns),
        }
        .with_context(|| format!("ws{world_size}"))?;
        soak.progress(|progress| {
            println!(
                "ws{world_size}: {} calls in {} bursts, {} mismatches",
                progress.calls,
                soak.turns.count(),
                progress.mismatches
            );
            for mismatch in &progress.first {
                println!("  {mismatch}");
            }
            calls += progress.calls;
            mismatches += progress.mismatches;
        });
        for (part, what) in found.iter().zip(["with RMSNorm", "of all operations"]) {
            println!(
                "ws{world_size}: {} calls {what}, {} mismatches",
                part.calls,
                part.wrong.len()
            );
            for mismatch in part.wrong.iter().take(PRINTED) {
                println!("  {mismatch}");
            }
            calls += part.calls;
            mismatches += part.wrong.len() as u64;
        }
    }
    println!("{calls} calls of each rank, {mismatches} mismatches, seed {seed}");
    Ok(mismatches == 0)
}
