//! The order in which things are looked at.

use std::path::{Path, PathBuf};
use std::time::Duration;

use peersum::loader::LoadPolicy;
use rustix::process::{Resource, getrlimit};

use crate::cubins::compiled_ahead;
use crate::gpus::Gpus;
use crate::machine;
use crate::places;
use crate::report::{Finding, Report, Subject};

/// How long one check may take, unless set otherwise. Opening a GPU that has slept takes seconds.
const PATIENCE: Duration = Duration::from_secs(20);

/// Looks at the machine, with the settings that a communicator would take from the environment.
#[must_use]
pub fn doctor() -> Report {
    Examination::default().run()
}

/// What to look at, and how long.
#[derive(Debug, Clone)]
#[must_use = "an examination does nothing until `run` is called"]
pub struct Examination {
    /// Where to look for compiled kernels first, as [`LoadPolicy::cubin_dir`] does.
    pub cubin_dir: Option<PathBuf>,
    /// How long a check may take, 20 seconds by default. One that builds a whole communicator may
    /// take four times as long.
    pub patience: Duration,
}

impl Default for Examination {
    /// What [`doctor`] looks at.
    fn default() -> Self {
        Self {
            cubin_dir: None,
            patience: PATIENCE,
        }
    }
}

impl Examination {
    /// Looks.
    #[must_use]
    pub fn run(self) -> Report {
        let mut report = Report::new();
        let mut policy = LoadPolicy::from_env().unwrap_or_else(|error| {
            report.push(
                Finding::not(Subject::Environment, error)
                    .meaning("no communicator can be built until this is fixed")
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
            report.push(compiled_ahead(&policy));
        }
        let search = policy.nvrtc_search().clone();
        let nvrtc = move || places::nvrtc(&search);
        report.push(Finding::within(patience, Subject::Nvrtc, nvrtc));
        let cache = policy.cache_directory().map(Path::to_owned);
        let jit_cache = move || places::jit_cache(cache.as_deref());
        report.push(Finding::within(patience, Subject::JitCache, jit_cache));
        let rendezvous = move || places::rendezvous(patience);
        report.push(Finding::within(
            patience * 2,
            Subject::Rendezvous,
            rendezvous,
        ));
        report.push(Finding::within(patience, Subject::Nccl, places::nccl));
        report.push(machine::namespaces());
        report.push(machine::limits(getrlimit(Resource::Nofile).current));
        report.push(machine::environment(report.gpus.len(), variable));
        report
    }
}
