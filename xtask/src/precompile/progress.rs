//! What a run prints while it works: a line of progress on a terminal, plain lines elsewhere, JSON
//! lines for programs.

use super::compile::Failure;
use super::matrix::Artifact;
use clap::ValueEnum;
use serde::Serialize;
use std::fmt::Write as _;
use std::io::{IsTerminal as _, Write as _};
use std::sync::{Mutex, PoisonError};

/// The form of the messages.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum MessageFormat {
    /// Text for people, on stderr
    #[default]
    Human,
    /// One JSON object a line on stdout
    Json,
}

/// What became of one module.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Status {
    Built,
    Reused,
    Failed,
}

/// The figures of a run.
#[derive(Debug, Clone, Default, Serialize)]
pub(crate) struct Summary {
    /// Modules compiled.
    pub(crate) built: usize,
    /// Modules taken over from the output as it was.
    pub(crate) reused: usize,
    /// Modules that could not be compiled.
    pub(crate) failed: usize,
    /// Time from start to end, in seconds.
    pub(crate) wall_seconds: f64,
    /// CPU time of this process and its compilers, in seconds.
    pub(crate) cpu_seconds: f64,
    /// The module that took longest to compile, and its seconds.
    pub(crate) slowest: Option<(String, f64)>,
    /// The output directory.
    pub(crate) out: String,
}

#[derive(Serialize)]
#[serde(tag = "reason", rename_all = "kebab-case")]
enum Message<'a> {
    Note {
        message: &'a str,
    },
    Module {
        name: String,
        arch: String,
        kind: &'a str,
        file: String,
        status: Status,
        #[serde(skip_serializing_if = "Option::is_none")]
        seconds: Option<f64>,
        #[serde(skip_serializing_if = "Option::is_none")]
        command: Option<&'a str>,
        #[serde(skip_serializing_if = "Option::is_none")]
        message: Option<&'a str>,
        #[serde(skip_serializing_if = "Option::is_none")]
        output: Option<&'a str>,
    },
    Problem {
        message: &'a str,
    },
    Check {
        modules: usize,
        problems: usize,
        out: &'a str,
    },
    Summary {
        #[serde(flatten)]
        summary: &'a Summary,
    },
}

/// Where messages go.
#[derive(Debug)]
pub(crate) struct Reporter {
    format: MessageFormat,
    quiet: bool,
    /// Locked while a line is written, so that lines of several threads do not mix.
    progress: Mutex<Option<Progress>>,
}

/// How many compiler processes have ended, shown at the foot of a terminal.
#[derive(Debug)]
struct Progress {
    ended: usize,
    total: usize,
    latest: String,
}

impl Progress {
    fn show(&self, terminal: &mut impl std::io::Write) {
        let (ended, total) = (self.ended, self.total);
        let _ = write!(terminal, "compiling {ended}/{total} {}", self.latest);
        let _ = terminal.flush();
    }
}

impl Reporter {
    pub(crate) fn new(format: MessageFormat, quiet: bool) -> Self {
        Self {
            format,
            quiet,
            progress: Mutex::new(None),
        }
    }

    fn talks(&self) -> bool {
        self.format == MessageFormat::Human && !self.quiet
    }

    /// Says what the run is about to do with so many compiler processes.
    pub(crate) fn begin(&self, processes: usize, what: &str) {
        if !self.talks() {
            return;
        }
        self.line(what);
        if std::io::stderr().is_terminal() {
            *self.progress.lock().unwrap_or_else(PoisonError::into_inner) = Some(Progress {
                ended: 0,
                total: processes,
                latest: String::new(),
            });
        }
    }

    /// Counts a process that ended. `false` if no terminal shows the count.
    fn advance(&self, label: &str) -> bool {
        let mut progress = self.progress.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(progress) = &mut *progress else {
            return false;
        };
        progress.ended += 1;
        label.clone_into(&mut progress.latest);
        let mut terminal = std::io::stderr().lock();
        let _ = terminal.write_all(CLEAR_LINE);
        progress.show(&mut terminal);
        true
    }

    /// Something that a person should know although all is well.
    pub(crate) fn note(&self, message: &str) {
        match self.format {
            MessageFormat::Json => json(&Message::Note { message }),
            MessageFormat::Human if self.quiet => {}
            MessageFormat::Human => self.line(&format!("note: {message}")),
        }
    }

    /// One compiler process succeeded; `remarks` are the compiler's warnings.
    pub(crate) fn built(&self, artifacts: &[Artifact], seconds: f64, remarks: &[String]) {
        if self.format == MessageFormat::Json {
            for artifact in artifacts {
                json(&module(artifact, Status::Built, Some(seconds), None));
            }
        }
        let Some(label) = artifacts.first().map(Artifact::label) else {
            return;
        };
        if !remarks.is_empty() {
            let remarks = remarks.join("\n");
            self.note(&format!("{label}: the compiler remarks\n{remarks}"));
        }
        if self.talks() && !self.advance(&label) {
            self.line(&format!("built {label} in {seconds:.2} s"));
        }
    }

    /// A module that is taken over as it is. People read the count in the summary.
    pub(crate) fn reused(&self, artifact: &Artifact) {
        if self.format == MessageFormat::Json {
            json(&module(artifact, Status::Reused, None, None));
        }
    }

    /// One compiler process failed; everything it printed is shown.
    pub(crate) fn failed(&self, artifacts: &[Artifact], failure: &Failure) {
        if self.format == MessageFormat::Json {
            for artifact in artifacts {
                json(&module(artifact, Status::Failed, None, Some(failure)));
            }
            return;
        }
        let label = artifacts.first().map(Artifact::label).unwrap_or_default();
        let mut text = format!(
            "error: {label}: {}\n  command: {}\n",
            failure.message, failure.command
        );
        for line in failure.output.lines() {
            let _ = writeln!(text, "  | {line}");
        }
        self.line(text.trim_end());
        self.advance(&label);
    }

    /// The result of a check: the problems on stdout, one a line.
    pub(crate) fn checked(&self, out: &str, modules: usize, problems: &[String]) {
        if self.format == MessageFormat::Json {
            for message in problems {
                json(&Message::Problem { message });
            }
            json(&Message::Check {
                modules,
                problems: problems.len(),
                out,
            });
            return;
        }
        for problem in problems {
            let _ = writeln!(std::io::stdout().lock(), "{problem}");
        }
        if !problems.is_empty() {
            self.line(&format!(
                "error: {out} is not what was asked for ({} of {modules} modules); \
                 `cargo xtask precompile` with the same flags makes it so",
                problems.len()
            ));
        } else if !self.quiet {
            self.line(&format!(
                "{modules} modules are there, undamaged and up to date; {out}"
            ));
        }
    }

    /// The last message of a run.
    pub(crate) fn summary(&self, summary: &Summary) {
        if let Some(_shown) = self
            .progress
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take()
        {
            let _ = std::io::stderr().lock().write_all(CLEAR_LINE);
        }
        if self.format == MessageFormat::Json {
            return json(&Message::Summary { summary });
        }
        if self.quiet && summary.failed == 0 {
            return;
        }
        let mut text = format!(
            "{} built, {} reused, {} failed in {:.2} s ({:.1} s CPU)",
            summary.built,
            summary.reused,
            summary.failed,
            summary.wall_seconds,
            summary.cpu_seconds
        );
        if let Some((name, seconds)) = &summary.slowest {
            let _ = write!(text, "; slowest {name}, {seconds:.2} s");
        }
        let _ = write!(text, "; {}", summary.out);
        self.line(&text);
    }

    /// Writes a line to stderr, above the progress if that is shown.
    fn line(&self, text: &str) {
        let progress = self.progress.lock().unwrap_or_else(PoisonError::into_inner);
        let mut stderr = std::io::stderr().lock();
        // A closed stderr is no reason to stop compiling.
        match &*progress {
            None => drop(writeln!(stderr, "{text}")),
            Some(progress) => {
                let _ = stderr.write_all(CLEAR_LINE);
                let _ = writeln!(stderr, "{text}");
                progress.show(&mut stderr);
            }
        }
    }
}

/// Moves a terminal's cursor to the start of the line, and erases the line.
const CLEAR_LINE: &[u8] = b"\r\x1b[2K";

fn module<'a>(
    artifact: &Artifact,
    status: Status,
    seconds: Option<f64>,
    failure: Option<&'a Failure>,
) -> Message<'a> {
    Message::Module {
        name: artifact.module.name(),
        arch: artifact.target.to_string(),
        kind: artifact.target.kind(),
        file: artifact.file_name(),
        status,
        seconds,
        command: failure.map(|failure| &*failure.command),
        message: failure.map(|failure| &*failure.message),
        output: failure.map(|failure| &*failure.output),
    }
}

fn json(message: &Message<'_>) {
    if let Ok(text) = serde_json::to_string(message) {
        let _ = writeln!(std::io::stdout().lock(), "{text}");
    }
}
