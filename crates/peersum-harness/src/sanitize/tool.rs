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
    fn the_errors_of_a_tools_own_summaries_are_added_up_and_without_one_there_is_no_number() {
        let one = "========= COMPUTE-SANITIZER\n========= ERROR SUMMARY: 3 errors\n";
        let races = "========= RACECHECK SUMMARY: 1 hazard displayed (0 errors, 1 warning)\n";
        // What compute-sanitizer prints, with exit status 0, of a program that uses no GPU.
        let nothing = "========= COMPUTE-SANITIZER\n\
            ========= Target application terminated before first instrumented API call\n";
        for (tool, report, errors) in [
            (Tool::Memcheck, one, Some(3)),
            (Tool::Initcheck, one, Some(3)),
            (Tool::Racecheck, one, None),
            (Tool::Racecheck, races, Some(1)),
            (Tool::Synccheck, races, None),
            (
                Tool::Memcheck,
                &format!("{one}========= ERROR SUMMARY: 1 error\n"),
                Some(4),
            ),
            (Tool::Memcheck, nothing, None),
            (Tool::Memcheck, "", None),
            (Tool::Memcheck, "========= ERROR SUMMARY: no errors\n", None),
        ] {
            assert_eq!(tool.errors(report), errors, "{tool:?}: {report}");
        }
    }
}
