//! What ptxas reports about the code that it made.

use std::collections::BTreeMap;

use crate::manifest::KernelResources;

/// What ptxas prints under `-v`, taken apart.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PtxasReport {
    /// The report of each function by its name, entry point or not.
    pub functions: BTreeMap<String, KernelResources>,
    /// Every other line: warnings, which are worth showing although the module was built.
    pub remarks: Vec<String>,
}

impl PtxasReport {
    /// Takes the output of nvcc, or the log of NVRTC, apart. Other lines are kept as remarks.
    #[must_use]
    pub fn parse(output: &str) -> Self {
        let mut report = Self::default();
        // The line "Used" is about the kernel being compiled, the line of spills about the function
        // that "Function properties" names.
        let mut entry: Option<String> = None;
        let mut function: Option<String> = None;
        for line in output.lines() {
            if let Some(info) = line
                .strip_prefix("ptxas info")
                .map(|rest| rest.trim_start_matches([' ', ':']))
            {
                if let Some(name) = info
                    .strip_prefix("Compiling entry function ")
                    .and_then(quoted)
                {
                    entry = Some(name.to_owned());
                    function = entry.clone();
                } else if let Some(name) = info.strip_prefix("Function properties for ") {
                    function = Some(name.trim().trim_matches('\'').to_owned());
                } else if let (Some(used), Some(name)) = (info.strip_prefix("Used "), &entry) {
                    let function = report.functions.entry(name.clone()).or_default();
                    function.registers = count_before(used, "registers").unwrap_or(0);
                    function.shared_bytes = count_before(used, "bytes smem").unwrap_or(0);
                }
            } else if line.contains("bytes spill stores") {
                if let Some(name) = function.clone() {
                    report.functions.entry(name).or_default().spill_bytes =
                        count_before(line, "bytes spill stores").unwrap_or(0)
                            + count_before(line, "bytes spill loads").unwrap_or(0);
                }
            } else if !line.trim().is_empty() {
                report.remarks.push(line.to_owned());
            }
        }
        report
    }

    /// The functions that spill registers to memory, with the bytes.
    pub fn spills(&self) -> impl Iterator<Item = (&str, u32)> {
        self.functions
            .iter()
            .filter(|(_, report)| report.spill_bytes > 0)
            .map(|(name, report)| (&**name, report.spill_bytes))
    }
}

/// The text between the first pair of single quotes.
fn quoted(text: &str) -> Option<&str> {
    text.split('\'').nth(1)
}

/// The number in front of `unit` in a comma separated list such as
/// `8 registers, 364 bytes cmem[0], 48+0 bytes smem`. Old releases write shared memory as a sum.
fn count_before(list: &str, unit: &str) -> Option<u32> {
    let item = list
        .split(',')
        .map(str::trim)
        .find(|item| item.ends_with(unit))?;
    item.strip_suffix(unit)?
        .trim()
        .split('+')
        .map(|number| number.parse::<u32>().ok())
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Registers, bytes of spills and of shared memory.
    fn used(report: &PtxasReport, function: &str) -> (u32, u32, u32) {
        let used = report.functions[function];
        (used.registers, used.spill_bytes, used.shared_bytes)
    }

    #[test]
    fn registers_spills_and_shared_memory_are_read_for_each_entry_point() {
        let report = PtxasReport::parse(
            "ptxas info    : 0 bytes gmem\n\
             ptxas info    : Compiling entry function 'one' for 'sm_90'\n\
             ptxas info    : Function properties for one\n    \
             0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads\n\
             ptxas info    : Used 60 registers, used 1 barriers, 4096 bytes smem, \
             364 bytes cmem[0]\n\
             ptxas info    : Compile time = 85.315 ms\n\
             ptxas info    : Compiling entry function 'two' for 'sm_90'\n\
             ptxas info    : Function properties for two\n    \
             16 bytes stack frame, 12 bytes spill stores, 20 bytes spill loads\n\
             ptxas info    : Used 255 registers, used 1 barriers\n",
        );
        assert_eq!(used(&report, "one"), (60, 0, 4096));
        assert_eq!(used(&report, "two"), (255, 32, 0));
        assert_eq!(report.spills().collect::<Vec<_>>(), [("two", 32)]);
        assert!(report.remarks.is_empty(), "{:?}", report.remarks);
    }

    #[test]
    fn a_spill_of_a_function_that_is_no_entry_point_is_not_charged_to_the_entry() {
        let report = PtxasReport::parse(
            "ptxas info    : Compiling entry function 'entry' for 'sm_80'\n\
             ptxas info    : Function properties for entry\n    \
             0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads\n\
             ptxas info    : Used 12 registers, 48+16 bytes smem, 364 bytes cmem[0]\n\
             ptxas info    : Function properties for helper\n    \
             8 bytes stack frame, 4 bytes spill stores, 4 bytes spill loads\n",
        );
        assert_eq!(used(&report, "entry"), (12, 0, 64));
        assert_eq!(report.spills().collect::<Vec<_>>(), [("helper", 8)]);
    }

    #[test]
    fn the_log_of_nvrtc_is_read_too() {
        let report = PtxasReport::parse(
            "ptxas info    : 0 bytes gmem\n\
             ptxas info    : Compiling entry function 'first' for 'sm_90'\n\
             ptxas info    : Function properties for first\n\
             ptxas         .     0 bytes stack frame, 4 bytes spill stores, 8 bytes spill loads\n\
             ptxas info    : Used 14 registers, used 0 barriers\n",
        );
        assert_eq!(used(&report, "first"), (14, 12, 0));
    }

    #[test]
    fn a_warning_is_kept_as_a_remark() {
        let report = PtxasReport::parse(
            "push.cu(3): warning #177-D: variable \"x\" was declared but never referenced\n\n",
        );
        assert_eq!(
            report.remarks,
            ["push.cu(3): warning #177-D: variable \"x\" was declared but never referenced"]
        );
    }
}
