//! The ranks as the runner sees them: threads or processes that send events and end.

use std::collections::{HashMap, VecDeque};
use std::io::Read;
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use anyhow::{Context, Result};
use peersum::Rendezvous;

use super::case::Case;
use super::event::Event;
use super::machine::{CheckedGpus, GridMachine};
use super::rank;
use super::settings::Settings;
use crate::machine::{CONNECTIONS_VARIABLE, DeviceKind, Emulators};
use crate::ranks::{Heard, ParentArgs, RankProcess, listen, rank_command, say};

/// How much of a process's stderr is kept for the report.
const STDERR_KEPT_BYTES: usize = 64 << 10;

/// A message to the runner.
#[derive(Debug)]
pub(crate) enum Message {
    Event(u32, Event),
    /// A process closed its stdout: it has ended or is about to.
    Closed(u32),
}

/// One rank.
pub(crate) enum Worker {
    Thread,
    Process(Box<Process>),
}

/// A rank that is a process.
pub(crate) struct Process {
    process: RankProcess,
    stderr: Arc<Mutex<VecDeque<u8>>>,
    stderr_reader: Option<thread::JoinHandle<()>>,
}

impl Worker {
    /// Whether it has ended by itself, and how.
    pub(crate) fn ended(&mut self) -> Option<ExitStatus> {
        match self {
            Worker::Thread => None,
            Worker::Process(worker) => worker.process.ended(),
        }
    }

    /// Ends a process at once and waits for it. A thread cannot be ended; it ends with the program.
    pub(crate) fn kill(&mut self) {
        if let Worker::Process(worker) = self {
            worker.process.kill();
        }
    }

    /// The end of what the process wrote to stderr.
    pub(crate) fn stderr(&mut self) -> String {
        let Worker::Process(worker) = self else {
            return String::new();
        };
        // When the process has ended, its pipe is closed and the reader ends.
        if worker.process.ended().is_some()
            && let Some(reader) = worker.stderr_reader.take()
        {
            let _ = reader.join();
        }
        let kept = worker.stderr.lock().unwrap_or_else(PoisonError::into_inner);
        let bytes: Vec<u8> = kept.iter().copied().collect();
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

/// Starts one thread a rank, all on `machine`.
pub(crate) fn start_threads<M: GridMachine>(
    machine: Arc<M>,
    settings: &Arc<Settings>,
    cases: &Arc<Vec<Case>>,
    messages: &Sender<Message>,
) -> Result<Vec<Worker>> {
    let ranks = ranks(settings);
    // For each rank the rendezvous of all groups that it will join.
    let mut recipes: Vec<HashMap<(u32, usize), Rendezvous>> = Vec::new();
    recipes.resize_with(ranks as usize, HashMap::new);
    for &world_size in &settings.world_sizes {
        // Slot 0 is the group of most cases, slots 1 and 2 are those of cases with two
        // communicators.
        for slot in 0..3 {
            let all = Rendezvous::threads(world_size);
            for (recipes, rendezvous) in recipes.iter_mut().zip(all) {
                recipes.insert((world_size, slot), rendezvous);
            }
        }
    }
    recipes
        .into_iter()
        .enumerate()
        .map(|(rank, mut recipes)| {
            let rank = rank as u32;
            let (machine, settings, cases) = (
                Arc::clone(&machine),
                Arc::clone(settings),
                Arc::clone(cases),
            );
            let messages = messages.clone();
            thread::Builder::new()
                .name(format!("rank {rank}"))
                .spawn(move || {
                    let emit = |event| {
                        // The runner may have ended already.
                        let _ = messages.send(Message::Event(rank, event));
                    };
                    let mut rendezvous = |world_size: u32, slot: usize| {
                        let rendezvous = recipes.remove(&(world_size, slot));
                        rendezvous.context("a group is formed once")
                    };
                    let outcome =
                        rank::run(&*machine, &settings, &cases, rank, &mut rendezvous, &emit);
                    emit(Event::last(&outcome));
                })
                .with_context(|| format!("starting the thread of rank {rank}"))?;
            Ok(Worker::Thread)
        })
        .collect()
}

/// The ranks that the largest group needs.
pub(crate) fn ranks(settings: &Settings) -> u32 {
    settings.world_sizes.iter().copied().max().unwrap_or(0)
}

/// Starts one process a rank. Call it from a thread that outlives them: they are killed when it
/// ends.
pub(crate) fn start_processes(
    settings: &Settings,
    directory: &Path,
    messages: &Sender<Message>,
) -> Result<Vec<Worker>> {
    let settings_json = serde_json::to_string(settings)?;
    (0..ranks(settings))
        .map(|rank| {
            let mut command = rank_command("rank")?;
            command
                .args(["--rank", &rank.to_string()])
                .arg("--directory")
                .arg(directory)
                .args(["--settings", &settings_json])
                .env(CONNECTIONS_VARIABLE, "32")
                .stdin(Stdio::null())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped());
            let mut process = RankProcess::spawn(&mut command, rank)?;
            let stdout = process.child.stdout.take().context("no pipe")?;
            let messages = messages.clone();
            listen(stdout, move |heard| {
                let message = match heard {
                    Heard::Word(event) => Message::Event(rank, event),
                    Heard::Other(_) => return,
                    Heard::Closed => Message::Closed(rank),
                };
                let _ = messages.send(message);
            });
            let kept = Arc::new(Mutex::new(VecDeque::new()));
            let stderr_reader = thread::spawn({
                let (stderr, kept) = (process.child.stderr.take(), Arc::clone(&kept));
                move || keep_last(stderr, &kept)
            });
            Ok(Worker::Process(Box::new(Process {
                process,
                stderr: kept,
                stderr_reader: Some(stderr_reader),
            })))
        })
        .collect()
}

fn keep_last(source: Option<impl Read>, kept: &Mutex<VecDeque<u8>>) {
    let Some(mut source) = source else { return };
    let mut buffer = [0; 4096];
    while let Ok(count @ 1..) = source.read(&mut buffer) {
        let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.extend(&buffer[..count]);
        let excess = kept.len().saturating_sub(STDERR_KEPT_BYTES);
        kept.drain(..excess);
    }
}

/// The flags of `rank`, the process that the runner starts.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct RankArgs {
    #[arg(long)]
    rank: u32,
    #[command(flatten)]
    parent: ParentArgs,
    /// Where the ranks meet.
    #[arg(long)]
    directory: std::path::PathBuf,
    /// [`Settings`] as JSON.
    #[arg(long)]
    settings: String,
}

/// Runs one rank as a process.
pub(crate) fn run_process(args: &RankArgs) -> Result<()> {
    args.parent.end_with_it()?;
    let settings: Settings =
        serde_json::from_str(&args.settings).context("reading the settings")?;
    let cases = super::plan::cases(&settings);
    let emit = |event: Event| say(&event);
    let mut rendezvous = |world_size: u32, slot: usize| {
        let group = format!("ws{world_size}-{slot}");
        Ok(Rendezvous::unix(
            &args.directory,
            group,
            args.rank,
            world_size,
        ))
    };
    let (rank, join): (_, &mut dyn FnMut(_, _) -> _) = (args.rank, &mut rendezvous);
    let outcome = match settings.device {
        DeviceKind::Cuda => CheckedGpus::open(ranks(&settings))
            .and_then(|gpus| rank::run(&gpus, &settings, &cases, rank, join, &emit)),
        DeviceKind::Emulator => {
            let emulators = Emulators::with_delayed_blocks();
            rank::run(&emulators, &settings, &cases, rank, join, &emit)
        }
    };
    emit(Event::last(&outcome));
    if outcome.is_err() {
        std::process::exit(1);
    }
    Ok(())
}
