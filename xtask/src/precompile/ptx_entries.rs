//! What a module's PTX says about its entry points.

use std::collections::BTreeMap;

/// The entry points of a module's PTX, as cicc wrote it, by name: whether each waits for the kernel
/// before it (`griddepcontrol.wait`).
pub(crate) fn ptx_entries(ptx: &str) -> BTreeMap<String, bool> {
    let mut entries = BTreeMap::new();
    let mut current = None;
    for line in ptx.lines().map(str::trim) {
        if let Some((_, rest)) = line.split_once(".entry ") {
            let name = rest.split(['(', ' ']).next().unwrap_or_default();
            current = Some(entries.entry(name.to_owned()).or_insert(false));
        } else if line.contains(".func ") {
            current = None;
        } else if let Some(waits) = &mut current
            && line.starts_with("griddepcontrol.wait")
        {
            **waits = true;
        }
    }
    entries
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wait_is_found_in_the_entry_that_has_it() {
        let entries = ptx_entries(
            "//\n.version 9.0\n.target sm_90\n\
             .visible .entry one(\n\t.param .u64 one_param_0\n)\n.maxntid 256, 2, 1\n{\n\
             \tgriddepcontrol.wait;\n\tret;\n}\n\
             \t// .globl two\n.visible .entry two()\n{\n\tret;\n}\n",
        );
        assert_eq!((entries["one"], entries["two"]), (true, false));
    }
}
