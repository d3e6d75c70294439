//! The ranks of one run as the referee sees them: processes that report where they are.

use std::io::Write;
use std::path::Path;
use std::process::{ChildStdin, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use super::rank::{Plant, Role};
use super::scenario::{Phase, Scenario};
use super::words::{Place, Verdict, Word};
use crate::machine::{CONNECTIONS_VARIABLE, DeviceKind};
use crate::ranks::{Heard, RankProcess, listen, rank_command};

/// The deadline of a set-up that is not disturbed: long enough for a busy machine.
const UNHURRIED_SET_UP: Duration = Duration::from_secs(60);

/// The deadlines that the ranks are given.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Deadlines {
    /// Of a call.
    pub(crate) call: Duration,
    /// Of set-up, in the phases that end in it.
    pub(crate) set_up: Duration,
    /// How much later than its deadline a survivor may report.
    pub(crate) grace: Duration,
    /// For steps without a deadline of their own: starting, joining, ending.
    pub(crate) patience: Duration,
}

impl Deadlines {
    pub(super) fn of(&self, phase: Phase) -> Duration {
        match phase {
            Phase::Rendezvous | Phase::SetUp => self.set_up,
            // Teardown waits no longer than a call.
            _ => self.call,
        }
    }
}

/// What tests ask for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Planted {
    pub(crate) plant: Option<Plant>,
    pub(crate) one_device: bool,
}

/// A rank, and what it has said.
pub(super) struct Rank {
    pub(super) process: RankProcess,
    stdin: Option<ChildStdin>,
    pub(super) words: Vec<(Instant, Word)>,
    pub(super) has_closed: bool,
}

impl Rank {
    pub(super) fn is_at(&self, place: Place) -> bool {
        self.words
            .iter()
            .any(|(_, word)| matches!(word, Word::At(at) if *at == place))
    }

    /// What became of its communicator, and when it said so.
    pub(super) fn outcome(&self) -> Option<(Instant, Option<&Verdict>)> {
        self.words.iter().find_map(|(at, word)| match word {
            Word::Failed(verdict) => Some((*at, Some(verdict))),
            Word::Completed => Some((*at, None)),
            _ => None,
        })
    }

    /// Lets a held rank continue.
    pub(super) fn release(&mut self) {
        if let Some(stdin) = &mut self.stdin {
            // A rank that is no longer held does not read this.
            let _ = writeln!(stdin).and_then(|()| stdin.flush());
        }
    }
}

/// All ranks of a run.
pub(super) struct Ranks {
    pub(super) ranks: Vec<Rank>,
    heard: Receiver<(u32, Instant, Option<Word>)>,
}

impl Ranks {
    pub(super) fn start(
        device: DeviceKind,
        scenario: &Scenario,
        deadlines: &Deadlines,
        planted: &Planted,
        directory: &Path,
    ) -> Result<Ranks> {
        let (sender, heard) = channel();
        let ranks = (0..scenario.world_size)
            .map(|rank| {
                let role = Role {
                    device,
                    directory: directory.to_owned(),
                    rank,
                    world_size: scenario.world_size,
                    phase: scenario.phase,
                    route: scenario.route,
                    held_at: held_at(scenario, rank),
                    timeout: deadlines.call,
                    setup_timeout: match scenario.phase {
                        Phase::Rendezvous | Phase::SetUp => deadlines.set_up,
                        _ => UNHURRIED_SET_UP,
                    },
                    survivor: (rank != scenario.victim).then(|| {
                        let new_rank = rank - u32::from(rank > scenario.victim);
                        (new_rank, scenario.world_size - 1)
                    }),
                    plant: planted.plant,
                    one_device: planted.one_device,
                };
                start(&role, sender.clone())
            })
            .collect::<Result<_>>()?;
        Ok(Ranks { ranks, heard })
    }

    /// Listens until `done`, at most `patience`.
    pub(super) fn await_that(
        &mut self,
        what: &str,
        patience: Duration,
        done: impl Fn(&[Rank]) -> bool,
    ) -> Result<()> {
        let deadline = Instant::now() + patience;
        while !done(&self.ranks) {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.heard.recv_timeout(left) {
                Ok((rank, at, Some(word))) => {
                    if let Word::Broken(reason) = &word {
                        bail!("rank {rank}: {reason}");
                    }
                    self.ranks[rank as usize].words.push((at, word));
                }
                Ok((rank, _, None)) => self.ranks[rank as usize].has_closed = true,
                Err(RecvTimeoutError::Timeout) => bail!("{what} within {patience:?}"),
                Err(RecvTimeoutError::Disconnected) => {
                    ensure!(done(&self.ranks), "{what} before they ended");
                }
            }
        }
        Ok(())
    }
}

/// The place where a rank waits for the referee.
pub(super) fn held_at(scenario: &Scenario, rank: u32) -> Option<Place> {
    let place = match scenario.phase {
        Phase::Rendezvous => Place::Joining,
        Phase::SetUp => Place::SetUp(scenario.step),
        Phase::BeforeFirstCall => return Some(Place::Built),
        Phase::InsideCall | Phase::GraphReplay => return None,
        Phase::Teardown => Place::Leaving,
    };
    (rank == scenario.held).then_some(place)
}

fn start(role: &Role, heard: Sender<(u32, Instant, Option<Word>)>) -> Result<Rank> {
    let mut command = rank_command("kill-rank")?;
    command
        .args(["--role", &serde_json::to_string(role)?])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped());
    if std::env::var_os(CONNECTIONS_VARIABLE).is_none() {
        // A process here has one rank and thus one stream; a context with more connections takes
        // longer to create.
        command.env(CONNECTIONS_VARIABLE, "4");
    }
    let rank = role.rank;
    let mut process = RankProcess::spawn(&mut command, rank)?;
    let stdout = process.child.stdout.take().context("no pipe")?;
    let stdin = process.child.stdin.take();
    listen(stdout, move |line| {
        let word = match line {
            Heard::Word(word) => Some(word),
            Heard::Other(line) => Some(Word::Broken(format!("not a word: {line}"))),
            Heard::Closed => None,
        };
        let _ = heard.send((rank, Instant::now(), word));
    });
    Ok(Rank {
        process,
        stdin,
        words: Vec::new(),
        has_closed: false,
    })
}
