//! The resources that ptxas reports for each kernel.

use std::collections::HashMap;

use peersum_artifact::KernelResources;

/// Stands for a kernel that the report does not mention.
pub(super) const UNREPORTED: KernelResources = KernelResources {
    registers: 0,
    spill_bytes: 0,
    shared_bytes: 0,
};

/// Reads the resource lines that ptxas prints under `-v`, for kernels and for functions that they
/// call, by name. Unknown lines are skipped: the report informs, nothing depends on it.
pub(super) fn reported_resources(log: &str) -> HashMap<&str, KernelResources> {
    let mut reported = HashMap::new();
    // The line of registers is about the kernel being compiled; "Function properties" names the
    // function that the spill line is about.
    let (mut kernel, mut function) = ("", "");
    for line in log.lines() {
        if let Some((_, rest)) = line.split_once("Compiling entry function '") {
            kernel = rest.split('\'').next().unwrap_or_default();
        } else if let Some((_, name)) = line.split_once("Function properties for ") {
            function = name.trim().trim_matches('\'');
        } else if line.contains("spill stores") {
            reported.entry(function).or_insert(UNREPORTED).spill_bytes =
                number_before(line, " bytes spill stores")
                    + number_before(line, " bytes spill loads");
        } else if line.contains("Used ") && line.contains(" registers") {
            let resources = reported.entry(kernel).or_insert(UNREPORTED);
            resources.registers = number_before(line, " registers");
            resources.shared_bytes = number_before(line, " bytes smem");
        }
    }
    reported
}

/// The decimal number that stands right before `unit` in `line`, or 0.
fn number_before(line: &str, unit: &str) -> u32 {
    line.find(unit)
        .and_then(|at| line[..at].rsplit(|c: char| !c.is_ascii_digit()).next())
        .and_then(|digits| digits.parse().ok())
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ptxas_report_is_read_kernel_by_kernel() {
        let log = "\
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'first' for 'sm_90'
ptxas info    : Function properties for first
ptxas         .     0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 14 registers, used 0 barriers
ptxas info    : Compiling entry function 'second' for 'sm_90'
ptxas info    : Function properties for second
    16 bytes stack frame, 12 bytes spill stores, 8 bytes spill loads
ptxas info    : Used 255 registers, used 1 barriers, 1024 bytes smem, 480 bytes cmem[0]
ptxas info    : Function properties for called
ptxas         .     0 bytes stack frame, 4 bytes spill stores, 0 bytes spill loads
";
        let resources = |registers, spill_bytes, shared_bytes| KernelResources {
            registers,
            spill_bytes,
            shared_bytes,
        };
        let expected = [
            ("first", resources(14, 0, 0)),
            ("second", resources(255, 20, 1024)),
            ("called", resources(0, 4, 0)),
        ];
        assert_eq!(reported_resources(log), HashMap::from(expected));
    }
}
