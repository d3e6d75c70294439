//! The report as a table for people.

use std::fmt;

use crate::report::{Finding, Report, Subject};

/// The most columns of a line.
const WIDTH: usize = 100;
/// The column in which a finding's text begins.
const INDENT: usize = 28;
/// The columns of the subject.
const SUBJECT: usize = 20;

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "peersum {} on this machine\n", self.peersum_version)?;
        for finding in &self.findings {
            write!(f, "{finding}")?;
        }
        write!(f, "\n{}", self.conclusion.text)
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The subject of a GPU's own finding is that GPU; other findings name theirs in the text.
        let (subject, about) = match (self.subject, self.gpus.as_slice()) {
            (Subject::Gpu, gpus @ [_, ..]) => (format!("GPU {}", ordinals(gpus)), String::new()),
            (subject, []) => (subject.name().to_owned(), String::new()),
            (subject, gpus) => (
                subject.name().to_owned(),
                format!("GPU {}: ", ordinals(gpus)),
            ),
        };
        let mut head = format!("{subject:<SUBJECT$}{:<8}", self.verdict.name());
        let seen = format!("{about}{}", self.seen);
        for line in [&seen, &self.meaning]
            .into_iter()
            .flat_map(|text| text.lines())
            .flat_map(wrap)
        {
            writeln!(f, "{head:<INDENT$}{line}")?;
            head.clear();
        }
        Ok(())
    }
}

/// `0, 1, 2`.
fn ordinals(gpus: &[u32]) -> String {
    let gpus: Vec<String> = gpus.iter().map(u32::to_string).collect();
    gpus.join(", ")
}

/// Breaks a line at spaces so that it fits behind the indent.
fn wrap(line: &str) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in line.split(' ') {
        let Some(last) = lines.last_mut() else { break };
        if last.is_empty() {
            last.push_str(word);
        } else if INDENT + last.chars().count() + 1 + word.chars().count() <= WIDTH {
            last.push(' ');
            last.push_str(word);
        } else {
            lines.push(word.to_owned());
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::{ComputeMode, GpuFacts, Usable};

    /// A report as a machine with two GPUs might give it.
    fn report() -> Report {
        let mut report = Report::new();
        report.peersum_version = "0.1.0".to_owned();
        report.gpus = (0..2)
            .map(|ordinal| GpuFacts {
                ordinal,
                name: "NVIDIA H100 80GB HBM3".to_owned(),
                uuid: "GPU-00112233-4455-6677-8899-aabbccddeeff".to_owned(),
                pci_bus_id: "0000:1b:00.0".to_owned(),
                compute_capability: "9.0".to_owned(),
                multiprocessors: 132,
                memory_bytes: 80 << 30,
                mig: false,
                compute_mode: ComputeMode::Shared,
                file_descriptors: true,
            })
            .collect();
        report.push(Finding::works(Subject::Driver, "CUDA 13.0"));
        report.push(Finding::works(Subject::Gpu, "NVIDIA H100").on([1]));
        report.push(Finding::works(Subject::SharedMemory, "bytes arrived").on(0..2));
        report.push(Finding::slower(Subject::Limits, "open files: 64").meaning(
            "memory travels as file descriptors, so larger groups may run out of them: raise \
                 the limit with `ulimit -n 256`",
        ));
        report
    }

    #[test]
    fn a_report_is_a_table_that_ends_in_the_conclusion() {
        let expected = "\
peersum 0.1.0 on this machine

driver              works   CUDA 13.0
GPU 1               works   NVIDIA H100
shared memory       works   GPU 0, 1: bytes arrived
limits              slower  open files: 64
                            memory travels as file descriptors, so larger groups may run out of
                            them: raise the limit with `ulimit -n 256`

peersum works here on 2 GPUs; see what could be better: limits";
        assert_eq!(report().to_string(), expected);
    }

    #[test]
    fn a_report_survives_json_and_names_its_schema() {
        let report = report();
        let json = serde_json::to_string(&report).unwrap();
        assert!(json.starts_with("{\"schema\":2,\"peersum_version\":\"0.1.0\""));
        assert!(json.contains("\"verdict\":\"slower\"") && json.contains("\"shared_memory\""));
        assert_eq!(serde_json::from_str::<Report>(&json).unwrap(), report);
    }

    #[test]
    fn one_blocking_finding_makes_a_machine_unusable_and_no_gpu_does_not() {
        let mut empty = Report::new();
        assert_eq!(empty.conclusion.usable, Usable::NoGpu);
        empty.push(Finding::not(Subject::Driver, "no driver"));
        assert_eq!(empty.conclusion.usable, Usable::NoGpu);
        let mut report = report();
        assert_eq!(report.conclusion.usable, Usable::Slower);
        report.findings.pop();
        report.push(Finding::not(Subject::Nvrtc, "not found"));
        assert_eq!(report.conclusion.usable, Usable::Ready);
        report.push(Finding::not(Subject::AllReduce, "wrong").blocking(true));
        assert_eq!(report.conclusion.usable, Usable::No);
        assert!(report.conclusion.text.ends_with(": all-reduce"));
    }
}
