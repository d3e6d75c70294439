//! One run: the referee starts the ranks, waits until the victim is in its phase, hits it, and
//! judges what the others report and what is left.

use std::collections::BTreeMap;
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use rustix::process::Signal;

use super::leftovers::judge_leftovers;
use super::ranks::{Rank, Ranks};
use super::role::{Deadlines, Planted, held_at};
use super::scenario::{Blow, Phase, Scenario, Step};
use super::words::{Kind, Place, Word};
use crate::machine::DeviceKind;
use crate::ranks::meeting_directory;

/// The findings of a run that passed.
#[derive(Debug, Clone)]
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
pub(crate) fn run(
    device: DeviceKind,
    scenario: &Scenario,
    deadlines: &Deadlines,
    planted: &Planted,
) -> Result<Findings> {
    let directory = meeting_directory("kill")?;
    let mut ranks = Ranks::start(device, scenario, deadlines, planted, directory.path())?;
    let struck = ranks.strike(scenario, deadlines.patience)?;
    let findings = ranks.judge(scenario, deadlines, struck)?;
    drop(ranks);
    let swept_by_next_run = judge_leftovers(scenario, directory.path(), deadlines.patience)?;
    Ok(Findings {
        swept_by_next_run,
        ..findings
    })
}

impl Ranks {
    /// Waits until the victim is in its phase and hits it. Returns the time from which the
    /// survivors' deadlines count: that of the blow, or of the release of the held rank.
    fn strike(&mut self, scenario: &Scenario, patience: Duration) -> Result<Instant> {
        let (victim, held) = (scenario.victim as usize, scenario.held as usize);
        let all = |place| move |ranks: &[Rank]| ranks.iter().all(|rank| rank.is_at(place));
        let both =
            |place| move |ranks: &[Rank]| ranks[victim].is_at(place) && ranks[held].is_at(place);
        let what = "the ranks did not come to their phase";
        match scenario.phase {
            Phase::Rendezvous => self.await_that(what, patience, all(Place::Joining))?,
            Phase::SetUp => self.await_that(what, patience, both(Place::SetUp(scenario.step)))?,
            Phase::BeforeFirstCall => self.await_that(what, patience, all(Place::Built))?,
            Phase::InsideCall | Phase::GraphReplay => {
                self.await_that(what, patience, |ranks| ranks[victim].is_at(Place::Calling))?;
            }
            Phase::Teardown => self.await_that(what, patience, both(Place::Leaving))?,
        }
        let late_blow = scenario.phase == Phase::BeforeFirstCall && !scenario.victim_first;
        if late_blow {
            self.release_survivors(scenario);
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
                self.release_survivors(scenario);
            }
            Phase::Rendezvous | Phase::SetUp | Phase::Teardown => self.ranks[held].release(),
            _ => {}
        }
        Ok(Instant::now())
    }

    fn release_survivors(&mut self, scenario: &Scenario) {
        for (rank, process) in (0..).zip(&mut self.ranks) {
            if rank != scenario.victim {
                process.release();
            }
        }
    }

    /// Judges what every rank says, and how it ends.
    fn judge(
        &mut self,
        scenario: &Scenario,
        deadlines: &Deadlines,
        struck: Instant,
    ) -> Result<Findings> {
        let victim = scenario.victim;
        let patience = deadlines.of(scenario.phase) + deadlines.patience;
        self.await_that("a survivor did not report", patience, |ranks| {
            let mut survivors = (0..).zip(ranks).filter(|(rank, _)| *rank != victim);
            survivors.all(|(_, rank)| rank.outcome().is_some())
        })?;
        let mut findings = Findings {
            longest: Duration::ZERO,
            kinds: BTreeMap::new(),
            swept_by_next_run: false,
        };
        for (rank, heard) in (0..).zip(&self.ranks) {
            if rank != victim {
                judge_survivor(scenario, deadlines, struck, rank, heard, &mut findings)?;
            }
        }
        self.judge_victim(scenario, deadlines.patience)?;
        self.await_that("a survivor did not end", deadlines.patience, |ranks| {
            ranks.iter().all(|rank| rank.has_closed)
        })?;
        for (rank, heard) in (0..).zip(&mut self.ranks) {
            let may_be_killed = rank == victim && scenario.blow == Blow::Kill;
            judge_end(rank, heard, may_be_killed)?;
        }
        Ok(findings)
    }

    /// Continues a victim that was stopped. It must get an error too; results that it accepted it
    /// has compared with the reference.
    fn judge_victim(&mut self, scenario: &Scenario, patience: Duration) -> Result<()> {
        if scenario.blow == Blow::Kill {
            return Ok(());
        }
        let victim = scenario.victim as usize;
        self.ranks[victim].process.signal(Signal::CONT)?;
        if held_at(scenario, scenario.victim).is_some() {
            self.ranks[victim].release();
        }
        self.await_that(
            "the victim did not report when it went on",
            patience,
            |ranks| ranks[victim].outcome().is_some(),
        )?;
        match self.ranks[victim].outcome() {
            Some((_, Some(verdict))) => ensure!(
                verdict.kind != Kind::Other,
                "the victim got an error that does not fit: {verdict:?}"
            ),
            _ => ensure!(
                scenario.phase == Phase::Teardown,
                "the victim went on as if nothing had happened"
            ),
        }
        Ok(())
    }
}

/// Judges what a survivor was told, and when.
fn judge_survivor(
    scenario: &Scenario,
    deadlines: &Deadlines,
    struck: Instant,
    rank: u32,
    heard: &Rank,
    findings: &mut Findings,
) -> Result<()> {
    let deadline = deadlines.of(scenario.phase);
    let Some((at, verdict)) = heard.outcome() else {
        bail!("rank {rank} did not report");
    };
    // A survivor may report before this thread has read the clock.
    let took = at.saturating_duration_since(struck);
    findings.longest = findings.longest.max(took);
    ensure!(
        took <= deadline + deadlines.grace,
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
fn judge_end(rank: u32, heard: &mut Rank, may_be_killed: bool) -> Result<()> {
    let status = heard.process.wait()?;
    ensure!(
        status.success() || may_be_killed && ended_by_kill(status),
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
        Phase::SetUp if scenario.blow == Blow::Stop && scenario.step == Step::Mapped => {
            !matches!(kind, Kind::NotCoResident | Kind::Other)
        }
        Phase::Rendezvous | Phase::SetUp => matches!(kind, Kind::PeerLost | Kind::SetUpTimeout),
        Phase::BeforeFirstCall | Phase::InsideCall | Phase::GraphReplay => {
            matches!(kind, Kind::PeerTimeout | Kind::PeerFailed)
        }
        Phase::Teardown => false,
    }
}

fn ended_by_kill(status: ExitStatus) -> bool {
    std::os::unix::process::ExitStatusExt::signal(&status) == Some(Signal::KILL.as_raw())
}
