//! What ptxas reports about the code that it made.

use std::collections::BTreeMap;

/// What ptxas prints under `-v`, taken apart.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PtxasReport {
    /// The functions that spill registers to memory, entry points or not, with the bytes a thread,
    /// stores and loads together.
    pub spills: BTreeMap<String, u32>,
    /// Warnings, which are worth showing although the module was built.
    pub remarks: Vec<String>,
}

impl PtxasReport {
    /// Takes the output of nvcc apart. Lines that are not of ptxas are kept as remarks.
    #[must_use]
    pub fn parse(output: &str) -> Self {
        let mut report = Self::default();
        // A line of spills is about the function that "Function properties" named last.
        let mut function = String::new();
        for line in output.lines() {
            if let Some(info) = line.strip_prefix("ptxas info") {
                if let Some((_, name)) = info.split_once("Function properties for ") {
                    function = name.trim().trim_matches('\'').to_owned();
                }
            } else if line.contains("bytes spill stores") {
                let bytes = count_before(line, "bytes spill stores")
                    + count_before(line, "bytes spill loads");
                if bytes > 0 {
                    report.spills.insert(function.clone(), bytes);
                }
            } else if !line.trim().is_empty() {
                report.remarks.push(line.to_owned());
            }
        }
        report
    }
}

/// The number in front of `unit` in a comma separated list such as
/// `8 bytes stack frame, 4 bytes spill stores, 4 bytes spill loads`; 0 if there is none.
fn count_before(list: &str, unit: &str) -> u32 {
    let counts = list
        .split(',')
        .filter_map(|item| item.trim().strip_suffix(unit));
    counts
        .filter_map(|count| count.trim().parse::<u32>().ok())
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spills_are_those_of_the_function_that_the_line_before_names() {
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
             ptxas info    : Used 255 registers, used 1 barriers\n\
             ptxas info    : Function properties for helper\n    \
             8 bytes stack frame, 4 bytes spill stores, 4 bytes spill loads\n",
        );
        let expected = [("two", 32), ("helper", 8)].map(|(name, bytes)| (name.to_owned(), bytes));
        assert_eq!(report.spills, BTreeMap::from(expected));
        assert!(report.remarks.is_empty(), "{:?}", report.remarks);
    }

    #[test]
    fn a_warning_is_kept_as_a_remark() {
        let warning =
            "push.cu(3): warning #177-D: variable \"x\" was declared but never referenced";
        let report = PtxasReport::parse(&format!("{warning}\n\n"));
        assert_eq!(report.remarks, [warning]);
    }
}
