//! What a process does that a test has started as a rank: a list of steps.

use super::traffic::{exchange_memory, gather, open_descriptors};
use super::{by_hand, forks};
use peersum::rendezvous::{Group, Rendezvous, RendezvousError};
use std::io::Write;
use std::path::Path;
use std::time::Duration;

/// The environment variable that holds a rank's script.
pub(super) const SCRIPT: &str = "PEERSUM_TEST_SCRIPT";
/// Marks the lines that are for the test, among those of the test harness.
pub(super) const MARK: &str = "@ ";

fn say(line: &str) {
    let mut stdout = std::io::stdout().lock();
    writeln!(stdout, "{MARK}{line}").unwrap();
    stdout.flush().unwrap();
}

pub(super) fn play(script: &str) -> i32 {
    let mut lines = script.lines();
    let mut next = || lines.next().unwrap();
    let (directory, group, rank, world_size) = (
        next().to_owned(),
        next(),
        next().parse().unwrap(),
        next().parse().unwrap(),
    );
    let timeout = Duration::from_millis(next().parse().unwrap());
    let mut rendezvous = Some(Rendezvous::unix(&directory, group, rank, world_size));
    let mut joined: Option<Group> = None;
    for line in lines {
        let (verb, rest) = line.split_once(' ').unwrap_or((line, ""));
        let result = match verb {
            "environment" => Rendezvous::from_env().map(|from_env| rendezvous = Some(from_env)),
            "run" => {
                rendezvous = rendezvous
                    .take()
                    .map(|rendezvous| rendezvous.with_run(rest));
                Ok(())
            }
            "join" => {
                say("joining");
                rendezvous
                    .take()
                    .unwrap()
                    .join(timeout)
                    .map(|group| joined = Some(group))
            }
            _ => step(&mut joined, verb, rest, timeout, Path::new(&directory)),
        };
        match result {
            Ok(()) => say(line),
            Err(error) => {
                say(&format!("error {error:?}"));
                say(&format!("message {error}"));
                return 0;
            }
        }
    }
    say("done");
    0
}

/// Takes one step: `barrier LABEL`, `gather LABEL SEED`, `overlong LABEL`, `fd LABEL`, `endless`,
/// `pause`, `abandon REASON`, `leave`, `descriptors`, `apart`, `pids`, `fork STEP`, `fork-stay`;
/// and `bind PATH`, `knock` and `policy` for processes that are no ranks.
fn step(
    joined: &mut Option<Group>,
    verb: &str,
    rest: &str,
    timeout: Duration,
    directory: &Path,
) -> Result<(), RendezvousError> {
    match verb {
        "barrier" => joined.as_mut().unwrap().barrier(rest, timeout),
        "gather" => {
            let (label, seed) = rest.split_once(' ').unwrap();
            gather(
                joined.as_mut().unwrap(),
                label,
                seed.parse().unwrap(),
                timeout,
            )
        }
        "overlong" => {
            let message = vec![0; peersum::rendezvous::MAX_MESSAGE_BYTES + 1];
            let group = joined.as_mut().unwrap();
            let error = group.all_gather(rest, &message, timeout).unwrap_err();
            say(&format!("refused {error:?}"));
            Ok(())
        }
        "endless" => {
            for round in 0.. {
                gather(joined.as_mut().unwrap(), "endless", round, timeout)?;
            }
            Ok(())
        }
        "fd" => exchange_memory(joined.as_mut().unwrap(), rest, timeout),
        "pause" => {
            say("paused");
            std::io::stdin().read_line(&mut String::new()).unwrap();
            Ok(())
        }
        "abandon" => {
            joined.take().unwrap().abandon(rest);
            Ok(())
        }
        "leave" => {
            drop(joined.take());
            Ok(())
        }
        // No other rank is taken for a thread of this process.
        "apart" => {
            let group = joined.as_ref().unwrap();
            for rank in 0..group.world_size() {
                assert_eq!(group.is_same_process(rank), rank == group.rank());
            }
            step(joined, "pids", "", timeout, directory)
        }
        "pids" => {
            let peers = joined.as_ref().unwrap().peers();
            let pids: Vec<u32> = peers.iter().map(|peer| peer.process.pid).collect();
            say(&format!("pids {pids:?}"));
            Ok(())
        }
        // A child takes the step with its copy of the group, and ends.
        "fork" => {
            forks::child_takes(|| {
                let outcome = step(joined, rest, "", timeout, directory);
                say(&format!("child {outcome:?}"));
                drop(joined.take());
            });
            Ok(())
        }
        // A child that keeps its copy of the group and lives on.
        "fork-stay" => {
            say(&format!("child {}", forks::child_stays()));
            Ok(())
        }
        _ => step_without_group(verb, rest, directory),
    }
}

/// A step that needs no group.
fn step_without_group(verb: &str, rest: &str, directory: &Path) -> Result<(), RendezvousError> {
    match verb {
        "policy" => {
            let policy = peersum::loader::LoadPolicy::from_env().unwrap();
            say(&format!("cache {:?}", policy.cache_directory()));
            let rendezvous = Rendezvous::in_default_directory("group", 0, 2)?;
            say(&format!("meet in {:?}", rendezvous.directory().unwrap()));
            Ok(())
        }
        "descriptors" => {
            say(&format!("descriptors {}", open_descriptors()));
            Ok(())
        }
        "bind" => {
            let _listener = by_hand::listen(Path::new(rest)).unwrap();
            say("bound");
            std::io::stdin().read_line(&mut String::new()).unwrap();
            Ok(())
        }
        "knock" => {
            match by_hand::connect(&directory.join("run.sock")) {
                Ok(mut stream) => say(&format!("answer {}", by_hand::read(&mut stream))),
                Err(error) => say(&format!("answer {error}")),
            }
            Ok(())
        }
        other => panic!("no such step: {other}"),
    }
}
