//! What a module's PTX says about its entry points.

use std::collections::BTreeMap;

/// What the PTX text says of one entry point.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PtxEntry {
    /// The largest block that its launch bounds allow, in threads.
    pub(crate) max_threads: u32,
    /// Whether it waits for the kernel before it (`griddepcontrol.wait`).
    pub(crate) waits_for_predecessor: bool,
}

/// The entry points of a module's PTX, as cicc wrote it, by name.
pub(crate) fn ptx_entries(ptx: &str) -> BTreeMap<String, PtxEntry> {
    let mut entries = BTreeMap::new();
    let mut current: Option<(String, PtxEntry)> = None;
    for line in ptx.lines().map(str::trim) {
        if let Some((_, rest)) = line.split_once(".entry ") {
            entries.extend(current.take());
            let name = rest.split(['(', ' ']).next().unwrap_or_default();
            let entry = PtxEntry {
                max_threads: 1024,
                waits_for_predecessor: false,
            };
            current = Some((name.to_owned(), entry));
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
    entries
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wait_and_the_launch_bounds_are_found_in_the_entry_that_has_them() {
        let entries = ptx_entries(
            "//\n.version 9.0\n.target sm_90\n\
             .visible .entry one(\n\t.param .u64 one_param_0\n)\n.maxntid 256, 2, 1\n{\n\
             \tgriddepcontrol.wait;\n\tret;\n}\n\
             \t// .globl two\n.visible .entry two()\n{\n\tret;\n}\n",
        );
        assert_eq!(
            entries["one"],
            PtxEntry {
                max_threads: 512,
                waits_for_predecessor: true
            }
        );
        assert_eq!(
            entries["two"],
            PtxEntry {
                max_threads: 1024,
                waits_for_predecessor: false
            }
        );
    }
}
