//! One run: the referee starts the ranks, brings the victim to its phase, strikes, and judges what the others say and what is left.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;
use std::process::{ChildStdin, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use peersum::Rendezvous;
use rustix::process::Signal;

use super::rank::{Plant, Role};
use super::scenario::{Blow, Phase, Scenario, Step};
use super::words::{Kind, Place, Verdict, Word};
use crate::machine::{CONNECTIONS_VARIABLE, DeviceKind};
use crate::ranks::{Heard, RankProcess, listen, meeting_directory, rank_command};

/// A set-up that nothing happens to, however busy the machine is.
const UNHURRIED_SET_UP: Duration = Duration::from_secs(60);

/// The deadlines that the ranks are given.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Deadlines {
    /// Of a call.
    pub(crate) call: Duration,
    /// Of set-up, in the phases that end in it.
    pub(crate) set_up: Duration,
    /// What a survivor may take beyond its deadline.
    pub(crate) grace: Duration,
    /// Of whatever has no deadline of its own: starting, joining, ending.
    pub(crate) patience: Duration,
}

impl Deadlines {
    fn of(&self, phase: Phase) -> Duration {
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

/// What a run that went as it must has shown.
#[derive(Debug, Clone)]
pub(crate) struct Findings {
    /// From the blow, or from the word to a rank that was held, to the last survivor's report.
    pub(crate) longest: Duration,
    /// Survivors' errors by kind.
    pub(crate) kinds: BTreeMap<Kind, usize>,
    /// Whether files of a rank 0 that was killed as the last of its group were left for the next run, which removed them.
    pub(crate) swept_by_next_run: bool,
}

/// Runs one scenario.
///
/// # Errors
/// What was not as it must be.
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

/// A rank, and what it has said.
struct Rank {
    process: RankProcess,
    stdin: Option<ChildStdin>,
    words: Vec<(Instant, Word)>,
    has_closed: bool,
}

impl Rank {
    fn is_at(&self, place: Place) -> bool {
        self.words
            .iter()
            .any(|(_, word)| matches!(word, Word::At(at) if *at == place))
    }

    /// What became of its communicator, and when it said so.
    fn outcome(&self) -> Option<(Instant, Option<&Verdict>)> {
        self.words.iter().find_map(|(at, word)| match word {
            Word::Failed(verdict) => Some((*at, Some(verdict))),
            Word::Completed => Some((*at, None)),
            _ => None,
        })
    }

    fn release(&mut self) {
        if let Some(stdin) = &mut self.stdin {
            // A rank that is not held any more does not read it.
            let _ = writeln!(stdin).and_then(|()| stdin.flush());
        }
    }
}

struct Ranks {
    ranks: Vec<Rank>,
    heard: Receiver<(u32, Instant, Option<Word>)>,
}

impl Ranks {
    fn start(
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
    fn await_that(
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

    /// Brings the victim to its phase and strikes. Returns when the survivors' clocks began: at the blow, or when the last that was held went on.
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
            // So that it is gone when those who wait for it go on.
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

    fn judge(
        &mut self,
        scenario: &Scenario,
        deadlines: &Deadlines,
        struck: Instant,
    ) -> Result<Findings> {
        let victim = scenario.victim as usize;
        let survivors = move |ranks: &[Rank]| -> Vec<usize> {
            (0..ranks.len()).filter(|&rank| rank != victim).collect()
        };
        let deadline = deadlines.of(scenario.phase);
        self.await_that(
            "a survivor did not report",
            deadline + deadlines.patience,
            |ranks| {
                survivors(ranks)
                    .iter()
                    .all(|&rank| ranks[rank].outcome().is_some())
            },
        )?;
        let mut longest = Duration::ZERO;
        let mut kinds = BTreeMap::new();
        for rank in survivors(&self.ranks) {
            let Some((at, verdict)) = self.ranks[rank].outcome() else {
                bail!("rank {rank} did not report");
            };
            // A survivor may report before this thread has taken the time.
            let took = at.saturating_duration_since(struck);
            longest = longest.max(took);
            ensure!(
                took <= deadline + deadlines.grace,
                "rank {rank} reported {took:?} after the blow; its deadline is {deadline:?}: {verdict:?}"
            );
            match verdict {
                None => ensure!(
                    scenario.phase == Phase::Teardown,
                    "rank {rank} was told nothing"
                ),
                Some(verdict) => {
                    ensure!(
                        is_fitting(scenario, verdict.kind),
                        "rank {rank} got an error that does not fit: {verdict:?}"
                    );
                    // In set-up of a stopped rank others may be missing besides, but not in its stead.
                    ensure!(
                        verdict.names.contains(&scenario.victim),
                        "the error of rank {rank} does not name rank {}: {verdict:?}",
                        scenario.victim
                    );
                    *kinds.entry(verdict.kind).or_insert(0) += 1;
                }
            }
        }
        self.judge_victim(scenario, deadlines.patience)?;
        self.await_that("a survivor did not end", deadlines.patience, |ranks| {
            ranks.iter().all(|rank| rank.has_closed)
        })?;
        for (rank, heard) in self.ranks.iter_mut().enumerate() {
            let status = heard.process.wait()?;
            let is_killed = rank == victim && scenario.blow == Blow::Kill;
            ensure!(
                status.success() || is_killed && ended_by_kill(status),
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
                None => ensure!(is_killed, "rank {rank} ended without a word"),
            }
        }
        Ok(Findings {
            longest,
            kinds,
            swept_by_next_run: false,
        })
    }

    /// A victim that was stopped goes on now, and must be told as well. What it took for right it has compared with the reference.
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

/// Where a rank waits for the referee.
fn held_at(scenario: &Scenario, rank: u32) -> Option<Place> {
    let place = match scenario.phase {
        Phase::Rendezvous => Place::Joining,
        Phase::SetUp => Place::SetUp(scenario.step),
        Phase::BeforeFirstCall => return Some(Place::Built),
        Phase::InsideCall | Phase::GraphReplay => return None,
        Phase::Teardown => Place::Leaving,
    };
    (rank == scenario.held).then_some(place)
}

/// In set-up a killed rank is lost at once, since its connection closes, or missed at the deadline if it had none yet; a stopped one is missed at the
/// deadline, of a call if it had given its part to the last exchange. In a call both are missed at the deadline: what a device polls is memory, which
/// outlives who shared it. In teardown there is nothing to tell: the results were valid.
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

/// No socket, lock, process or named shared memory is left. True if there were files that the next run of the name removed.
fn judge_leftovers(scenario: &Scenario, directory: &Path, patience: Duration) -> Result<bool> {
    let files = || -> Result<Vec<String>> {
        let entries = std::fs::read_dir(directory).context("listing the rendezvous directory")?;
        Ok(entries
            .flatten()
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .collect())
    };
    let mut swept = false;
    let mut left = files()?;
    // A rank 0 that is killed when all others have left in good order has nobody to sweep behind it but the next run.
    if !left.is_empty()
        && scenario.phase == Phase::Teardown
        && scenario.blow == Blow::Kill
        && scenario.victim == 0
    {
        std::thread::scope(|scope| {
            let ranks = [0, 1].map(|rank| {
                let rendezvous = Rendezvous::unix(directory, "disturbed", rank, 2);
                scope.spawn(move || rendezvous.join(patience).map(drop))
            });
            ranks.into_iter().try_for_each(|rank| match rank.join() {
                Ok(joined) => joined.context("the next run behind a killed rank 0"),
                Err(_) => bail!("the next run panicked"),
            })
        })?;
        swept = true;
        left = files()?;
    }
    ensure!(left.is_empty(), "files are left: {}", left.join(", "));
    let needle = directory.as_os_str().as_encoded_bytes();
    for entry in std::fs::read_dir("/proc")?.flatten() {
        // Empty for a process that has ended.
        let command_line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        ensure!(
            !command_line
                .windows(needle.len())
                .any(|window| window == needle),
            "process {} is left",
            entry.file_name().to_string_lossy()
        );
    }
    if let Ok(shared) = std::fs::read_dir("/dev/shm") {
        for entry in shared.flatten() {
            let name = entry.file_name();
            ensure!(
                !name.to_string_lossy().contains("peersum"),
                "/dev/shm/{} is left",
                name.to_string_lossy()
            );
        }
    }
    Ok(swept)
}

fn start(role: &Role, heard: Sender<(u32, Instant, Option<Word>)>) -> Result<Rank> {
    let mut command = rank_command("kill-rank")?;
    command
        .args(["--role", &serde_json::to_string(role)?])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped());
    if std::env::var_os(CONNECTIONS_VARIABLE).is_none() {
        // A process here has one rank and so one stream; the more connections a context has, the
        // longer it takes to make.
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
