//! The environment variables: one list, which README's table repeats.

#![allow(
    clippy::unwrap_used,
    reason = "a test that cannot read its files fails"
)]

use std::fs;
use std::path::Path;

use peersum::environment::VARIABLES;

/// What stands in `text` between single backticks.
fn quoted(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

/// The rows of the table under README's heading "Environment".
fn readme_rows() -> Vec<&'static str> {
    let readme = include_str!("../../../README.md");
    let (_, section) = readme.split_once("\n## Environment\n").unwrap();
    let section = section.split("\n## ").next().unwrap();
    section
        .lines()
        .filter(|line| line.starts_with("| `"))
        .collect()
}

#[test]
fn readme_s_table_has_every_variable_with_its_default() {
    let rows = readme_rows();
    for variable in VARIABLES {
        let is_named = |row: &&&str| {
            let first = row.split('|').nth(1).unwrap_or_default();
            quoted(first).any(|name| name == variable.name)
        };
        let Some(row) = rows.iter().find(is_named) else {
            panic!("README's table has no row for {}", variable.name);
        };
        for default in quoted(variable.default) {
            let is_given = quoted(row).any(|text| text == default);
            assert!(
                is_given,
                "README does not give {default:?} for {}",
                variable.name
            );
        }
    }
}

#[test]
fn readme_s_table_names_no_variable_that_nothing_reads() {
    // Read by `cargo xtask` only.
    let of_xtask = ["PEERSUM_TOOLCHAIN_DIR"];
    for row in readme_rows() {
        let first = row.split('|').nth(1).unwrap();
        for name in quoted(first).filter(|name| name.starts_with("PEERSUM_")) {
            let is_read =
                VARIABLES.iter().any(|variable| variable.name == name) || of_xtask.contains(&name);
            assert!(is_read, "README names {name}");
        }
    }
}

#[test]
fn every_variable_that_the_sources_name_is_in_the_list() {
    let mut directories = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("src")];
    let mut found = 0;
    while let Some(directory) = directories.pop() {
        for path in fs::read_dir(directory)
            .unwrap()
            .map(|entry| entry.unwrap().path())
        {
            if path.is_dir() {
                directories.push(path);
                continue;
            }
            let text = fs::read_to_string(&path).unwrap();
            for rest in text.split("\"PEERSUM_").skip(1) {
                let end = rest
                    .find(|c: char| !c.is_ascii_uppercase() && c != '_')
                    .unwrap();
                // A longer text that begins with a name is a message.
                if rest[end..].starts_with('"') {
                    let name = format!("PEERSUM_{}", &rest[..end]);
                    let is_listed = VARIABLES.iter().any(|variable| variable.name == name);
                    assert!(is_listed, "{name} in {} is not in the list", path.display());
                    found += 1;
                }
            }
        }
    }
    assert!(
        found >= 5,
        "only {found} variables were found in the sources"
    );
}
