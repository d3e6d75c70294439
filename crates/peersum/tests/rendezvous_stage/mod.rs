//! Ranks as real processes: a test starts its own binary again, once a rank, with a list of steps to take.

// Each test binary uses its own part of this module; what fails here fails the test.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used)]

mod forks;

use peersum::rendezvous::{Group, Rendezvous, RendezvousError};
use std::io::{BufRead, BufReader, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

const SCRIPT: &str = "PEERSUM_TEST_SCRIPT";
/// Beyond any deadline that a test sets: only a hang reaches it.
const HANG: Duration = Duration::from_secs(60);
/// Marks the lines that are for the test, among those of the test harness.
const MARK: &str = "@ ";

/// Long enough for a loaded machine; nothing that works waits for it.
pub const AMPLE: Duration = Duration::from_secs(30);

/// Waits until rank 0 and the others have connected, which nothing but their silence shows.
pub fn settle() {
    std::thread::sleep(Duration::from_millis(400));
}

/// A directory for the sockets of one test, whose ranks are this test again.
pub struct Stage {
    test: &'static str,
    home: tempfile::TempDir,
}

impl Stage {
    /// In the test: sets the stage. In a process that a test has started as a rank: plays the rank, and does not return.
    pub fn enter(test: &'static str) -> Self {
        if let Ok(script) = std::env::var(SCRIPT) {
            let code = play(&script);
            std::process::exit(code);
        }
        Self {
            test,
            home: tempfile::tempdir().unwrap(),
        }
    }

    /// A directory that does not exist yet.
    pub fn directory(&self) -> PathBuf {
        self.home.path().join("sockets")
    }

    pub fn home(&self) -> &Path {
        self.home.path()
    }

    /// What is in the socket directory.
    pub fn files(&self) -> Vec<String> {
        let Ok(entries) = std::fs::read_dir(self.directory()) else {
            return Vec::new();
        };
        let mut names: Vec<String> = entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    pub fn script(&self, rank: u32, world_size: u32, timeout: Duration, steps: &str) -> Script {
        Script {
            lines: format!(
                "{}\nrun\n{rank}\n{world_size}\n{}\n{}",
                self.directory().display(),
                timeout.as_millis(),
                steps.split(", ").collect::<Vec<_>>().join("\n")
            ),
        }
    }

    pub fn command(&self, script: &Script) -> Command {
        self.command_of(&std::env::current_exe().unwrap(), script)
    }

    pub fn command_of(&self, executable: &Path, script: &Script) -> Command {
        let mut command = Command::new(executable);
        command
            .args(["--exact", self.test, "--nocapture", "--test-threads=1"])
            .env(SCRIPT, &script.lines);
        command
    }

    /// Starts a rank of group `run`. `steps` are separated by a comma and a space; see [`step`].
    pub fn rank(&self, rank: u32, world_size: u32, timeout: Duration, steps: &str) -> Rank {
        Rank::start(self.command(&self.script(rank, world_size, timeout, steps)))
    }

    /// Starts all ranks with the same steps.
    pub fn ranks(&self, world_size: u32, timeout: Duration, steps: &str) -> Vec<Rank> {
        (0..world_size)
            .map(|rank| self.rank(rank, world_size, timeout, steps))
            .collect()
    }

    /// Waits until rank 0 listens.
    pub fn await_socket(&self) {
        drop(self.connect());
    }

    /// A connection to rank 0, as soon as it listens.
    pub fn connect(&self) -> UnixStream {
        let started = Instant::now();
        loop {
            // Between its binding and its listening the socket is there and refuses.
            match UnixStream::connect(self.directory().join("run.sock")) {
                Ok(stream) => return stream,
                Err(error) => assert!(started.elapsed() < HANG, "rank 0 does not listen: {error}"),
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// A process of another user that plays `steps`, or None, with a message, if this one may not start any.
    pub fn stranger(&self, uid: u32, steps: &str) -> Option<Rank> {
        let mut command = self.command_of_stranger(steps)?;
        command.uid(uid).gid(uid);
        Some(Rank::start(command))
    }

    /// As [`Self::stranger`], but this user executes a program that is set-uid to `uid`.
    pub fn set_uid(&self, uid: u32, steps: &str) -> Option<Command> {
        let command = self.command_of_stranger(steps)?;
        let executable = Path::new(command.get_program());
        std::os::unix::fs::chown(executable, Some(uid), None).unwrap();
        chmod(executable, 0o4755);
        Some(command)
    }

    /// A program that another user can execute, with `steps` for rank 1 of 2. None, with a message,
    /// if this process is not root.
    fn command_of_stranger(&self, steps: &str) -> Option<Command> {
        if !rustix::process::geteuid().is_root() {
            println!("NOT TESTED: starting a process of another user takes root");
            return None;
        }
        // The other user must reach the executable, wherever it was built.
        let executable = self.home.path().join("rank");
        if !executable.exists() {
            // By a process of its own: a child that another test starts meanwhile would inherit a descriptor open for
            // writing, and a file that is open for writing cannot be run.
            let copied = Command::new("cp")
                .arg(std::env::current_exe().unwrap())
                .arg(&executable)
                .status()
                .unwrap();
            assert!(copied.success(), "cp: {copied}");
        }
        chmod(&executable, 0o755);
        chmod(self.home.path(), 0o755);
        let mut command = self.command_of(
            &executable,
            &self.script(1, 2, Duration::from_secs(5), steps),
        );
        command.current_dir("/");
        Some(command)
    }

    /// Starts a rank as process 1 of a PID namespace of its own. None, with a message, if the
    /// system refuses such a namespace.
    pub fn contained(&self, rank: u32, world_size: u32, steps: &str) -> Option<Rank> {
        let mut command = self.command(&self.script(rank, world_size, AMPLE, steps));
        // The namespace is for the children that the calling thread starts from now on.
        let spawned = std::thread::spawn(move || {
            // SAFETY: a new PID namespace changes nothing for this thread but the children that
            // it starts, and it starts one.
            unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWPID) }?;
            Ok(spawn(&mut command))
        });
        let spawned: rustix::io::Result<Child> = spawned.join().unwrap();
        match spawned {
            Ok(child) => Some(Rank::of(child)),
            Err(errno) => {
                assert!(!rustix::process::geteuid().is_root(), "unshare: {errno}");
                println!("NOT TESTED: the system refuses a PID namespace: {errno}");
                None
            }
        }
    }
}

pub struct Script {
    lines: String,
}

impl Script {
    pub fn group(self, group: &str) -> Self {
        Self {
            lines: self.lines.replacen("\nrun\n", &format!("\n{group}\n"), 1),
        }
    }
}

pub fn chmod(path: &Path, mode: u32) {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}

/// A process that plays a rank.
pub struct Rank {
    child: Child,
    lines: Receiver<String>,
    heard: Vec<String>,
}

impl Rank {
    pub fn start(mut command: Command) -> Self {
        Self::of(spawn(&mut command))
    }

    fn of(mut child: Child) -> Self {
        let stdout = child.stdout.take().unwrap();
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines() {
                // The harness prints its own text in front of the first line.
                if let Ok(line) = line
                    && let Some((_, said)) = line.split_once(MARK)
                    && sender.send(said.to_owned()).is_err()
                {
                    break;
                }
            }
        });
        Self {
            child,
            lines,
            heard: Vec::new(),
        }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits until the rank says `line`.
    pub fn hear(&mut self, line: &str) {
        let started = Instant::now();
        loop {
            match self
                .lines
                .recv_timeout(HANG.saturating_sub(started.elapsed()))
            {
                Ok(said) => {
                    self.heard.push(said.clone());
                    if said == line {
                        return;
                    }
                }
                Err(error) => panic!("waiting for {line:?}: {error}; heard {:#?}", self.heard),
            }
        }
    }

    /// Waits until the rank says a line with this beginning, and returns the rest.
    pub fn hear_beginning(&mut self, beginning: &str) -> String {
        loop {
            match self.lines.recv_timeout(HANG) {
                Ok(said) => {
                    self.heard.push(said.clone());
                    if let Some(rest) = said.strip_prefix(beginning) {
                        return rest.to_owned();
                    }
                }
                Err(error) => panic!(
                    "waiting for {beginning:?}: {error}; heard {:#?}",
                    self.heard
                ),
            }
        }
    }

    /// Lets a rank that waits at a `pause` go on.
    pub fn go(&mut self) {
        writeln!(self.child.stdin.as_mut().unwrap(), "go").unwrap();
    }

    pub fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_raw(self.child.id() as i32).unwrap();
        rustix::process::kill_process(pid, signal).unwrap();
    }

    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// All that the rank said, once it has ended.
    pub fn end(mut self) -> Vec<String> {
        let started = Instant::now();
        loop {
            match self
                .lines
                .recv_timeout(HANG.saturating_sub(started.elapsed()))
            {
                Ok(said) => self.heard.push(said),
                Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => panic!("a rank hangs; heard {:#?}", self.heard),
            }
        }
        let status = self.child.wait().unwrap();
        assert!(status.success(), "{status}; heard {:#?}", self.heard);
        std::mem::take(&mut self.heard)
    }

    /// The error that the rank ended with.
    pub fn error(self) -> String {
        let heard = self.end();
        let error = heard.iter().find_map(|line| line.strip_prefix("error "));
        error
            .unwrap_or_else(|| panic!("no error; heard {heard:#?}"))
            .to_owned()
    }

    /// Asserts that the rank did all of its steps.
    pub fn succeed(self) -> Vec<String> {
        let heard = self.end();
        assert!(
            heard.last().is_some_and(|line| line == "done"),
            "heard {heard:#?}"
        );
        heard
    }
}

fn spawn(command: &mut Command) -> Child {
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn()
        .unwrap()
}

impl Drop for Rank {
    fn drop(&mut self) {
        // A failed test must not leave ranks behind.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn say(line: &str) {
    let mut stdout = std::io::stdout().lock();
    writeln!(stdout, "{MARK}{line}").unwrap();
    stdout.flush().unwrap();
}

fn play(script: &str) -> i32 {
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

/// What a rank can do: `barrier LABEL`, `gather LABEL SEED`, `overlong LABEL`, `fds LABEL`, `pause`, `abandon REASON`, `leave`, `descriptors`,
/// `apart`, `pids`, `fork STEP`, `fork-stay`, and `bind PATH`, `knock` and `policy` for those who
/// are no ranks.
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
        "fds" => exchange_memory(joined.as_mut().unwrap(), rest, timeout),
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
            let _listener = std::os::unix::net::UnixListener::bind(rest).unwrap();
            say("bound");
            std::io::stdin().read_line(&mut String::new()).unwrap();
            Ok(())
        }
        "knock" => {
            use std::io::Read;
            match UnixStream::connect(directory.join("run.sock")) {
                Ok(mut stream) => {
                    let mut answer = Vec::new();
                    let _ = stream.read_to_end(&mut answer);
                    say(&format!("answer {answer:?}"));
                }
                Err(error) => say(&format!("answer {error}")),
            }
            Ok(())
        }
        other => panic!("no such step: {other}"),
    }
}

pub fn open_descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count() - 1
}

/// The message of `rank`, of a length and content of its own.
pub fn message(rank: u32, seed: u64) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(seed << 8 | u64::from(rank));
    let longest = [0, 1, 1000, 100_000, peersum::rendezvous::MAX_MESSAGE_BYTES];
    let length = longest[random.usize(..longest.len())];
    let mut bytes = vec![0; length];
    random.fill(&mut bytes);
    bytes
}

pub fn gather(
    group: &mut Group,
    label: &str,
    seed: u64,
    timeout: Duration,
) -> Result<(), RendezvousError> {
    let messages = group.all_gather(label, &message(group.rank(), seed), timeout)?;
    assert_eq!(messages.len() as u32, group.world_size());
    for (rank, received) in (0..).zip(messages) {
        assert!(
            received == message(rank, seed),
            "the message of rank {rank} in {label}, seed {seed}"
        );
    }
    Ok(())
}

/// Every rank writes to every rank's memory and finds what all have written to its own.
pub fn exchange_memory(
    group: &mut Group,
    label: &str,
    timeout: Duration,
) -> Result<(), RendezvousError> {
    const BYTES: usize = 4096;
    let rank = group.rank() as u8;
    let memory = rustix::fs::memfd_create("peersum-test", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    rustix::fs::ftruncate(&memory, BYTES as u64).unwrap();
    let received = group.all_gather_fds(label, &[rank], &[memory.as_fd()], timeout)?;
    let maps: Vec<&[std::sync::atomic::AtomicU8]> = received
        .iter()
        .zip(0..)
        .map(|((message, descriptors), rank)| {
            assert_eq!(message[..], [rank]);
            assert_eq!(descriptors.len(), 1);
            let flags = rustix::io::fcntl_getfd(&descriptors[0]).unwrap();
            assert!(
                flags.contains(rustix::io::FdFlags::CLOEXEC),
                "a received descriptor survives exec"
            );
            map(descriptors[0].as_fd(), BYTES)
        })
        .collect();
    for map in &maps {
        map[usize::from(rank)].store(rank + 1, std::sync::atomic::Ordering::Relaxed);
    }
    group.barrier(&format!("{label}: written"), timeout)?;
    for map in &maps {
        let read: Vec<u8> = map[..maps.len()]
            .iter()
            .map(|byte| byte.load(std::sync::atomic::Ordering::Relaxed))
            .collect();
        let expected: Vec<u8> = (1..=maps.len() as u8).collect();
        assert_eq!(read, expected);
    }
    group.barrier(&format!("{label}: read"), timeout)
}

fn map<'a>(memory: std::os::fd::BorrowedFd<'_>, bytes: usize) -> &'a [std::sync::atomic::AtomicU8] {
    use rustix::mm::{MapFlags, ProtFlags};
    // SAFETY: a new mapping at an address of the system's choice replaces none. It is never unmapped, all of it lies in the file,
    // which was sized before it was sent, and other processes' writes to it are races only to atomics.
    unsafe {
        let start = rustix::mm::mmap(
            std::ptr::null_mut(),
            bytes,
            ProtFlags::READ | ProtFlags::WRITE,
            MapFlags::SHARED,
            memory,
            0,
        )
        .unwrap();
        std::slice::from_raw_parts(start.cast(), bytes)
    }
}

/// The wire format, written down a second time.
pub fn frame(kind: u16, rank: u32, label: &str, body_bytes: u32, body: &[u8]) -> Vec<u8> {
    let mut bytes = b"peersum\0".to_vec();
    bytes.extend(kind.to_le_bytes());
    bytes.extend(0_u16.to_le_bytes());
    bytes.extend(rank.to_le_bytes());
    bytes.extend((label.len() as u32).to_le_bytes());
    bytes.extend(body_bytes.to_le_bytes());
    bytes.extend(label.as_bytes());
    bytes.extend(body);
    bytes
}
