//! The socket directory of one test, and the processes that the test starts as ranks.

use super::by_hand;
use super::play::{SCRIPT, play};
use super::rank::{Rank, spawn};
use super::timing::{AMPLE, HANG};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

/// A directory for the sockets of one test, whose ranks are this test again.
pub struct Stage {
    test: &'static str,
    home: tempfile::TempDir,
}

impl Stage {
    /// In the test: makes the directory. In a process that a test has started as a rank: plays the
    /// rank, and does not return.
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
            match by_hand::connect(&self.directory().join("run.sock")) {
                Ok(stream) => return stream,
                Err(error) => assert!(started.elapsed() < HANG, "rank 0 does not listen: {error}"),
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// A process of another user that plays `steps`. None, with a message, if this process may not
    /// start one.
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
            // A process of its own copies: a child that another test starts meanwhile would inherit
            // a descriptor open for writing, and a file that is open for writing cannot be run.
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
