//! Programs on a disk that fails at a chosen change: `faulty_disk.c`, built once.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;

/// What happens at the chosen change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// The program is killed before the change is made.
    Killed,
    /// The disk is full from then on.
    Full,
    /// The disk may not be written from then on.
    ReadOnly,
    /// This change fails, and no other.
    OneError,
}

impl Fault {
    fn action(self) -> &'static str {
        match self {
            Self::Killed => "kill",
            Self::Full => "ENOSPC",
            Self::ReadOnly => "EROFS",
            Self::OneError => "EIO",
        }
    }

    /// The system's message for it.
    pub(crate) fn message(self) -> &'static str {
        match self {
            Self::Killed => "killed",
            Self::Full => "No space left on device",
            Self::ReadOnly => "Read-only file system",
            Self::OneError => "Input/output error",
        }
    }
}

/// A disk that fails at the `at`th change, counted from 1.
#[derive(Debug, Clone, Copy)]
pub(crate) struct FaultyDisk {
    pub(crate) fault: Fault,
    pub(crate) at: usize,
    /// Whether it can exchange two names by one rename.
    pub(crate) exchanges: bool,
}

/// The result of a run on such a disk.
#[derive(Debug)]
pub(crate) struct FaultyRun {
    pub(crate) output: Output,
    /// The system calls that changed the disk, or tried to.
    pub(crate) changes: Vec<String>,
    /// Whether the run reached the fault.
    pub(crate) hit: bool,
}

impl FaultyDisk {
    /// Runs `command` without its standard input. `inherits` says whether it also gets this
    /// process's environment.
    pub(crate) fn run(self, command: &Command, inherits: bool) -> FaultyRun {
        let report = tempfile::NamedTempFile::new().unwrap();
        let mut run = Command::new(program());
        run.arg(self.fault.action())
            .arg(self.at.to_string())
            .arg(if self.exchanges {
                "exchange"
            } else {
                "no-exchange"
            })
            .arg(report.path())
            .arg(command.get_program())
            .args(command.get_args());
        if !inherits {
            run.env_clear();
        }
        for (name, value) in command.get_envs() {
            match value {
                Some(value) => run.env(name, value),
                None => run.env_remove(name),
            };
        }
        if let Some(directory) = command.get_current_dir() {
            run.current_dir(directory);
        }
        let output = run.stdin(Stdio::null()).output().unwrap();
        assert_ne!(output.status.code(), Some(125), "{output:?}");
        let changes: Vec<String> = fs::read_to_string(report.path())
            .unwrap()
            .lines()
            .map(str::to_owned)
            .collect();
        let hit = changes.len() >= self.at;
        assert_eq!(
            output.status.code() == Some(137),
            hit && self.fault == Fault::Killed,
            "{output:?}"
        );
        FaultyRun {
            output,
            changes,
            hit,
        }
    }
}

impl FaultyRun {
    /// What it printed, on either stream.
    pub(crate) fn said(&self) -> String {
        [&self.output.stdout[..], &self.output.stderr]
            .map(String::from_utf8_lossy)
            .concat()
    }
}

fn program() -> &'static Path {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| {
        let directory = Path::new(env!("CARGO_TARGET_TMPDIR"));
        fs::create_dir_all(directory).unwrap();
        // First under a name of its own: another test program may build it at the same time.
        let built = directory.join(format!("faulty_disk.{}", std::process::id()));
        let mut compiler = Command::new("cc")
            .args(["-O1", "-Wall", "-Wextra", "-Werror", "-x", "c", "-o"])
            .arg(&built)
            .arg("-")
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        let mut source = compiler.stdin.take().unwrap();
        source.write_all(include_bytes!("faulty_disk.c")).unwrap();
        drop(source);
        let compiled = compiler.wait().unwrap();
        assert!(compiled.success(), "cc: {compiled}");
        fs::rename(built, directory.join("faulty_disk")).unwrap();
        directory.join("faulty_disk")
    })
}
