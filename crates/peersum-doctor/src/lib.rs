//! Diagnose this machine: what works with peersum, what is slow, and how to fix it.
//!
//! [`doctor`] looks at everything from inside one process and returns a [`Report`], which is text
//! by `Display` and JSON by `serde`:
//!
//! ```no_run
//! let report = peersum_doctor::doctor();
//! println!("{report}");
//! for finding in report.findings.iter().filter(|finding| finding.blocking) {
//!     eprintln!("{}: {}", finding.subject.name(), finding.meaning);
//! }
//! ```
//!
//! The doctor tries things instead of believing what the driver says: it shares memory as a
//! communicator does, sends random bytes both ways between every two GPUs, and compares an
//! all-reduce over all of them with the reference. [`TwoProcesses`] tries the same memory between
//! two processes; `cargo xtask doctor` does both.
//!
//! Every check is bounded in time, and a missing library, function or device is a finding, never a
//! panic. The doctor opens a context on each GPU and closes it, so run it before a program's own
//! work, not beside it.

mod all_reduce;
mod bounded;
mod cubins;
mod driver;
mod examination;
mod exchange;
mod gpus;
mod machine;
mod places;
mod processes;
mod ranks;
mod report;
mod text;
mod verdicts;

pub use all_reduce::emulator_finding;
pub use examination::{Examination, doctor};
pub use gpus::open_stream;
pub use processes::{TwoProcesses, other_process};
pub use report::{
    ComputeMode, Conclusion, DriverFacts, Finding, GpuFacts, LinkFacts, REPORT_SCHEMA, Report,
    Subject, Usable, Verdict,
};
