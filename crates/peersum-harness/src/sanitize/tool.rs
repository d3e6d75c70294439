//! The tools of compute-sanitizer: what each is asked to find, and what its report says.

use clap::ValueEnum;

/// A tool of compute-sanitizer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Tool {
    /// Accesses that are out of bounds or misaligned.
    Memcheck,
    /// Global memory that is read before it is written.
    Initcheck,
    /// Accesses to shared memory without a barrier in between.
    Racecheck,
    /// Barriers that not all threads reach.
    Synccheck,
}

impl Tool {
    /// The kernel of `planted.ptx` with the error that it must find.
    pub(crate) fn planted_kernel(self) -> &'static str {
        match self {
            Tool::Memcheck => "peersum_planted_out_of_bounds",
            Tool::Initcheck => "peersum_planted_uninitialised",
            Tool::Racecheck => "peersum_planted_race",
            Tool::Synccheck => "peersum_planted_divergent_barrier",
        }
    }

    /// The tool's own flags.
    pub(crate) fn flags(self) -> &'static [&'static str] {
        match self {
            // An error that the driver returns is not an error of a kernel: set-up tries things
            // that a driver may refuse, and if it may not, the grid itself fails.
            Tool::Memcheck => &["--report-api-errors", "no"],
            _ => &[],
        }
    }

    /// The number of errors in the report, summed over the summaries of all processes. `None` if
    /// there is no summary: then the tool has checked nothing.
    pub(crate) fn errors(self, report: &str) -> Option<u64> {
        let summary = match self {
            Tool::Racecheck => " RACECHECK SUMMARY: ",
            _ => " ERROR SUMMARY: ",
        };
        let counts: Vec<u64> = report
            .lines()
            .filter_map(|line| line.split_once(summary))
            .map(|(_, counts)| counts.split(' ').next()?.parse().ok())
            .collect::<Option<_>>()?;
        (!counts.is_empty()).then(|| counts.iter().sum())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_tools_summary_is_read_and_no_other() {
        let report = "========= COMPUTE-SANITIZER\n========= ERROR SUMMARY: 3 errors\n";
        assert_eq!(Tool::Memcheck.errors(report), Some(3));
        assert_eq!(Tool::Initcheck.errors(report), Some(3));
        assert_eq!(Tool::Racecheck.errors(report), None);
        let report = "========= RACECHECK SUMMARY: 1 hazard displayed (0 errors, 1 warning)\n";
        assert_eq!(Tool::Racecheck.errors(report), Some(1));
        assert_eq!(Tool::Synccheck.errors(report), None);
    }

    #[test]
    fn several_summaries_are_added_up() {
        let report = "========= ERROR SUMMARY: 0 errors\n========= ERROR SUMMARY: 1 error\n";
        assert_eq!(Tool::Memcheck.errors(report), Some(1));
    }

    #[test]
    fn a_summary_that_is_missing_or_not_understood_is_none() {
        // What compute-sanitizer prints, with exit status 0, of a program that uses no GPU.
        let nothing = "========= COMPUTE-SANITIZER\n\
            ========= Target application terminated before first instrumented API call\n";
        assert_eq!(Tool::Memcheck.errors(nothing), None);
        assert_eq!(Tool::Memcheck.errors(""), None);
        assert_eq!(
            Tool::Memcheck.errors("========= ERROR SUMMARY: no errors\n"),
            None
        );
    }
}
