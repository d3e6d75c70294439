//! The runner: starts the ranks, collects their events, and ends them if one fails or all are
//! silent.

use std::process::ExitStatus;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::case::Case;
use super::event::Event;
use super::settings::{RankKind, Settings};
use super::tally::Tally;
use super::workers::{self, Worker};
use crate::machine::{DeviceKind, Emulators, Gpus};
use crate::ranks::{Heard, meeting_directory};

/// How often the runner looks at the clock.
const LOOK_INTERVAL: Duration = Duration::from_millis(50);

/// How long ranks may be silent in addition to the timeout of a call: cases contain pauses, and the
/// machine may be busy.
const SILENCE: Duration = Duration::from_secs(15);

/// After the first failure, how long the other ranks may take to report theirs.
const LAST_WORDS: Duration = Duration::from_millis(1500);

/// Runs all cases. `progress` gets the line of each group when the group is complete.
pub(crate) fn run<'a>(
    settings: &'a Arc<Settings>,
    cases: &'a [Case],
    progress: &mut dyn FnMut(&str),
) -> Result<Tally<'a>> {
    let (sender, events) = channel();
    let directory = meeting_directory("grid")?;
    let workers = match (settings.ranks, settings.device) {
        (RankKind::Processes, _) => workers::start_processes(settings, directory.path(), &sender)?,
        (RankKind::Threads, DeviceKind::Cuda) => {
            let gpus = Gpus::open(settings.most_ranks())?.with_checks()?;
            workers::start_threads(&Arc::new(gpus), settings, &sender)?
        }
        (RankKind::Threads, DeviceKind::Emulator) => {
            let emulators = Emulators::with_delayed_blocks();
            workers::start_threads(&Arc::new(emulators), settings, &sender)?
        }
    };
    let tally = watch(settings, cases, workers, sender, &events, progress);
    directory
        .close()
        .context("removing the directory where the ranks met")?;
    Ok(tally)
}

/// Collects events until every rank is done, or until one has failed and the others have had time
/// to report. No process is left running.
pub(crate) fn watch<'a>(
    settings: &'a Settings,
    cases: &'a [Case],
    mut workers: Vec<Worker>,
    sender: Sender<Heard<Event>>,
    events: &Receiver<Heard<Event>>,
    progress: &mut dyn FnMut(&str),
) -> Tally<'a> {
    drop(sender);
    let mut tally = Tally::new(settings, cases, workers.len());
    let mut done = vec![false; workers.len()];
    let patience = settings.timeout + SILENCE;
    // Ranks of a large group wait silently while small groups run, so the run hangs only if all are
    // silent.
    let mut last_heard = Instant::now();
    let mut failed_at: Option<Instant> = None;
    // What ended ranks: processes that ended before they were done, and errors that ranks reported.
    let (mut ends, mut errors) = (Vec::new(), Vec::new());
    while !done.iter().all(|done| *done)
        && failed_at.is_none_or(|at| at.elapsed() <= LAST_WORDS)
        && (failed_at.is_some() || last_heard.elapsed() <= patience)
    {
        let Ok((rank, at, event)) = events.recv_timeout(LOOK_INTERVAL) else {
            continue;
        };
        last_heard = at;
        if let Some(line) = event.as_ref().and_then(|event| tally.take(rank, event)) {
            progress(&line);
        }
        let configuration = tally.last_configuration(rank);
        match event {
            Some(Event::Done) => done[rank] = true,
            Some(Event::Failed { .. }) if done[rank] => {}
            Some(Event::Failed { error }) => {
                done[rank] = true;
                errors.push((rank, format!("failed in {configuration}: {error}")));
                failed_at.get_or_insert_with(Instant::now);
            }
            Some(_) => {}
            None if done[rank] => {}
            None => {
                done[rank] = true;
                let status = workers[rank].ended();
                let status = status.map_or("no status".to_owned(), |it: ExitStatus| it.to_string());
                let end = format!("ended with {status} in {configuration} before it was done");
                ends.push((rank, end));
                failed_at.get_or_insert_with(Instant::now);
            }
        }
    }
    ends.append(&mut errors);
    conclude(&mut tally, &mut workers, &done, ends, patience);
    tally
}

/// Says why the run ended, if it ended early. `ends` says what ended ranks, the cause first. Ends
/// all processes.
fn conclude(
    tally: &mut Tally<'_>,
    workers: &mut [Worker],
    done: &[bool],
    mut ends: Vec<(usize, String)>,
    patience: Duration,
) {
    let explained = !ends.is_empty();
    let since = match explained {
        true => "another rank had failed".to_owned(),
        false => format!("nothing was heard of any rank for {patience:?}"),
    };
    for (rank, worker) in workers.iter_mut().enumerate() {
        worker.kill();
        // A rank outside of a case only waits for a group that will never form.
        if done[rank] || explained && tally.case_of(rank).is_none() {
            continue;
        }
        let what = match worker.is_thread() {
            true => "was left behind",
            false => "was killed",
        };
        let configuration = tally.last_configuration(rank);
        ends.push((rank, format!("{what} in {configuration} ({since})")));
    }
    let Some(&(first, _)) = ends.first() else {
        return;
    };
    let line = |(rank, end): &(usize, String)| {
        let stderr = indented("its stderr", &workers[*rank].stderr());
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
