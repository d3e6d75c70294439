//! A rank as the test sees it: a process that says what it has done.

use super::play::MARK;
use super::timing::HANG;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::Instant;

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

    pub(super) fn of(mut child: Child) -> Self {
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

pub(super) fn spawn(command: &mut Command) -> Child {
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
