//! What a run tells while it works: a bar on a terminal, plain lines elsewhere, JSON lines for programs.

use super::compile::Failure;
use super::matrix::Artifact;
use clap::ValueEnum;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;
use std::fmt::Write as _;
use std::io::{IsTerminal as _, Write as _};
use std::time::Duration;

/// The form of the messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum MessageFormat {
    /// Text for people, on stderr
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
    bar: ProgressBar,
}

impl Reporter {
    /// A reporter without a bar; [`Reporter::begin`] adds it once there is something to count.
    pub(crate) fn new(format: MessageFormat, quiet: bool) -> Self {
        Self {
            format,
            quiet,
            bar: ProgressBar::hidden(),
        }
    }

    /// Says what the run is about to do.
    pub(crate) fn begin(&mut self, processes: usize, what: &str) {
        if self.format == MessageFormat::Json || self.quiet {
            return;
        }
        if std::io::stderr().is_terminal() {
            self.bar =
                ProgressBar::with_draw_target(Some(processes as u64), ProgressDrawTarget::stderr());
            if let Ok(style) =
                ProgressStyle::with_template("{prefix} [{bar:40}] {pos}/{len} {elapsed} {wide_msg}")
            {
                self.bar.set_style(style.progress_chars("=> "));
            }
            self.bar.set_prefix("compiling");
            self.bar.enable_steady_tick(Duration::from_millis(100));
        }
        self.line(what);
    }

    /// Something that a person should know although all is well.
    pub(crate) fn note(&self, message: &str) {
        match self.format {
            MessageFormat::Json => json(&Message::Note { message }),
            MessageFormat::Human if !self.quiet => self.line(&format!("note: {message}")),
            MessageFormat::Human => {}
        }
    }

    /// One compiler process ended well; `remarks` are the compiler's warnings.
    pub(crate) fn built(&self, artifacts: &[Artifact], seconds: f64, remarks: &[String]) {
        self.bar.inc(1);
        for artifact in artifacts {
            if self.format == MessageFormat::Json {
                json(&module(artifact, Status::Built, Some(seconds), None));
            }
        }
        let Some(label) = artifacts.first().map(Artifact::label) else {
            return;
        };
        if !remarks.is_empty() {
            self.note(&format!(
                "{label}: the compiler remarks\n{}",
                remarks.join("\n")
            ));
        }
        if self.format == MessageFormat::Human && !self.quiet {
            if self.bar.is_hidden() {
                self.line(&format!("built {label} in {seconds:.2} s"));
            } else {
                self.bar.set_message(label);
            }
        }
    }

    /// A module that is taken over as it is. People read the count in the summary.
    pub(crate) fn reused(&self, artifact: &Artifact) {
        if self.format == MessageFormat::Json {
            json(&module(artifact, Status::Reused, None, None));
        }
    }

    /// One compiler process failed; everything it said is shown.
    pub(crate) fn failed(&self, artifacts: &[Artifact], failure: &Failure) {
        self.bar.inc(1);
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
    }

    /// The result of a check: the problems on stdout, one a line.
    pub(crate) fn checked(&self, out: &str, modules: usize, problems: &[String]) {
        match self.format {
            MessageFormat::Json => {
                for message in problems {
                    json(&Message::Problem { message });
                }
                json(&Message::Check {
                    modules,
                    problems: problems.len(),
                    out,
                });
            }
            MessageFormat::Human => {
                for problem in problems {
                    let _ = writeln!(std::io::stdout().lock(), "{problem}");
                }
                if !problems.is_empty() {
                    self.line(&format!(
                        "error: {out} is not what was asked for ({} of {modules} modules); `cargo xtask precompile` \
                         with the same flags makes it so",
                        problems.len()
                    ));
                } else if !self.quiet {
                    self.line(&format!(
                        "{modules} modules are there, whole and up to date; {out}"
                    ));
                }
            }
        }
    }

    /// The last word of a run.
    pub(crate) fn summary(&self, summary: &Summary) {
        self.bar.finish_and_clear();
        match self.format {
            MessageFormat::Json => json(&Message::Summary { summary }),
            MessageFormat::Human if self.quiet && summary.failed == 0 => {}
            MessageFormat::Human => {
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
        }
    }

    /// Writes a line to stderr without tearing the bar.
    fn line(&self, text: &str) {
        self.bar.suspend(|| {
            // A closed stderr is no reason to stop compiling.
            let _ = writeln!(std::io::stderr().lock(), "{text}");
        });
    }
}

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
