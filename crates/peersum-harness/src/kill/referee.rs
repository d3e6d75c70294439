//! One run: the referee starts the ranks, waits until the victim is in its phase, hits it, and
//! judges what the others report and what is left.

use std::collections::BTreeMap;
use std::os::unix::process::ExitStatusExt;
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use peersum::SetupStep;
use rustix::process::Signal;

use super::leftovers::judge_leftovers;
use super::ranks::{Rank, Ranks};
use super::run::Run;
use super::scenario::{Blow, Phase, Scenario};
use super::words::{Kind, Word};
use crate::ranks::meeting_directory;

/// The findings of a run that passed.
#[derive(Debug, Clone, Default)]
pub(crate) struct Findings {
    /// The time from the blow, or from the release of the held rank, to the last survivor's report.
    pub(crate) longest: Duration,
    /// Survivors' errors by kind.
    pub(crate) kinds: BTreeMap<Kind, usize>,
    /// Whether rank 0 was killed last, so that the next run had to remove its files.
    pub(crate) swept_by_next_run: bool,
}

/// Runs one scenario.
///
/// # Errors
/// The reason why the run did not pass.
pub(crate) fn referee(run: &Run) -> Result<Findings> {
    let directory = meeting_directory("kill")?;
    let mut ranks = Ranks::start(run, directory.path())?;
    let struck = ranks.strike(&run.scenario, run.deadlines.patience)?;
    let mut findings = ranks.judge(run, struck)?;
    drop(ranks);
    findings.swept_by_next_run =
        judge_leftovers(&run.scenario, directory.path(), run.deadlines.patience)?;
    Ok(findings)
}

impl Ranks {
    /// Waits until the victim is in its phase and hits it. Returns the time from which the
    /// survivors' deadlines count: that of the blow, or of the release of the held rank.
    fn strike(&mut self, scenario: &Scenario, patience: Duration) -> Result<Instant> {
        let (victim, held) = (scenario.victim as usize, scenario.held as usize);
        let awaited: Vec<usize> = match scenario.phase {
            Phase::Rendezvous | Phase::BeforeFirstCall => (0..self.ranks.len()).collect(),
            Phase::SetUp | Phase::Teardown => vec![victim, held],
            Phase::InsideCall | Phase::GraphReplay => vec![victim],
        };
        let place = scenario.place();
        self.await_that("the ranks did not come to their phase", patience, |ranks| {
            awaited.iter().all(|rank| ranks[*rank].is_at(place))
        })?;
        let late_blow = scenario.phase == Phase::BeforeFirstCall && !scenario.victim_first;
        if late_blow {
            self.release_survivors(victim);
        }
        if scenario.phase != Phase::BeforeFirstCall || late_blow {
            std::thread::sleep(scenario.delay);
        }
        self.ranks[victim].process.signal(match scenario.blow {
            Blow::Kill => Signal::KILL,
            Blow::Stop => Signal::STOP,
        })?;
        if scenario.blow == Blow::Kill {
            // It must be gone before the ranks that wait for it continue.
            self.ranks[victim].process.wait()?;
        }
        match scenario.phase {
            Phase::BeforeFirstCall if !late_blow => {
                std::thread::sleep(scenario.delay);
                self.release_survivors(victim);
            }
            Phase::Rendezvous | Phase::SetUp | Phase::Teardown => self.ranks[held].release(),
            _ => {}
        }
        Ok(Instant::now())
    }

    fn release_survivors(&mut self, victim: usize) {
        let ranks = self.ranks.iter_mut().enumerate();
        ranks
            .filter(|(rank, _)| *rank != victim)
            .for_each(|(_, process)| process.release());
    }

    /// Judges what every rank says, and how it ends.
    fn judge(&mut self, run: &Run, struck: Instant) -> Result<Findings> {
        let (victim, patience) = (run.scenario.victim as usize, run.deadlines.patience);
        let survivors: Vec<usize> = (0..self.ranks.len())
            .filter(|rank| *rank != victim)
            .collect();
        self.await_that(
            "a survivor did not report",
            run.deadline() + patience,
            |ranks| {
                survivors
                    .iter()
                    .all(|rank| ranks[*rank].outcome().is_some())
            },
        )?;
        let mut findings = Findings::default();
        for &rank in &survivors {
            judge_survivor(run, struck, rank, &self.ranks[rank], &mut findings)?;
        }
        if run.scenario.blow == Blow::Stop {
            self.judge_victim(run)?;
        }
        self.await_that("a survivor did not end", patience, |ranks| {
            ranks.iter().all(|rank| rank.has_closed)
        })?;
        for (rank, heard) in self.ranks.iter_mut().enumerate() {
            let may_be_killed = rank == victim && run.scenario.blow == Blow::Kill;
            judge_end(rank, heard, may_be_killed)?;
        }
        Ok(findings)
    }

    /// Continues a victim that was stopped. It must get an error too; results that it accepted it
    /// has compared with the reference.
    fn judge_victim(&mut self, run: &Run) -> Result<()> {
        let victim = run.scenario.victim as usize;
        self.ranks[victim].process.signal(Signal::CONT)?;
        if run.held_at(run.scenario.victim).is_some() {
            self.ranks[victim].release();
        }
        let what = "the victim did not report when it went on";
        self.await_that(what, run.deadlines.patience, |ranks| {
            ranks[victim].outcome().is_some()
        })?;
        match self.ranks[victim].outcome() {
            Some((_, Some(verdict))) => ensure!(
                verdict.kind != Kind::Other,
                "the victim got an error that does not fit: {verdict:?}"
            ),
            _ => ensure!(
                run.scenario.phase == Phase::Teardown,
                "the victim went on as if nothing had happened"
            ),
        }
        Ok(())
    }
}

/// Judges what a survivor was told, and when.
fn judge_survivor(
    run: &Run,
    struck: Instant,
    rank: usize,
    heard: &Rank,
    findings: &mut Findings,
) -> Result<()> {
    let (scenario, deadline) = (&run.scenario, run.deadline());
    let Some((at, verdict)) = heard.outcome() else {
        bail!("rank {rank} did not report");
    };
    // A survivor may report before this thread has read the clock.
    let took = at.saturating_duration_since(struck);
    findings.longest = findings.longest.max(took);
    ensure!(
        took <= deadline + run.deadlines.grace,
        "rank {rank} reported {took:?} after the blow; its deadline is {deadline:?}: {verdict:?}"
    );
    let Some(verdict) = verdict else {
        ensure!(
            scenario.phase == Phase::Teardown,
            "rank {rank} was told nothing"
        );
        return Ok(());
    };
    ensure!(
        is_fitting(scenario, verdict.kind),
        "rank {rank} got an error that does not fit: {verdict:?}"
    );
    // If a rank stops in set-up, other ranks may be missing in addition, but not instead.
    ensure!(
        verdict.names.contains(&scenario.victim),
        "the error of rank {rank} does not name rank {}: {verdict:?}",
        scenario.victim
    );
    *findings.kinds.entry(verdict.kind).or_insert(0) += 1;
    Ok(())
}

/// Judges how a rank ended, and what it still held.
fn judge_end(rank: usize, heard: &mut Rank, may_be_killed: bool) -> Result<()> {
    let status = heard.process.wait()?;
    ensure!(
        status.success() || may_be_killed && status.signal() == Some(Signal::KILL.as_raw()),
        "rank {rank} ended with {status}"
    );
    let surplus = heard.words.iter().find_map(|(_, word)| match word {
        Word::Left { surplus } => Some(surplus),
        _ => None,
    });
    match surplus {
        Some(surplus) => ensure!(
            surplus.is_empty(),
            "rank {rank} still holds {}",
            surplus.join(", ")
        ),
        None => ensure!(may_be_killed, "rank {rank} ended without a word"),
    }
    Ok(())
}

/// Whether the phase and the blow allow this error. In set-up a killed rank is lost at once,
/// because its connection closes, or is missed at the deadline if it had not connected yet. A
/// stopped rank is missed at the deadline of set-up, or at that of a call if it had taken part in
/// the last exchange. In a call both are missed at the deadline: the device polls memory, which
/// outlives the process that shared it. In teardown there is no error: the results were valid.
fn is_fitting(scenario: &Scenario, kind: Kind) -> bool {
    match scenario.phase {
        Phase::SetUp if scenario.blow == Blow::Stop && scenario.step == SetupStep::Mapped => {
            !matches!(kind, Kind::NotCoResident | Kind::Other)
        }
        Phase::Rendezvous | Phase::SetUp => matches!(kind, Kind::PeerLost | Kind::SetUpTimeout),
        Phase::BeforeFirstCall | Phase::InsideCall | Phase::GraphReplay => {
            matches!(kind, Kind::PeerTimeout | Kind::PeerFailed)
        }
        Phase::Teardown => false,
    }
}
