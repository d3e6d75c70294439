//! What the doctor found, as data.

use std::fmt::Display;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::bounded::bounded;

/// The version of the report's JSON. It changes when a field changes its meaning or is removed.
pub const REPORT_SCHEMA: u32 = 2;

/// What works with peersum on this machine.
///
/// Its `Display` is a table for people whose last line is the conclusion; its JSON is for programs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// [`REPORT_SCHEMA`].
    pub schema: u32,
    /// The version of peersum that wrote it.
    pub peersum_version: String,
    /// The driver, if one answers.
    pub driver: Option<DriverFacts>,
    /// The GPUs that this process sees.
    pub gpus: Vec<GpuFacts>,
    /// Every ordered pair of them.
    pub links: Vec<LinkFacts>,
    /// What was looked at, in order.
    pub findings: Vec<Finding>,
    /// The conclusion from all findings.
    pub conclusion: Conclusion,
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// What was looked at.
    pub subject: Subject,
    /// The GPUs that it is about, by ordinal; empty if it is about none or about the whole machine.
    pub gpus: Vec<u32>,
    /// Whether it works.
    pub verdict: Verdict,
    /// What was seen.
    pub seen: String,
    /// What follows for the user, and what to do. Empty if nothing follows.
    pub meaning: String,
    /// Whether it alone makes peersum unusable on this machine.
    pub blocking: bool,
}

/// Whether a thing works.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// It works.
    Works,
    /// It works, but slower or with less than possible; the finding says why.
    Slower,
    /// It does not work or is missing; the finding says what to do, or that nothing needs it.
    Not,
}

impl Verdict {
    /// `works`, `slower` or `not`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Verdict::Works => "works",
            Verdict::Slower => "slower",
            Verdict::Not => "not",
        }
    }
}

/// What a finding is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Subject {
    /// NVIDIA's driver.
    Driver,
    /// One GPU.
    Gpu,
    /// The links between GPUs, as the driver tells.
    Links,
    /// Where the kernels come from.
    Cubins,
    /// NVRTC, which compiles kernels that no cubin serves.
    Nvrtc,
    /// Memory shared as file descriptors between two ranks of this process, with data both ways.
    SharedMemory,
    /// The same between two processes.
    Processes,
    /// Memory shared by legacy CUDA IPC between two processes.
    LegacyIpc,
    /// A context on a GPU, with a page of locked memory that it maps.
    Context,
    /// An all-reduce, compared with the reference.
    AllReduce,
    /// PID and IPC namespaces.
    Namespaces,
    /// The process's limits.
    Limits,
    /// The directory where ranks meet.
    Rendezvous,
    /// The directory that keeps what NVRTC compiled.
    JitCache,
    /// Environment variables that change what CUDA does.
    Environment,
    /// The NCCL library.
    Nccl,
    /// The kernels on the CPU.
    Emulator,
}

impl Subject {
    /// In words.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Subject::Driver => "driver",
            Subject::Gpu => "GPU",
            Subject::Links => "links",
            Subject::Cubins => "cubins",
            Subject::Nvrtc => "NVRTC",
            Subject::SharedMemory => "shared memory",
            Subject::Processes => "two processes",
            Subject::LegacyIpc => "legacy IPC",
            Subject::Context => "CUDA context",
            Subject::AllReduce => "all-reduce",
            Subject::Namespaces => "namespaces",
            Subject::Limits => "limits",
            Subject::Rendezvous => "rendezvous",
            Subject::JitCache => "JIT cache",
            Subject::Environment => "environment",
            Subject::Nccl => "NCCL",
            Subject::Emulator => "emulator",
        }
    }
}

/// The conclusion from all findings.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Conclusion {
    /// In one word.
    pub usable: Usable,
    /// In a sentence.
    pub text: String,
}

/// Whether peersum can be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Usable {
    /// Yes, on the GPUs.
    Ready,
    /// Yes, on the GPUs, and some finding says what could be better.
    Slower,
    /// There is no GPU that this process sees; what needs none works.
    NoGpu,
    /// No: at least one finding is [blocking](Finding::blocking).
    No,
}

/// NVIDIA's driver.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DriverFacts {
    /// The newest CUDA that it supports, for instance `13.0`.
    pub cuda: String,
    /// The version of its kernel module, for instance `580.95.05`; `None` if `/proc` does not tell.
    pub kernel_module: Option<String>,
}

/// One GPU, as the driver describes it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GpuFacts {
    /// CUDA's number for it in this process.
    pub ordinal: u32,
    /// Its name.
    pub name: String,
    /// As `nvidia-smi -L` prints it.
    pub uuid: String,
    /// Where it is on the PCI bus, for instance `0000:1b:00.0`.
    pub pci_bus_id: String,
    /// Compute capability, for instance `9.0`.
    pub compute_capability: String,
    /// Multiprocessors.
    pub multiprocessors: u32,
    /// Its memory in bytes.
    pub memory_bytes: u64,
    /// Whether it is a part of a partitioned GPU.
    pub mig: bool,
    /// Who may open it.
    pub compute_mode: ComputeMode,
    /// Whether its memory can travel as a file descriptor, as the driver says.
    pub file_descriptors: bool,
}

/// Who may open a GPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ComputeMode {
    /// Any number of processes.
    Shared,
    /// One process at a time.
    ExclusiveProcess,
    /// None.
    Prohibited,
    /// A mode that this version does not know.
    Unknown,
}

/// How one GPU reaches the memory of another.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LinkFacts {
    /// The GPU that reads and writes.
    pub from: u32,
    /// The GPU whose memory it is.
    pub to: u32,
    /// Whether the driver says that it can.
    pub access: bool,
    /// Whether the other GPU performs atomics on its memory: over NVLink it does, over PCIe not.
    pub native_atomics: bool,
    /// Whether random bytes arrived, read and written; `None` if it was not tried.
    pub data_arrived: Option<bool>,
    /// Gigabytes (10^9 bytes) read from the other's memory in a second, while it read as much from
    /// this one; `None` if it was not measured.
    pub gigabytes_per_second: Option<f64>,
}

impl Report {
    pub(crate) fn new() -> Self {
        let mut report = Self {
            schema: REPORT_SCHEMA,
            peersum_version: env!("CARGO_PKG_VERSION").to_owned(),
            driver: None,
            gpus: Vec::new(),
            links: Vec::new(),
            findings: Vec::new(),
            conclusion: Conclusion {
                usable: Usable::NoGpu,
                text: String::new(),
            },
        };
        report.conclude();
        report
    }

    /// Adds a finding, and draws the conclusion again.
    pub fn push(&mut self, finding: Finding) {
        self.findings.push(finding);
        self.conclude();
    }

    /// The findings about `subject`.
    pub fn about(&self, subject: Subject) -> impl Iterator<Item = &Finding> {
        self.findings
            .iter()
            .filter(move |finding| finding.subject == subject)
    }

    /// The first two GPUs that shared memory, or the only one twice. `None` if memory could not be
    /// shared within a process: then two processes need not try.
    #[must_use]
    pub fn sharing_pair(&self) -> Option<[u32; 2]> {
        let mut gpus = self
            .about(Subject::SharedMemory)
            .filter(|finding| finding.verdict != Verdict::Not)
            .flat_map(|finding| &finding.gpus)
            .copied();
        let first = gpus.next()?;
        Some([first, gpus.next().unwrap_or(first)])
    }

    fn conclude(&mut self) {
        let subjects = |wanted: &dyn Fn(&Finding) -> bool| {
            let mut names: Vec<&str> = Vec::new();
            for finding in self.findings.iter().filter(|finding| wanted(finding)) {
                if !names.contains(&finding.subject.name()) {
                    names.push(finding.subject.name());
                }
            }
            names.join(", ")
        };
        let blocking = subjects(&|finding| finding.blocking);
        let slower = subjects(&|finding| finding.verdict == Verdict::Slower);
        let gpus = match self.gpus.len() {
            1 => "1 GPU".to_owned(),
            count => format!("{count} GPUs"),
        };
        let (usable, text) = if !blocking.is_empty() {
            (
                Usable::No,
                format!("peersum cannot be used here until this is fixed: {blocking}"),
            )
        } else if self.gpus.is_empty() {
            (
                Usable::NoGpu,
                "no GPU here; what needs none works: compiling the kernels ahead of time, and \
                 running them on the CPU in the emulator"
                    .to_owned(),
            )
        } else if !slower.is_empty() {
            (
                Usable::Slower,
                format!("peersum works here on {gpus}; see what could be better: {slower}"),
            )
        } else {
            (Usable::Ready, format!("peersum works here on {gpus}"))
        };
        self.conclusion = Conclusion { usable, text };
    }
}

impl Finding {
    /// A finding about the whole machine, without a meaning and not blocking.
    pub fn new(subject: Subject, verdict: Verdict, seen: impl Display) -> Self {
        Self {
            subject,
            gpus: Vec::new(),
            verdict,
            seen: seen.to_string(),
            meaning: String::new(),
            blocking: false,
        }
    }

    /// Something that works.
    pub fn works(subject: Subject, seen: impl Display) -> Self {
        Self::new(subject, Verdict::Works, seen)
    }

    /// Something that works, but slower or with less than possible.
    pub fn slower(subject: Subject, seen: impl Display) -> Self {
        Self::new(subject, Verdict::Slower, seen)
    }

    /// Something that does not work or is missing.
    pub fn not(subject: Subject, seen: impl Display) -> Self {
        Self::new(subject, Verdict::Not, seen)
    }

    /// What `check` finds, or that it gave no answer in time.
    pub(crate) fn within(
        patience: Duration,
        subject: Subject,
        check: impl FnOnce() -> Finding + Send + 'static,
    ) -> Self {
        bounded(patience, check).unwrap_or_else(|unanswered| Self::not(subject, unanswered))
    }

    /// The same, about these GPUs, each of which counts once.
    #[must_use]
    pub fn on(mut self, gpus: impl IntoIterator<Item = u32>) -> Self {
        self.gpus = gpus.into_iter().collect();
        self.gpus.sort_unstable();
        self.gpus.dedup();
        self
    }

    /// The same, with what follows and what to do.
    #[must_use]
    pub fn meaning(mut self, meaning: impl Into<String>) -> Self {
        self.meaning = meaning.into();
        self
    }

    /// The same, which alone makes peersum unusable if `blocking`.
    #[must_use]
    pub fn blocking(mut self, blocking: bool) -> Self {
        self.blocking = blocking;
        self
    }
}
