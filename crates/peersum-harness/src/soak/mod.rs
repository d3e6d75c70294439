//! A soak: calls of random size, alignment, algorithm, mode and delay for a given time. The bits of
//! every result are compared. Half of the time is for all-reduces, a quarter for calls with RMSNorm
//! and the last quarter for calls of all operations behind each other.

mod mixed;
mod norms;
mod part;
mod sums;

use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::grid::settings::{GridKind, Settings, parse_world_sizes, random_seed};
use crate::machine::{
    DeviceChoice, DeviceKind, Emulators, Gpus, Machine, decide, give_each_stream_a_queue,
};
use part::{Found, Part, Soak};

/// In the first bursts the counters of both families wrap at 32 bits, and their sum at 16.
const START_EPOCHS: (u32, u64) = (u32::MAX - 20, u32::MAX as u64 - 12);
/// How long a call may wait for a peer.
const TIMEOUT: Duration = Duration::from_secs(30);

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

/// All parts of the soak of one world size, one after the other. Returns what each has found.
fn run_parts<M: Machine>(
    machine: &M,
    soak: &Soak,
    time: Duration,
) -> Result<[(&'static str, Found); 3]> {
    let began = Instant::now();
    let part = |quarters| Part::new(soak.settings.seed, began + time * quarters / 4);
    let (all_reduces, with_norms, of_all) = (part(2), part(3), part(4));
    sums::run(machine, soak, &all_reduces)?;
    norms::run(machine, soak, &with_norms)?;
    mixed::run(machine, soak, &of_all)?;
    Ok([
        ("", all_reduces.into_found()),
        (" with RMSNorm", with_norms.into_found()),
        (" of all operations", of_all.into_found()),
    ])
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
        };
        let parts = match device {
            DeviceKind::Cuda => run_parts(&Gpus::open(world_size)?.with_checks()?, &soak, share),
            DeviceKind::Emulator => run_parts(&Emulators::with_delayed_blocks(), &soak, share),
        }
        .with_context(|| format!("ws{world_size}"))?;
        for (what, found) in parts {
            println!(
                "ws{world_size}: {} calls{what}, {} mismatches",
                found.calls, found.mismatches
            );
            for mismatch in &found.first {
                println!("  {mismatch}");
            }
            calls += found.calls;
            mismatches += found.mismatches;
        }
    }
    println!("{calls} calls of each rank, {mismatches} mismatches, seed {seed}");
    Ok(mismatches == 0)
}
