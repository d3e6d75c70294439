//! Ranks that are processes: this test binary, started again for each rank.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use half::bf16;
use peersum::dispatch::Route;
use peersum::{Failure, Rendezvous};
use peersum_emulator::{EmulatorBuffer, EmulatorDevice};

use crate::stage::{
    Content, PATIENCE, assert_bits, build, expected, failure, input, plan, settings,
};

/// `directory rank world_size program` for a process that is a rank.
const ROLE: &str = "PEERSUM_TEST_ROLE";
const DEADLINE: Duration = Duration::from_millis(500);
const SLACK: Duration = Duration::from_secs(10);

/// A process that is a rank; killed when it is dropped.
struct Rank {
    child: Child,
    lines: std::sync::mpsc::Receiver<String>,
}

impl Rank {
    fn start(test: &str, directory: &Path, rank: u32, world_size: u32, program: &str) -> Rank {
        let mut command = Self::command(test, directory, rank, world_size, program);
        Self::of(command.spawn().unwrap())
    }

    fn command(test: &str, directory: &Path, rank: u32, world_size: u32, program: &str) -> Command {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command
            .args(["--exact", test, "--nocapture", "--test-threads=1"])
            .env(
                ROLE,
                format!("{} {rank} {world_size} {program}", directory.display()),
            )
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        command
    }

    /// Starts the command as process 1 of a PID namespace of its own, if the system allows it.
    fn contained(mut command: Command) -> rustix::io::Result<Rank> {
        // The namespace is for the children that the calling thread starts from now on.
        let spawned = std::thread::spawn(move || {
            // SAFETY: a new PID namespace changes nothing for this thread but the children that
            // it starts, and it starts one.
            unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWPID) }?;
            Ok(command.spawn().unwrap())
        });
        spawned.join().unwrap().map(Self::of)
    }

    fn of(mut child: Child) -> Rank {
        let stdout = BufReader::new(child.stdout.take().unwrap());
        let (sender, lines) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            // The test harness writes lines of its own, and begins ours with the test's name.
            for line in stdout.lines().map_while(Result::ok) {
                if let Some((_, said)) = line.split_once("@ ") {
                    let _ = sender.send(said.to_owned());
                }
            }
        });
        Rank { child, lines }
    }

    /// The next line that the rank says.
    fn hear(&self) -> String {
        self.lines
            .recv_timeout(PATIENCE)
            .expect("the rank says nothing")
    }

    fn go(&mut self) {
        writeln!(self.child.stdin.as_mut().unwrap()).unwrap();
    }

    fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    fn end(&mut self) -> ExitStatus {
        let began = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(began.elapsed() < PATIENCE, "a rank hangs");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Rank {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn say(line: impl std::fmt::Display) {
    println!("@ {line}");
}

fn wait_for_go() {
    let mut line = String::new();
    std::io::stdin().read_line(&mut line).unwrap();
}

/// In a process that a test has started: plays the rank and ends the process.
fn play_if_started_as_a_rank() {
    let Ok(role) = std::env::var(ROLE) else {
        return;
    };
    let mut words = role.split(' ');
    let mut word = || words.next().unwrap();
    let (directory, rank, world_size) = (
        PathBuf::from(word()),
        word().parse().unwrap(),
        word().parse().unwrap(),
    );
    let rendezvous = Rendezvous::unix(directory, "run", rank, world_size);
    match word() {
        "reduce" => reduce(rendezvous),
        "stall" => stall(rendezvous),
        "join" => join(rendezvous),
        "fork" => fork(rendezvous),
        other => panic!("{other}"),
    }
    std::process::exit(0);
}

/// Calls of every route and type, compared with the reference.
fn reduce(rendezvous: Rendezvous) {
    let mut comm = build(settings(), rendezvous);
    let (rank, world_size) = (comm.rank(), comm.world_size());
    let mut symmetric = comm.symmetric_alloc::<bf16>(999).unwrap();
    for round in 0..4 {
        for (seed, route) in (round * 10..).zip(Route::ALL) {
            let content = if round % 2 == 0 {
                Content::Special
            } else {
                Content::Ordinary
            };
            let own = input::<bf16>(seed, rank, 999, content);
            comm.force_plan(plan(route, 1 + seed as u32 % 3, 8))
                .unwrap();
            let mut output = EmulatorBuffer::<bf16>::zeroed(999);
            if route.is_symmetric() {
                symmetric.as_view_mut().copy_from_slice(&own);
            }
            let found = match route {
                Route::SymmetricOneShot => {
                    comm.all_reduce(&*symmetric, &mut output).unwrap();
                    comm.synchronize().unwrap();
                    output.to_vec()
                }
                Route::SymmetricTwoShot => {
                    comm.all_reduce_in_place(&mut symmetric.as_view_mut())
                        .unwrap();
                    comm.synchronize().unwrap();
                    symmetric.to_vec()
                }
                _ => {
                    comm.all_reduce(&EmulatorBuffer::from_slice(&own), &mut output)
                        .unwrap();
                    comm.synchronize().unwrap();
                    output.to_vec()
                }
            };
            let expected = expected(seed, world_size, 999, content);
            assert_bits(&found, &expected, &(round, route));
        }
    }
}

/// One good call; then, on a word from the test, another, which rank 1 is not given the word for.
fn stall(rendezvous: Rendezvous) {
    let mut comm = build(settings().timeout(DEADLINE), rendezvous);
    let mut buffer = EmulatorBuffer::<f32>::zeroed(2000);
    comm.all_reduce_in_place(&mut buffer).unwrap();
    comm.synchronize().unwrap();
    say("ready");
    wait_for_go();
    for route in [Route::PushTwoShot, Route::PullOneShot] {
        comm.force_plan(plan(route, 2, 8)).unwrap();
        let began = Instant::now();
        // Behind a failure the call itself is refused.
        let reason = failure(
            comm.all_reduce_in_place(&mut buffer)
                .and_then(|()| comm.synchronize()),
        );
        assert!(began.elapsed() < DEADLINE + SLACK, "{:?}", began.elapsed());
        match reason {
            Failure::PeerTimeout { peer: 1, .. } | Failure::PeerFailed { .. } => {}
            other => panic!("{other}"),
        }
        if route == Route::PushTwoShot {
            say(&reason);
        }
    }
    // The process and its emulated device live on: a new group without the dead rank.
    let directory = std::env::var(ROLE)
        .unwrap()
        .split(' ')
        .next()
        .unwrap()
        .to_owned();
    let rank = comm.rank().min(1);
    drop(comm);
    let mut second = build(settings(), Rendezvous::unix(directory, "second", rank, 2));
    second
        .all_reduce_in_place(&mut EmulatorBuffer::<f32>::zeroed(10))
        .unwrap();
    second.synchronize().unwrap();
    say("alive");
}

/// Set-up only.
fn join(rendezvous: Rendezvous) {
    let stream = EmulatorDevice::new(rendezvous.rank()).stream().unwrap();
    say("ready");
    wait_for_go();
    match settings().rendezvous(rendezvous).build(&stream) {
        Ok(_) => say("built"),
        Err(error) => say(error),
    }
}

/// A child, which fork makes of this rank in the middle of a call, drops its copy of the
/// communicator.
fn fork(rendezvous: Rendezvous) {
    let mut comm = build(settings().timeout(PATIENCE), rendezvous);
    let mut buffer = EmulatorBuffer::<f32>::zeroed(2000);
    if comm.rank() != 0 {
        wait_for_go();
    }
    comm.all_reduce_in_place(&mut buffer).unwrap();
    // SAFETY: the child goes on in this thread alone, and waits for no other. The C library makes
    // its allocator ready at a fork.
    let child = unsafe { libc::fork() };
    if child == 0 {
        // SAFETY: alarm has no precondition. A child that hangs ends, without success.
        unsafe { libc::alarm(PATIENCE.as_secs() as u32 / 4) };
        drop(comm);
        // SAFETY: ends the child without what the test harness has registered for its end.
        unsafe { libc::_exit(0) };
    }
    let child = rustix::process::Pid::from_raw(child).unwrap();
    let waited = rustix::process::waitpid(Some(child), rustix::process::WaitOptions::empty());
    let (_, status) = waited.unwrap().unwrap();
    assert_eq!(status.exit_status(), Some(0), "{status:?}");
    say("forked");
    comm.synchronize().unwrap();
    let symmetric = comm.symmetric_alloc::<f32>(10).unwrap();
    comm.all_reduce_in_place(&mut buffer).unwrap();
    comm.synchronize().unwrap();
    drop((symmetric, comm));
}

#[test]
fn a_child_that_drops_its_copy_of_a_communicator_changes_nothing_for_the_ranks() {
    play_if_started_as_a_rank();
    let test =
        "processes::a_child_that_drops_its_copy_of_a_communicator_changes_nothing_for_the_ranks";
    for world_size in [1, 3] {
        let directory = tempfile::tempdir().unwrap();
        let sockets = directory.path().join("sockets");
        let mut ranks: Vec<Rank> = (0..world_size)
            .map(|rank| Rank::start(test, &sockets, rank, world_size, "fork"))
            .collect();
        // Rank 0 is in a call, which the others have not entered.
        assert_eq!(ranks[0].hear(), "forked");
        for rank in &mut ranks[1..] {
            rank.go();
        }
        for mut rank in ranks {
            assert!(rank.end().success());
        }
    }
}

#[test]
fn processes_reduce_by_every_route_and_get_the_references_bits() {
    play_if_started_as_a_rank();
    let test = "processes::processes_reduce_by_every_route_and_get_the_references_bits";
    for world_size in [2, 3, 8] {
        let directory = tempfile::tempdir().unwrap();
        let sockets = directory.path().join("sockets");
        let ranks: Vec<Rank> = (0..world_size)
            .map(|rank| Rank::start(test, &sockets, rank, world_size, "reduce"))
            .collect();
        for mut rank in ranks {
            assert!(rank.end().success());
        }
    }
}

#[test]
fn processes_of_pid_namespaces_of_their_own_reduce_and_get_the_references_bits() {
    play_if_started_as_a_rank();
    let test =
        "processes::processes_of_pid_namespaces_of_their_own_reduce_and_get_the_references_bits";
    let directory = tempfile::tempdir().unwrap();
    let sockets = directory.path().join("sockets");
    let ranks: Vec<_> = (0..3)
        .map(|rank| Rank::contained(Rank::command(test, &sockets, rank, 3, "reduce")))
        .collect();
    for rank in ranks {
        match rank {
            Ok(mut rank) => assert!(rank.end().success()),
            Err(errno) => {
                assert!(!rustix::process::geteuid().is_root(), "unshare: {errno}");
                println!("NOT TESTED: the system refuses a PID namespace: {errno}");
            }
        }
    }
}

#[test]
fn a_rank_killed_inside_a_call_is_reported_by_the_survivors_within_the_deadline() {
    play_if_started_as_a_rank();
    let test =
        "processes::a_rank_killed_inside_a_call_is_reported_by_the_survivors_within_the_deadline";
    let directory = tempfile::tempdir().unwrap();
    let sockets = directory.path().join("sockets");
    let mut ranks: Vec<Rank> = (0..3)
        .map(|rank| Rank::start(test, &sockets, rank, 3, "stall"))
        .collect();
    for rank in &ranks {
        assert_eq!(rank.hear(), "ready");
    }
    // The survivors are inside the call when rank 1 dies, which has not entered it.
    ranks[0].go();
    ranks[2].go();
    std::thread::sleep(DEADLINE / 4);
    ranks[1].kill();
    let reasons = [ranks[0].hear(), ranks[2].hear()];
    assert!(
        reasons
            .iter()
            .any(|reason| reason.contains("for rank 1 in push_two_shot")),
        "{reasons:#?}"
    );
    for survivor in [0, 2] {
        assert_eq!(ranks[survivor].hear(), "alive");
        assert!(ranks[survivor].end().success());
    }
}

#[test]
fn a_rank_killed_during_set_up_is_named_to_the_others() {
    play_if_started_as_a_rank();
    let test = "processes::a_rank_killed_during_set_up_is_named_to_the_others";
    for victim in [0, 2] {
        let directory = tempfile::tempdir().unwrap();
        let sockets = directory.path().join("sockets");
        let mut ranks: Vec<Rank> = (0..4)
            .map(|rank| Rank::start(test, &sockets, rank, 4, "join"))
            .collect();
        for rank in &ranks {
            assert_eq!(rank.hear(), "ready");
        }
        // Rank 3 does not come, so set-up is under way when the victim dies.
        for rank in [0, 1, 2] {
            ranks[rank].go();
        }
        std::thread::sleep(Duration::from_millis(300));
        ranks[victim].kill();
        ranks[3].go();
        for survivor in [0, 1, 2, 3].into_iter().filter(|&rank| rank != victim) {
            // Where rank 0 is gone the others wait for a new one until they lose it or the test
            // ends them.
            if victim != 0 || survivor != 3 {
                let said = ranks[survivor].hear();
                assert!(said.contains(&format!("rank {victim}")), "{said}");
            }
        }
    }
}
