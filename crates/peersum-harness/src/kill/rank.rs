//! One rank, in a process of its own: it joins, calls and checks until something happens to the
//! group, says what it was told, forms a new group with the other survivors, and looks at what it
//! still holds.

use std::io::BufRead;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use half::bf16;
use peersum::device::DeviceStream;
use peersum::dispatch::Plan;
use peersum::loader::LoadPolicy;
use peersum::{Communicator, Error, Rendezvous, SetupStep, SymmetricBuffer};
use tracing_subscriber::layer::SubscriberExt;

use super::holdings::Holdings;
use super::run::{Plant, Run};
use super::scenario::Phase;
use super::words::{Place, Verdict, Word};
use super::work::{self, ELEMENTS, PATIENCE};
use crate::machine::{DeviceKind, Emulators, Gpus, Machine};
use crate::ranks::{RankArgs, say};

/// The deadline of calls and set-ups that are not disturbed: long enough for a busy machine.
const UNDISTURBED: Duration = Duration::from_secs(60);

/// What a rank knows.
#[derive(Clone)]
struct Role {
    run: Run,
    rank: u32,
    /// Where the ranks meet.
    directory: PathBuf,
}

/// Runs one rank.
///
/// # Errors
/// The process cannot start as a rank. Later errors are reported to the referee.
pub(crate) fn run(args: &RankArgs) -> Result<()> {
    let role = Role {
        run: args.begin()?,
        rank: args.rank,
        directory: args.directory.clone(),
    };
    let outcome = match role.run.device {
        DeviceKind::Cuda => on_gpu(&role),
        DeviceKind::Emulator => {
            let device = match role.run.planted.one_device {
                true => 0,
                false => role.rank,
            };
            play(&role, &|| Emulators::default().stream(device))
        }
    };
    if let Err(error) = outcome {
        say(&Word::Broken(format!("{error:#}")));
        std::process::exit(1);
    }
    Ok(())
}

fn on_gpu(role: &Role) -> Result<()> {
    let gpu = Gpus::open_for(role.rank)?;
    let stream = || gpu.stream(role.rank);
    // The driver opens its files on first use; that must not count as a leak later.
    let world_size = role.run.scenario.world_size;
    undisturbed(role, "before", role.rank, world_size, &stream)?;
    play(role, &stream)
}

/// Says where this rank is, and waits there if it is held.
fn arrive(role: &Role, place: Place) {
    say(&Word::At(place));
    if role.run.held_at(role.rank) == Some(place) {
        let _ = std::io::stdin().lock().read_line(&mut String::new());
    }
}

fn play<S: DeviceStream>(role: &Role, stream: &dyn Fn() -> Result<S>) -> Result<()> {
    let before = Holdings::now()?;
    disturbed(role, &stream()?)?;
    let survivors = role.run.scenario.world_size - 1;
    if let Some(rank) = role.run.survivor(role.rank).filter(|_| survivors > 1) {
        undisturbed(role, "survivors", rank, survivors, stream)?;
    }
    say(&Word::Left {
        surplus: before.surplus()?,
    });
    Ok(())
}

/// A rank of the group in which the victim is hit.
fn disturbed<S: DeviceStream>(role: &Role, stream: &S) -> Result<()> {
    let scenario = &role.run.scenario;
    let has = |plant| role.run.has(plant, role.rank);
    if has(Plant::Litter) {
        std::fs::write(role.directory.join("litter"), "")?;
    }
    arrive(role, Place::Joining);
    let steps = tracing_subscriber::registry().with(Steps({
        let role = role.clone();
        move |step| arrive(&role, Place::SetUp(step))
    }));
    let built = tracing::subscriber::with_default(steps, || {
        let world_size = scenario.world_size;
        let rendezvous = Rendezvous::unix(&role.directory, "disturbed", role.rank, world_size);
        let set_up = match scenario.phase {
            Phase::Rendezvous | Phase::SetUp => role.run.deadlines.set_up,
            _ => UNDISTURBED,
        };
        build(role, stream, rendezvous, role.run.deadlines.call, set_up)
    });
    let hang = || {
        if has(Plant::Hang) {
            std::thread::sleep(PATIENCE);
        }
    };
    let (mut communicator, symmetric) = match built {
        Ok(built) => built,
        Err(error) => {
            hang();
            say(&Word::Failed(Verdict::new(&error)));
            return Ok(());
        }
    };
    let mut calls = work::calls_of(&communicator, scenario, symmetric)?;
    calls.corrupt(has(Plant::Corrupt));
    arrive(role, Place::Built);
    let failure = match scenario.phase {
        Phase::Teardown => work::make(&calls, &mut communicator, Some(3))?,
        Phase::GraphReplay => work::replay(&calls, &mut communicator)?,
        _ => work::make(&calls, &mut communicator, None)?,
    };
    hang();
    match failure {
        Some(error) => {
            say(&Word::Failed(Verdict::new(&error)));
            drop(communicator);
        }
        None => {
            arrive(role, Place::Leaving);
            drop(communicator);
            say(&Word::Completed);
        }
    }
    if has(Plant::Leak) {
        std::mem::forget(calls);
    }
    Ok(())
}

/// A group without a victim: it shows that the process and its device still work.
fn undisturbed<S: DeviceStream>(
    role: &Role,
    group: &str,
    rank: u32,
    world_size: u32,
    stream: &dyn Fn() -> Result<S>,
) -> Result<()> {
    let rendezvous = Rendezvous::unix(&role.directory, group, rank, world_size);
    let stream = stream()?;
    let (mut communicator, symmetric) = build(role, &stream, rendezvous, UNDISTURBED, UNDISTURBED)
        .with_context(|| format!("building group {group:?}"))?;
    let calls = work::calls_of(&communicator, &role.run.scenario, symmetric)?;
    let failure = work::make(&calls, &mut communicator, Some(2))?;
    ensure!(failure.is_none(), "group {group:?} got {failure:?}");
    drop(communicator);
    Ok(())
}

type Built<D> = (Communicator<D>, Option<SymmetricBuffer<bf16, D>>);

fn build<S: DeviceStream>(
    role: &Role,
    stream: &S,
    rendezvous: Rendezvous,
    timeout: Duration,
    setup_timeout: Duration,
) -> Result<Built<S::Device>, Error> {
    let mut builder = Communicator::builder()
        .rendezvous(rendezvous)
        .max_bytes(64 << 10)
        .timeout(timeout)
        .setup_timeout(setup_timeout);
    if role.run.device == DeviceKind::Emulator {
        builder = builder.load_policy(LoadPolicy::default()).max_blocks(1);
    }
    let mut communicator = builder.build(stream)?;
    // On the emulator every thread of a grid is a thread of the host, and all of them spin.
    let (blocks, threads) = match role.run.device {
        DeviceKind::Cuda => (8, 128),
        DeviceKind::Emulator => (1, 8),
    };
    communicator.force_plan(Some(Plan {
        route: role.run.scenario.route,
        blocks,
        threads,
    }))?;
    let symmetric = match role.run.scenario.route.is_symmetric() {
        true => Some(communicator.symmetric_alloc(ELEMENTS)?),
        false => None,
    };
    Ok((communicator, symmetric))
}

/// Listens to the set-up steps of `peersum`.
struct Steps<F>(F);

impl<S: tracing::Subscriber, F: Fn(SetupStep) + 'static> tracing_subscriber::Layer<S> for Steps<F> {
    fn on_event(&self, event: &tracing::Event<'_>, _: tracing_subscriber::layer::Context<'_, S>) {
        if let Some(step) = SetupStep::of(event) {
            (self.0)(step);
        }
    }
}
