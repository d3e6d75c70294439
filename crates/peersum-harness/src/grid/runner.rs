//! The runner: starts the ranks, collects their events, and ends them if one fails or all are
//! silent.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::case::Case;
use super::event::Event;
use super::machine::CheckedGpus;
use super::settings::{RankKind, Settings};
use super::tally::{GroupLine, Tally};
use super::workers::{self, Message, Worker, ranks};
use crate::machine::{DeviceKind, Emulators};
use crate::ranks::meeting_directory;

/// How often the runner checks for processes that have ended.
const LOOK_INTERVAL: Duration = Duration::from_millis(50);

/// How long ranks may be silent in addition to the timeout of a call: cases contain pauses, and the
/// machine may be busy.
const SILENCE: Duration = Duration::from_secs(15);

/// After the first failure, how long the other ranks may take to report theirs.
const LAST_WORDS: Duration = Duration::from_millis(1500);

/// Runs all cases. `progress` gets the line of each group when the group is complete.
pub(crate) fn run<'a>(
    settings: &'a Arc<Settings>,
    cases: &'a Arc<Vec<Case>>,
    progress: &mut dyn FnMut(&GroupLine),
) -> Result<Tally<'a>> {
    let (sender, receiver) = channel();
    match settings.ranks {
        RankKind::Threads => {
            let workers = match settings.device {
                DeviceKind::Cuda => {
                    let gpus = Arc::new(CheckedGpus::open(ranks(settings))?);
                    workers::start_threads(gpus, settings, cases, &sender)
                }
                DeviceKind::Emulator => {
                    let emulators = Arc::new(Emulators::with_delayed_blocks());
                    workers::start_threads(emulators, settings, cases, &sender)
                }
            };
            Ok(watch(
                settings, cases, workers?, sender, &receiver, progress,
            ))
        }
        RankKind::Processes => {
            let directory = meeting_directory("grid")?;
            let workers = workers::start_processes(settings, directory.path(), &sender)?;
            let tally = watch(settings, cases, workers, sender, &receiver, progress);
            directory
                .close()
                .context("removing the directory where the ranks met")?;
            Ok(tally)
        }
    }
}

/// Collects events until every rank is done, or until one has failed and the others have had time
/// to report. No process is left running.
pub(crate) fn watch<'a>(
    settings: &'a Settings,
    cases: &'a [Case],
    mut workers: Vec<Worker>,
    sender: Sender<Message>,
    receiver: &Receiver<Message>,
    progress: &mut dyn FnMut(&GroupLine),
) -> Tally<'a> {
    drop(sender);
    let mut tally = Tally::new(settings, cases, workers.len() as u32);
    let mut done = vec![false; workers.len()];
    let mut closed = vec![false; workers.len()];
    let patience = settings.timeout + SILENCE;
    let mut last_heard = vec![Instant::now(); workers.len()];
    let mut failed_at: Option<Instant> = None;
    let mut errors: Vec<(u32, String)> = Vec::new();
    loop {
        match receiver.recv_timeout(LOOK_INTERVAL) {
            Ok(Message::Event(rank, event)) => {
                let at = rank as usize;
                last_heard[at] = Instant::now();
                if let Some(line) = tally.take(rank, &event) {
                    progress(&line);
                }
                match event {
                    Event::Done => done[at] = true,
                    Event::Failed { error } => {
                        done[at] = true;
                        errors.push((rank, error));
                        failed_at.get_or_insert_with(Instant::now);
                    }
                    _ => {}
                }
            }
            Ok(Message::Closed(rank)) => closed[rank as usize] = true,
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {}
        }
        for (rank, worker) in workers.iter_mut().enumerate() {
            // If its output is closed, all its events have been received.
            let Some(status) = worker.ended().filter(|_| closed[rank] && !done[rank]) else {
                continue;
            };
            done[rank] = true;
            let rank = rank as u32;
            let failure = format!(
                "rank {rank} ended with {status} in {} before it was done{}",
                tally.last_configuration(rank),
                indented("its stderr", &worker.stderr())
            );
            tally.fail(rank, failure);
            failed_at.get_or_insert_with(Instant::now);
        }
        if done.iter().all(|done| *done) {
            break;
        }
        if failed_at.is_some_and(|at| at.elapsed() > LAST_WORDS) {
            break;
        }
        // Ranks of a large group wait silently while small groups run, so the run hangs only if all
        // are silent.
        if failed_at.is_none() && last_heard.iter().all(|heard| heard.elapsed() > patience) {
            break;
        }
    }
    conclude(&mut tally, &mut workers, &done, errors, patience);
    for worker in &mut workers {
        worker.kill();
    }
    tally
}

/// Says why the run ended, if it ended early.
fn conclude(
    tally: &mut Tally<'_>,
    workers: &mut [Worker],
    done: &[bool],
    errors: Vec<(u32, String)>,
    patience: Duration,
) {
    let stuck: Vec<u32> = (0..workers.len() as u32)
        .filter(|rank| !done[*rank as usize])
        .collect();
    let Some((first, _)) = errors
        .first()
        .cloned()
        .or_else(|| stuck.first().map(|rank| (*rank, String::new())))
    else {
        return;
    };
    let mut lines = Vec::new();
    for (rank, error) in &errors {
        lines.push(format!(
            "rank {rank} failed in {}: {error}",
            tally.last_configuration(*rank)
        ));
        if let Some(worker) = workers.get_mut(*rank as usize) {
            lines.push(indented("its stderr", &worker.stderr()));
        }
    }
    let explained = !errors.is_empty() || tally.failure().is_some();
    for rank in stuck {
        if explained && !tally.is_in_a_case(rank) {
            // It only waits for a group that will never form.
            continue;
        }
        let worker = &mut workers[rank as usize];
        worker.kill();
        let what = match worker {
            Worker::Process(_) => "was killed",
            Worker::Thread => "was left behind",
        };
        let since = if explained {
            "another rank had failed".to_owned()
        } else {
            format!(
                "nothing was heard of any rank for {:.0} s",
                patience.as_secs_f64()
            )
        };
        lines.push(format!(
            "rank {rank} {what} in {} ({since}){}",
            tally.last_configuration(rank),
            indented("its stderr", &worker.stderr())
        ));
    }
    lines.retain(|line| !line.is_empty());
    let mut whole = tally
        .failure()
        .map(str::to_owned)
        .into_iter()
        .collect::<Vec<_>>();
    whole.extend(lines);
    tally.replace_failure(first, whole.join("\n"));
}

fn indented(what: &str, text: &str) -> String {
    if text.trim().is_empty() {
        return String::new();
    }
    let lines: Vec<String> = text
        .trim_end()
        .lines()
        .map(|line| format!("    {line}"))
        .collect();
    format!("\n  {what}:\n{}", lines.join("\n"))
}
