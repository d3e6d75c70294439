//! The shape of the source: code lines, line widths, lengths of functions and files, circles of
//! files, repeated lines. `cargo house` prints the figures.

#![allow(
    clippy::unwrap_used,
    reason = "a test that cannot read the source fails"
)]

mod circles;
mod functions;
mod repeats;
mod sources;

use sources::{MAX_COLUMNS, Source};

/// The longest function, in lines.
const MAX_FUNCTION_LINES: usize = 80;
/// What a file should not exceed, in lines.
const MAX_FILE_LINES: usize = 400;
/// How many equal lines in a row count as repeated code.
const MIN_REPEATED_LINES: usize = 8;

/// The crates with the code lines that each should have at most.
const CODE_LINES: [(&str, Option<usize>); 9] = [
    ("kernels", None),
    ("crates/peersum-artifact", Some(2000)),
    ("crates/peersum", Some(9500)),
    ("crates/peersum-doctor", Some(1900)),
    ("crates/peersum-emulator", None),
    ("crates/peersum-harness", Some(8800)),
    ("crates/peersum-candle", None),
    ("xtask", Some(4600)),
    ("fuzz", None),
];

#[test]
fn every_source_file_belongs_to_a_crate_whose_code_lines_are_counted() {
    let sources = sources::all();
    let mut counted = 0;
    println!("code lines (not blank, not a comment, outside tests/, not generated), the aim,");
    println!("and how many of the lines are unit tests:");
    for (folder, aim) in CODE_LINES {
        let of_crate = |source: &&Source| source.is_in(folder) && !source.is_test();
        let of_crate: Vec<&Source> = sources.iter().filter(of_crate).collect();
        let lines: usize = of_crate.iter().map(|source| source.code_lines()).sum();
        let unit_tests: usize = of_crate.iter().map(|source| source.unit_test_lines()).sum();
        counted += sources.iter().filter(|source| source.is_in(folder)).count();
        let aim = aim.map_or(String::from("-"), |aim| aim.to_string());
        println!("  {folder:<24} {lines:>6} {aim:>6} {unit_tests:>6}");
    }
    assert_eq!(counted, sources.len(), "a crate is missing in CODE_LINES");
}

#[test]
fn no_line_is_wider_than_100_columns() {
    let wide: Vec<String> = sources::all().iter().flat_map(Source::wide_lines).collect();
    println!("lines over {MAX_COLUMNS} columns: {}", wide.len());
    assert!(
        wide.is_empty(),
        "lines over {MAX_COLUMNS} columns:\n{}",
        wide.join("\n")
    );
}

#[test]
fn no_function_is_longer_than_80_lines() {
    let long: Vec<String> = sources::all()
        .iter()
        .flat_map(functions::of)
        .filter(|function| function.lines > MAX_FUNCTION_LINES)
        .map(|function| function.to_string())
        .collect();
    println!("functions over {MAX_FUNCTION_LINES} lines: {}", long.len());
    assert!(
        long.is_empty(),
        "split these functions:\n{}",
        long.join("\n")
    );
}

#[test]
fn no_file_is_much_longer_than_400_lines() {
    let mut long: Vec<(usize, String)> = sources::all()
        .iter()
        .map(|source| (source.lines().count(), source.path.clone()))
        .filter(|(lines, _)| *lines > MAX_FILE_LINES)
        .collect();
    long.sort_unstable_by(|a, b| b.cmp(a));
    println!("files over {MAX_FILE_LINES} lines: {}", long.len());
    for (lines, path) in &long {
        println!("  {lines} {path}");
    }
    let longest = long.first().map_or(0, |(lines, _)| *lines);
    assert!(longest <= MAX_FILE_LINES * 3 / 2, "split {:?}", long[0]);
}

#[test]
fn no_files_use_each_other_in_a_circle() {
    let circles = circles::of(&sources::all());
    println!("circles of files: {}", circles.len());
    assert!(
        circles.is_empty(),
        "files that use each other:\n{}",
        circles.join("\n")
    );
}

#[test]
fn files_that_use_each_other_are_found_whatever_the_form_of_their_paths() {
    let files = [
        ("crates/a/src/lib.rs", "mod b;\nmod c;\npub use c::Thing;\n"),
        (
            "crates/a/src/b.rs",
            "use crate::Thing;\npub struct Other;\n",
        ),
        (
            "crates/a/src/c.rs",
            "pub struct Thing(Option<super::b::Other>);\n",
        ),
        (
            "crates/a/src/d/mod.rs",
            "mod e;\nuse e::{self, Leaf};\npub(crate) fn root() {}\n",
        ),
        (
            "crates/a/src/d/e.rs",
            "pub struct Leaf;\nfn f() { super::root() }\n",
        ),
        ("crates/a/src/g.rs", "use crate::d::Leaf;\n// crate::h::H\n"),
        (
            "crates/a/src/h.rs",
            "use crate::g;\nfn f() { \"crate::g::G\"; }\n",
        ),
    ];
    let sources: Vec<Source> = files
        .iter()
        .map(|(path, text)| Source::new(path, text))
        .collect();
    let circles = circles::of(&sources);
    assert_eq!(circles.len(), 2, "{circles:?}");
    assert!(
        circles[0].contains("src/b.rs") && circles[0].contains("src/c.rs"),
        "{circles:?}"
    );
    assert!(
        circles[1].contains("d/mod.rs") && circles[1].contains("d/e.rs"),
        "{circles:?}"
    );
}

#[test]
fn repeated_code_is_counted() {
    let repeats = repeats::of(&sources::all(), MIN_REPEATED_LINES);
    println!(
        "pairs of places with {MIN_REPEATED_LINES} equal lines or more: {}",
        repeats.len()
    );
    for repeat in &repeats {
        println!("  {repeat}");
    }
    let text = "let a = first(1);\nlet b = second(a);\nlet c = third(b);\n".repeat(3);
    let twice = [
        Source::new("a/src/x.rs", &text),
        Source::new("b/src/y.rs", &text),
    ];
    assert_eq!(repeats::of(&twice, MIN_REPEATED_LINES).len(), 1);
}
