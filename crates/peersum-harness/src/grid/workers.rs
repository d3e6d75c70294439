//! The ranks as the runner sees them: threads or processes that send events and end.

use std::collections::HashMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use peersum::Rendezvous;

use super::case::GroupKind;
use super::event::Event;
use super::rank::{self, Links};
use super::settings::Settings;
use crate::machine::{CONNECTIONS_VARIABLE, DeviceKind, Emulators, Gpus, Machine};
use crate::ranks::{ChildProcess, Heard, RankArgs, listen, rank_command, say};

/// How much of a process's stderr is shown.
const STDERR_SHOWN_BYTES: usize = 64 << 10;

/// How long a process that has closed its stdout may take to end.
const END_PATIENCE: Duration = Duration::from_secs(10);

/// One rank: a thread, or a process whose stderr goes to a file.
pub(crate) struct Worker(Option<(ChildProcess, PathBuf)>);

impl Worker {
    pub(crate) fn is_thread(&self) -> bool {
        self.0.is_none()
    }

    /// How it has ended, for a process that has closed its stdout.
    pub(crate) fn ended(&mut self) -> Option<ExitStatus> {
        let (process, _) = self.0.as_mut()?;
        process.wait_for(END_PATIENCE)
    }

    /// Ends a process at once and waits for it. A thread cannot be ended; it ends with the program.
    pub(crate) fn kill(&mut self) {
        if let Some((process, _)) = &mut self.0 {
            process.kill();
        }
    }

    /// The end of what a process wrote to stderr.
    pub(crate) fn stderr(&self) -> String {
        let file = self.0.as_ref().map(|(_, file)| std::fs::read(file));
        let bytes = file.and_then(Result::ok).unwrap_or_default();
        let shown = &bytes[bytes.len().saturating_sub(STDERR_SHOWN_BYTES)..];
        String::from_utf8_lossy(shown).into_owned()
    }
}

/// Starts one thread a rank, all on `machine`.
pub(crate) fn start_threads<M: Machine>(
    machine: &Arc<M>,
    settings: &Arc<Settings>,
    events: &Sender<Heard<Event>>,
) -> Result<Vec<Worker>> {
    // For each rank the rendezvous of all groups that it will join.
    let mut groups: Vec<HashMap<(u32, usize), Rendezvous>> = Vec::new();
    groups.resize_with(settings.most_ranks() as usize, HashMap::new);
    for &world_size in &settings.world_sizes {
        for slot in 0..=GroupKind::Moves.slot() {
            let all = Rendezvous::threads(world_size);
            for (groups, rendezvous) in groups.iter_mut().zip(all) {
                groups.insert((world_size, slot), rendezvous);
            }
        }
    }
    let barrier = |&size: &u32| (size, Barrier::new(size as usize));
    let barriers: HashMap<u32, Barrier> = settings.world_sizes.iter().map(barrier).collect();
    let barriers = Arc::new(barriers);
    let start = |(rank, mut groups): (usize, HashMap<_, _>)| {
        let (machine, settings) = (Arc::clone(machine), Arc::clone(settings));
        let barriers = Arc::clone(&barriers);
        let events = events.clone();
        let run = move || {
            let emit = |event| {
                // The runner may have ended already.
                let _ = events.send((rank, Instant::now(), Some(event)));
            };
            let mut join = |world_size, slot| {
                let rendezvous = groups.remove(&(world_size, slot));
                rendezvous.context("a group is formed once")
            };
            let links = Links {
                join: &mut join,
                meet: &|world_size| {
                    barriers[&world_size].wait();
                },
            };
            let outcome = rank::run(&*machine, &settings, rank as u32, links, &emit);
            emit(Event::last(&outcome));
        };
        thread::Builder::new()
            .name(format!("rank {rank}"))
            .spawn(run)
            .with_context(|| format!("starting the thread of rank {rank}"))?;
        Ok(Worker(None))
    };
    groups.into_iter().enumerate().map(start).collect()
}

/// Starts one process a rank. Call it from a thread that outlives them: they are killed when it
/// ends.
pub(crate) fn start_processes(
    settings: &Settings,
    directory: &Path,
    events: &Sender<Heard<Event>>,
) -> Result<Vec<Worker>> {
    let start = |rank| {
        let stderr = directory.join(format!("stderr-{rank}"));
        let mut command = rank_command("rank", rank, settings)?;
        command
            .arg("--directory")
            .arg(directory)
            .env(CONNECTIONS_VARIABLE, "32")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(File::create(&stderr).context("making a file for a rank's stderr")?);
        let mut process = ChildProcess::spawn(&mut command)?;
        listen(rank as usize, &mut process, events.clone())?;
        Ok(Worker(Some((process, stderr))))
    };
    (0..settings.most_ranks()).map(start).collect()
}

/// Runs one rank as a process.
pub(crate) fn run_process(args: &RankArgs) -> Result<()> {
    let settings: Settings = args.begin()?;
    let outcome = match settings.device {
        DeviceKind::Cuda => Gpus::open(settings.most_ranks())
            .and_then(Gpus::with_checks)
            .and_then(|gpus| run_on(&gpus, args, &settings)),
        DeviceKind::Emulator => run_on(&Emulators::with_delayed_blocks(), args, &settings),
    };
    say(&Event::last(&outcome));
    if outcome.is_err() {
        std::process::exit(1);
    }
    Ok(())
}

fn run_on<M: Machine>(machine: &M, args: &RankArgs, settings: &Settings) -> Result<()> {
    let mut join = |world_size, slot| {
        let group = format!("ws{world_size}-{slot}");
        Ok(Rendezvous::unix(
            &args.directory,
            group,
            args.rank,
            world_size,
        ))
    };
    let links = Links {
        join: &mut join,
        // A process has no other rank.
        meet: &|_| {},
    };
    rank::run(machine, settings, args.rank, links, &|event| say(&event))
}
