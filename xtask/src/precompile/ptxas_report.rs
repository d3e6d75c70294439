//! What the compiler says about the code it made: ptxas's report, and the facts that stand in the PTX.

use std::collections::BTreeMap;

/// What ptxas reports for one function.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct FunctionReport {
    /// Registers a thread.
    pub(crate) registers: u32,
    /// Bytes of spill stores plus bytes of spill loads.
    pub(crate) spill_bytes: u32,
    /// Static shared memory in bytes.
    pub(crate) shared_bytes: u32,
}

/// The output of `nvcc -Xptxas -v`, taken apart.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct PtxasReport {
    /// The report of each function by its name, entry point or not.
    pub(crate) functions: BTreeMap<String, FunctionReport>,
    /// Every other line: warnings, which deserve to be seen although the module was built.
    pub(crate) remarks: Vec<String>,
}

impl PtxasReport {
    /// Takes the compiler's output apart. Lines that are not part of the report are kept as remarks.
    pub(crate) fn parse(output: &str) -> Self {
        let mut report = Self::default();
        // The entry being compiled owns the "Used" line; "Function properties" names whom the spill line is about.
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
    pub(crate) fn spills(&self) -> impl Iterator<Item = (&str, u32)> {
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

/// The number in front of `unit` in a comma separated list such as `8 registers, 364 bytes cmem[0], 48+0 bytes smem`.
/// Old releases write shared memory as a sum.
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

/// What the PTX text says of one entry point.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PtxEntry {
    /// The largest block that its launch bounds allow, in threads.
    pub(crate) max_threads: u32,
    /// Whether it waits for the kernel before it (`griddepcontrol.wait`).
    pub(crate) waits_for_predecessor: bool,
}

/// The facts that precompile takes from a module's PTX.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct PtxFacts {
    /// The ISA version of the text, such as `9.0`.
    pub(crate) version: String,
    /// The entry points by name.
    pub(crate) entries: BTreeMap<String, PtxEntry>,
}

impl PtxFacts {
    /// Reads the text that cicc wrote. `None` if it names no version, which no PTX does.
    pub(crate) fn parse(ptx: &str) -> Option<Self> {
        let mut version = None;
        let mut entries = BTreeMap::new();
        let mut current: Option<(String, PtxEntry)> = None;
        for line in ptx.lines().map(str::trim) {
            if let Some(number) = line.strip_prefix(".version ") {
                version = Some(number.trim().to_owned());
            } else if let Some((_, rest)) = line.split_once(".entry ") {
                entries.extend(current.take());
                let name = rest.split(['(', ' ']).next().unwrap_or_default().to_owned();
                current = Some((
                    name,
                    PtxEntry {
                        max_threads: 1024,
                        waits_for_predecessor: false,
                    },
                ));
            } else if line.contains(".func ") {
                entries.extend(current.take());
            } else if let Some((_, entry)) = &mut current {
                if let Some(bounds) = line.strip_prefix(".maxntid ") {
                    // Three extents; a block may hold their product.
                    entry.max_threads = bounds
                        .split(',')
                        .filter_map(|extent| extent.trim().parse::<u32>().ok())
                        .product();
                } else if line.starts_with("griddepcontrol.wait") {
                    entry.waits_for_predecessor = true;
                }
            }
        }
        entries.extend(current);
        Some(Self {
            version: version?,
            entries,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registers_spills_and_shared_memory_are_read_for_each_entry_point() {
        let report = PtxasReport::parse(
            "ptxas info    : 0 bytes gmem\n\
             ptxas info    : Compiling entry function 'one' for 'sm_90'\n\
             ptxas info    : Function properties for one\n    \
             0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads\n\
             ptxas info    : Used 60 registers, used 1 barriers, 4096 bytes smem, 364 bytes cmem[0]\n\
             ptxas info    : Compile time = 85.315 ms\n\
             ptxas info    : Compiling entry function 'two' for 'sm_90'\n\
             ptxas info    : Function properties for two\n    \
             16 bytes stack frame, 12 bytes spill stores, 20 bytes spill loads\n\
             ptxas info    : Used 255 registers, used 1 barriers\n",
        );
        assert_eq!(
            report.functions["one"],
            FunctionReport {
                registers: 60,
                spill_bytes: 0,
                shared_bytes: 4096
            }
        );
        assert_eq!(
            report.functions["two"],
            FunctionReport {
                registers: 255,
                spill_bytes: 32,
                shared_bytes: 0
            }
        );
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
        assert_eq!(
            report.functions["entry"],
            FunctionReport {
                registers: 12,
                spill_bytes: 0,
                shared_bytes: 64
            }
        );
        assert_eq!(report.spills().collect::<Vec<_>>(), [("helper", 8)]);
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

    #[test]
    fn the_wait_and_the_launch_bounds_are_found_in_the_entry_that_has_them() {
        let facts = PtxFacts::parse(
            "//\n.version 9.0\n.target sm_90\n.visible .entry one(\n\t.param .u64 one_param_0\n)\n.maxntid 256, 2, 1\n{\n\
             \tgriddepcontrol.wait;\n\tret;\n}\n\t// .globl two\n.visible .entry two()\n{\n\tret;\n}\n",
        )
        .unwrap();
        assert_eq!(facts.version, "9.0");
        assert_eq!(
            facts.entries["one"],
            PtxEntry {
                max_threads: 512,
                waits_for_predecessor: true
            }
        );
        assert_eq!(
            facts.entries["two"],
            PtxEntry {
                max_threads: 1024,
                waits_for_predecessor: false
            }
        );
    }

    #[test]
    fn text_without_a_version_is_no_ptx() {
        assert_eq!(PtxFacts::parse("hello"), None);
    }
}
