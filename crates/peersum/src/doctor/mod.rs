//! What of this machine works with peersum, what is slower and why, and what does not work and what to do.
//!
//! [`doctor`] looks at everything from inside one process and returns a [`Report`], which is text by `Display` and JSON by `serde`:
//!
//! ```no_run
//! let report = peersum::doctor();
//! println!("{report}");
//! for finding in report.findings.iter().filter(|finding| finding.blocking) {
//!     eprintln!("{}: {}", finding.subject.name(), finding.meaning);
//! }
//! ```
//!
//! Nothing is believed that can be tried: memory is shared as a communicator shares it, random bytes are sent both ways between every two GPUs,
//! and an all-reduce over all of them is compared with the reference. What takes two processes, `cargo xtask doctor` tries as well.
//!
//! Every check is bounded in time, and a missing library, function or device is a finding, never a panic. A context is made on each GPU and given
//! back, so call it before a program's own work, not beside it. Multicast objects are never made.

mod bounded;
mod cubins;
mod driver;
mod exchange;
mod gpus;
mod machine;
mod places;
mod report;
mod text;
mod trial;
mod verdicts;

use std::path::{Path, PathBuf};
use std::time::Duration;

pub use bounded::{Unanswered, bounded};
pub use exchange::{Exchanged, exchange, exchange_between};
pub use report::{
    ComputeMode, Conclusion, DriverFacts, Finding, GpuFacts, LinkFacts, REPORT_SCHEMA, Report,
    Subject, Usable, Verdict,
};
pub use trial::{Reduced, all_reduce_between};

use crate::loader::LoadPolicy;
use gpus::Gpus;

/// How long one check may take, unless set otherwise. Opening a GPU that has slept takes seconds.
const PATIENCE: Duration = Duration::from_secs(20);

/// Looks at the machine, with the settings that a communicator would take from the environment.
#[must_use]
pub fn doctor() -> Report {
    Examination::new().run()
}

/// What to look at, and how long.
#[derive(Debug, Clone)]
#[must_use = "an examination does nothing until `run` is called"]
pub struct Examination {
    cubin_dir: Option<PathBuf>,
    patience: Duration,
}

impl Default for Examination {
    fn default() -> Self {
        Self::new()
    }
}

impl Examination {
    /// What [`doctor`] looks at.
    pub fn new() -> Self {
        Self {
            cubin_dir: None,
            patience: PATIENCE,
        }
    }

    /// Looks for compiled kernels in this directory first, as [`LoadPolicy::cubin_dir`] does.
    pub fn cubin_dir(mut self, directory: impl Into<PathBuf>) -> Self {
        self.cubin_dir = Some(directory.into());
        self
    }

    /// How long a check may take, 20 seconds by default; one that makes a whole communicator may take four times as long.
    pub fn patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    /// Looks.
    #[must_use]
    pub fn run(self) -> Report {
        let mut report = Report::new();
        let mut policy = LoadPolicy::from_env().unwrap_or_else(|error| {
            report.push(
                Finding::new(Subject::Environment, Verdict::Not, error.to_string())
                    .meaning("no communicator can be built until it is put right")
                    .blocking(true),
            );
            LoadPolicy::default()
        });
        if let Some(directory) = self.cubin_dir {
            policy = policy.cubin_dir(directory);
        }
        let patience = self.patience;
        let variable =
            |name: &str| std::env::var_os(name).map(|value| value.to_string_lossy().into_owned());
        let traces = machine::traces(Path::new("/"), variable);
        Gpus {
            report: &mut report,
            policy: &policy,
            patience,
        }
        .examine(traces);
        if report.gpus.is_empty() {
            report.push(cubins::compiled_ahead(&policy));
        }
        let mut add = |subject, finding: Result<Finding, Unanswered>| {
            report.push(finding.unwrap_or_else(|unanswered| {
                Finding::new(subject, Verdict::Not, unanswered.to_string())
            }));
        };
        let search = policy.nvrtc_search().clone();
        add(
            Subject::Nvrtc,
            bounded(patience, move || places::nvrtc(&search)),
        );
        let cache = policy.cache_directory().map(Path::to_owned);
        add(
            Subject::JitCache,
            bounded(patience, move || places::jit_cache(cache.as_deref())),
        );
        add(
            Subject::Rendezvous,
            bounded(patience * 2, move || places::rendezvous(patience)),
        );
        add(Subject::Namespaces, Ok(machine::namespaces()));
        add(
            Subject::DevShm,
            bounded(patience, || machine::dev_shm(Path::new("/dev/shm"))),
        );
        add(Subject::Limits, Ok(machine::limits()));
        add(Subject::Nccl, bounded(patience, places::nccl));
        let gpus = report.gpus.len();
        report.push(machine::environment(gpus, variable));
        report
    }
}
