//! What a run prints while it works: plain lines for people, JSON lines for programs.

use super::compile::{Compiled, Failure, Job};
use super::matrix::Artifact;
use anyhow::ensure;
use clap::ValueEnum;
use serde::Serialize;
use std::fmt::Write as _;
use std::io::Write as _;
use std::path::Path;

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
        #[serde(flatten)]
        failure: Option<&'a Failure>,
    },
    Problem {
        message: &'a str,
    },
    Check {
        modules: usize,
        problems: usize,
        out: &'a str,
    },
    Summary(&'a Summary),
}

/// Where messages go.
#[derive(Debug)]
pub(crate) struct Reporter {
    pub(crate) format: MessageFormat,
    pub(crate) quiet: bool,
}

impl Reporter {
    /// Says what the run does.
    pub(crate) fn step(&self, what: &str) {
        if self.format == MessageFormat::Human && !self.quiet {
            line(what);
        }
    }

    /// Something that a person should know although all is well.
    pub(crate) fn note(&self, message: &str) {
        match self.format {
            MessageFormat::Json => json(&Message::Note { message }),
            MessageFormat::Human => self.step(&format!("note: {message}")),
        }
    }

    /// One compiler process ended. If it failed, everything it printed is shown.
    /// `count` is "12 of 42".
    pub(crate) fn ended(
        &self,
        job: &Job,
        outcome: &Result<Compiled, Failure>,
        seconds: f64,
        count: &str,
    ) {
        let (status, seconds_to_build) = match outcome {
            Ok(_) => (Status::Built, Some(seconds)),
            Err(_) => (Status::Failed, None),
        };
        for (target, _) in &job.files {
            let artifact = (job.module, *target);
            self.module(artifact, status, seconds_to_build, outcome.as_ref().err());
        }
        let label = job.label();
        match outcome {
            Ok(compiled) => {
                if !compiled.remarks.is_empty() {
                    let remarks = compiled.remarks.join("\n");
                    self.note(&format!("{label}: the compiler remarks\n{remarks}"));
                }
                self.step(&format!("built {label} in {seconds:.2} s ({count})"));
            }
            Err(failure) if self.format == MessageFormat::Human => {
                let lines = failure.output.lines();
                let output: String = lines.map(|line| format!("\n  | {line}")).collect();
                line(&format!(
                    "error: {label}: {}\n  command: {}{output}",
                    failure.message, failure.command
                ));
            }
            Err(_) => {}
        }
    }

    /// What became of one module. People read the count in the summary.
    pub(crate) fn module(
        &self,
        (module, target): Artifact,
        status: Status,
        seconds: Option<f64>,
        failure: Option<&Failure>,
    ) {
        if self.format == MessageFormat::Json {
            json(&Message::Module {
                name: module.name(),
                arch: target.to_string(),
                kind: target.kind(),
                file: target.file_name(&module),
                status,
                seconds,
                failure,
            });
        }
    }

    /// The result of a check: the problems on stdout, one a line.
    ///
    /// # Errors
    /// There are problems.
    pub(crate) fn checked(
        &self,
        out: &Path,
        modules: usize,
        problems: &[String],
    ) -> anyhow::Result<()> {
        let out = &*out.to_string_lossy();
        for message in problems {
            match self.format {
                MessageFormat::Json => json(&Message::Problem { message }),
                MessageFormat::Human => {
                    let _ = writeln!(std::io::stdout().lock(), "{message}");
                }
            }
        }
        if self.format == MessageFormat::Json {
            json(&Message::Check {
                modules,
                problems: problems.len(),
                out,
            });
        }
        ensure!(
            problems.is_empty(),
            "{out} is not what was asked for ({} of {modules} modules); `cargo xtask precompile` \
             with the same flags makes it so",
            problems.len()
        );
        self.step(&format!(
            "{modules} modules are there, undamaged and up to date; {out}"
        ));
        Ok(())
    }

    /// The last message of a run.
    pub(crate) fn summary(&self, summary: &Summary) {
        if self.format == MessageFormat::Json {
            return json(&Message::Summary(summary));
        }
        if self.quiet && summary.failed == 0 {
            return;
        }
        let mut text = format!(
            "{} built, {} reused, {} failed in {:.2} s",
            summary.built, summary.reused, summary.failed, summary.wall_seconds
        );
        if let Some((name, seconds)) = &summary.slowest {
            let _ = write!(text, "; slowest {name}, {seconds:.2} s");
        }
        let _ = write!(text, "; {}", summary.out);
        line(&text);
    }
}

/// Writes a line to stderr. A closed stderr is no reason to stop compiling.
fn line(text: &str) {
    let _ = writeln!(std::io::stderr().lock(), "{text}");
}

fn json(message: &Message<'_>) {
    if let Ok(text) = serde_json::to_string(message) {
        let _ = writeln!(std::io::stdout().lock(), "{text}");
    }
}
