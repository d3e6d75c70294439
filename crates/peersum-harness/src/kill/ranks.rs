//! The ranks of one run as the referee sees them: processes that report where they are.

use std::io::Write;
use std::path::Path;
use std::process::{ChildStdin, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use super::role::{Deadlines, Planted, Role};
use super::scenario::Scenario;
use super::words::{Place, Verdict, Word};
use crate::machine::{CONNECTIONS_VARIABLE, DeviceKind};
use crate::ranks::{Heard, RankProcess, listen, rank_command};

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
                    scenario: *scenario,
                    deadlines: *deadlines,
                    planted: *planted,
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
