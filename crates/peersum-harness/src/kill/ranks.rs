//! The ranks of one run as the referee sees them: processes that report where they are.

use std::io::Write;
use std::path::Path;
use std::process::Stdio;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};

use super::run::Run;
use super::words::{Place, Verdict, Word};
use crate::machine::CONNECTIONS_VARIABLE;
use crate::ranks::{ChildProcess, Heard, listen, rank_command};

/// A rank, and what it has said.
pub(super) struct Rank {
    pub(super) process: ChildProcess,
    pub(super) words: Vec<(Instant, Word)>,
    pub(super) has_closed: bool,
}

impl Rank {
    pub(super) fn is_at(&self, place: Place) -> bool {
        let mut words = self.words.iter();
        words.any(|(_, word)| matches!(word, Word::At(at) if *at == place))
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
        if let Some(stdin) = &mut self.process.0.stdin {
            // A rank that is no longer held does not read this.
            let _ = writeln!(stdin).and_then(|()| stdin.flush());
        }
    }
}

/// All ranks of a run.
pub(super) struct Ranks {
    pub(super) ranks: Vec<Rank>,
    heard: Receiver<Heard<Word>>,
}

impl Ranks {
    pub(super) fn start(run: &Run, directory: &Path) -> Result<Ranks> {
        let (sender, heard) = channel();
        let start = |rank| {
            let mut command = rank_command("kill-rank", rank, run)?;
            command
                .arg("--directory")
                .arg(directory)
                .stdin(Stdio::piped())
                .stdout(Stdio::piped());
            if std::env::var_os(CONNECTIONS_VARIABLE).is_none() {
                // A process here has one rank and thus one stream; a context with more connections
                // takes longer to create.
                command.env(CONNECTIONS_VARIABLE, "4");
            }
            let mut process = ChildProcess::spawn(&mut command)?;
            listen(rank as usize, &mut process, sender.clone())?;
            Ok(Rank {
                process,
                words: Vec::new(),
                has_closed: false,
            })
        };
        let ranks = (0..run.scenario.world_size)
            .map(start)
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
                Ok((rank, _, Some(Word::Broken(reason)))) => bail!("rank {rank}: {reason}"),
                Ok((rank, at, Some(word))) => self.ranks[rank].words.push((at, word)),
                Ok((rank, _, None)) => self.ranks[rank].has_closed = true,
                Err(RecvTimeoutError::Timeout) => bail!("{what} within {patience:?}"),
                Err(RecvTimeoutError::Disconnected) => {
                    ensure!(done(&self.ranks), "{what} before they ended");
                }
            }
        }
        Ok(())
    }
}
