//! The source files of the workspace, read as text.

use std::fs;
use std::path::{Path, PathBuf};

/// The widest line of Rust, C++ and CUDA.
pub(crate) const MAX_COLUMNS: usize = 100;

const ENDINGS: [&str; 6] = ["rs", "cu", "cuh", "h", "hpp", "cpp"];
/// Made by `cargo xtask bindings`.
const GENERATED: &str = "kernels/src/abi.rs";

/// A source file.
pub(crate) struct Source {
    /// Relative to the root of the workspace, with `/`.
    pub(crate) path: String,
    text: String,
}

impl Source {
    pub(crate) fn new(path: &str, text: &str) -> Source {
        Source {
            path: path.to_owned(),
            text: text.to_owned(),
        }
    }

    pub(crate) fn lines(&self) -> impl Iterator<Item = &str> {
        self.text.lines()
    }

    pub(crate) fn is_in(&self, folder: &str) -> bool {
        self.path
            .strip_prefix(folder)
            .is_some_and(|rest| rest.starts_with('/'))
    }

    pub(crate) fn is_test(&self) -> bool {
        self.path.contains("/tests/") || self.path.ends_with("/tests.rs")
    }

    pub(crate) fn is_rust(&self) -> bool {
        self.path.ends_with(".rs")
    }

    /// Lines that are neither blank nor begin as a comment.
    pub(crate) fn code_lines(&self) -> usize {
        self.lines().filter(is_code).count()
    }

    /// Those of them that are unit tests.
    pub(crate) fn unit_test_lines(&self) -> usize {
        let tests = &self.text[self.without_unit_tests().len()..];
        tests.lines().filter(is_code).count()
    }

    pub(crate) fn wide_lines(&self) -> Vec<String> {
        let is_wide = |(_, line): &(usize, &str)| line.chars().count() > MAX_COLUMNS;
        let place = |(index, _)| format!("{}:{}", self.path, index + 1);
        self.lines()
            .enumerate()
            .filter(is_wide)
            .map(place)
            .collect()
    }

    /// Up to its own unit tests, which stand at the end of a file.
    pub(crate) fn without_unit_tests(&self) -> &str {
        let mut lines = self
            .text
            .match_indices("\n#[cfg(test)]\n")
            .map(|(at, _)| at + 1);
        let begins_tests = |at: &usize| {
            let mut rest = self.text[*at..]
                .lines()
                .skip_while(|line| line.starts_with("#["));
            rest.next().is_some_and(|line| line.starts_with("mod "))
        };
        lines
            .find(begins_tests)
            .map_or(&self.text, |at| &self.text[..at])
    }
}

fn is_code(line: &&str) -> bool {
    let line = line.trim_start();
    !line.is_empty() && !["//", "/*", "*"].iter().any(|mark| line.starts_with(mark))
}

/// Every source file of the workspace that is not generated, by path.
pub(crate) fn all() -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let mut paths = Vec::new();
    for folder in ["crates", "fuzz", "kernels", "xtask"] {
        collect(&root.join(folder), &mut paths);
    }
    paths.sort();
    let source = |path: &PathBuf| {
        let relative = path.strip_prefix(root).unwrap().to_str().unwrap();
        Source::new(relative, &fs::read_to_string(path).unwrap())
    };
    paths
        .iter()
        .map(source)
        .filter(|source| source.path != GENERATED)
        .collect()
}

fn collect(folder: &Path, paths: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            if path.file_name().is_none_or(|name| name != "target") {
                collect(&path, paths);
            }
        } else if path
            .extension()
            .is_some_and(|it| ENDINGS.iter().any(|ending| it == *ending))
        {
            paths.push(path);
        }
    }
}
