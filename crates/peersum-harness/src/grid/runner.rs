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
use super::tally::Tally;
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
    progress: &mut dyn FnMut(&str),
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
    progress: &mut dyn FnMut(&str),
) -> Tally<'a> {
    drop(sender);
    let mut tally = Tally::new(settings, cases, workers.len() as u32);
    let mut done = vec![false; workers.len()];
    let mut closed = vec![false; workers.len()];
    let patience = settings.timeout + SILENCE;
    let mut last_heard = vec![Instant::now(); workers.len()];
    let mut failed_at: Option<Instant> = None;
    // What ended ranks: processes that ended before they were done, and errors that ranks reported.
    let (mut ends, mut errors) = (Vec::new(), Vec::new());
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
                        let configuration = tally.last_configuration(rank);
                        errors.push((rank, format!("failed in {configuration}: {error}")));
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
            let configuration = tally.last_configuration(rank);
            let end = format!("ended with {status} in {configuration} before it was done");
            ends.push((rank, end));
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
    ends.append(&mut errors);
    conclude(&mut tally, &mut workers, &done, ends, patience);
    for worker in &mut workers {
        worker.kill();
    }
    tally
}

/// Says why the run ended, if it ended early. `ends` says what ended ranks, the cause first.
fn conclude(
    tally: &mut Tally<'_>,
    workers: &mut [Worker],
    done: &[bool],
    mut ends: Vec<(u32, String)>,
    patience: Duration,
) {
    let explained = !ends.is_empty();
    let since = match explained {
        true => "another rank had failed".to_owned(),
        false => format!("nothing was heard of any rank for {patience:?}"),
    };
    for (rank, worker) in (0..).zip(&mut *workers) {
        // A rank outside of a case only waits for a group that will never form.
        if done[rank as usize] || explained && !tally.is_in_a_case(rank) {
            continue;
        }
        worker.kill();
        let what = match worker {
            Worker::Process(_) => "was killed",
            Worker::Thread => "was left behind",
        };
        let configuration = tally.last_configuration(rank);
        ends.push((rank, format!("{what} in {configuration} ({since})")));
    }
    let Some(&(first, _)) = ends.first() else {
        return;
    };
    let line = |(rank, end): &(u32, String)| {
        let stderr = indented("its stderr", &workers[*rank as usize].stderr());
        format!("rank {rank} {end}{stderr}")
    };
    let lines: Vec<String> = ends.iter().map(line).collect();
    tally.fail(first, lines.join("\n"));
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
