//! The pages name tests and files that exist.

#![allow(
    clippy::unwrap_used,
    reason = "a test that cannot read its files fails"
)]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// The checkout's root.
fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Adds every file below `directory` whose name ends in `.extension`.
fn collect(directory: &Path, extension: &str, found: &mut Vec<PathBuf>) {
    let entries = fs::read_dir(directory).unwrap();
    for path in entries.map(|entry| entry.unwrap().path()) {
        if path.is_dir() {
            if !path.ends_with("target") {
                collect(&path, extension, found);
            }
        } else if path.extension().is_some_and(|end| end == extension) {
            found.push(path);
        }
    }
}

/// The files with this extension in the places that hold the project's sources and pages.
fn files(extension: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for place in ["crates", "docs", "fuzz", "kernels", "xtask"] {
        collect(&root().join(place), extension, &mut found);
    }
    found
}

/// What stands in `text` between single backticks, code blocks left out.
fn quoted(text: &str) -> impl Iterator<Item = &str> {
    text.lines()
        .filter(|line| !line.starts_with("    ") && !line.starts_with("```"))
        .flat_map(|line| line.split('`').skip(1).step_by(2))
}

/// The names of all functions of the project.
fn functions() -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for path in files("rs") {
        let text = fs::read_to_string(path).unwrap();
        for rest in text.split("fn ").skip(1) {
            let name = rest.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
            names.extend(name.take(1).map(str::to_owned));
        }
    }
    names
}

#[test]
fn every_test_that_the_reliability_page_names_exists() {
    let functions = functions();
    let page = fs::read_to_string(root().join("docs/reliability.md")).unwrap();
    let mut checked = 0;
    for name in quoted(&page) {
        let (start, shortened) = match name.strip_suffix("...") {
            Some(start) => (start, true),
            None => (name, false),
        };
        let is_name = start
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_');
        // Tests read as sentences, which settings and environment variables do not.
        if !is_name || start.matches('_').count() < 3 {
            continue;
        }
        let meant = functions
            .iter()
            .filter(|function| match shortened {
                true => function.starts_with(start),
                false => *function == start,
            })
            .count();
        assert_eq!(
            meant, 1,
            "docs/reliability.md names `{name}`: {meant} such functions"
        );
        checked += 1;
    }
    assert!(checked > 50, "only {checked} tests were found on the page");
}

#[test]
fn every_file_that_a_page_names_or_links_to_exists() {
    let mut pages = files("md");
    pages.extend(["ARCHITECTURE.md", "CHANGELOG.md", "README.md"].map(|page| root().join(page)));
    for page in pages {
        let text = fs::read_to_string(&page).unwrap();
        let folder = page.parent().unwrap();
        let links = text
            .split("](")
            .skip(1)
            .filter_map(|rest| rest.split([')', '#']).next())
            .filter(|link| !link.is_empty() && !link.contains(':'));
        for link in links {
            let exists = folder.join(link).exists();
            assert!(exists, "{} links to {link}", page.display());
        }
        let places = ["ci/", "crates/", "docs/", "fuzz/", "kernels/", "xtask/"];
        for name in quoted(&text) {
            let is_path = places.iter().any(|place| name.starts_with(place))
                && !name.contains([' ', '*', '<', '{', '[']);
            // A pack is there in a release only.
            if is_path && !name.starts_with("kernels/pack") {
                let exists = root().join(name).exists();
                assert!(exists, "{} names `{name}`", page.display());
            }
        }
    }
}

/// The project's crates that the manifest in `folder` depends on, except for tests.
fn dependencies(folder: &Path) -> BTreeSet<String> {
    let manifest = fs::read_to_string(folder.join("Cargo.toml")).unwrap();
    let mut found = BTreeSet::new();
    let mut is_listed = false;
    for line in manifest.lines() {
        if line.starts_with('[') {
            is_listed = matches!(line, "[dependencies]" | "[build-dependencies]");
        } else if is_listed && line.starts_with("peersum") {
            let name = line.split(['.', ' ', '=']).next().unwrap();
            found.insert(name.to_owned());
        }
    }
    found
}

#[test]
fn the_picture_of_the_crates_has_exactly_the_dependencies_of_their_manifests() {
    let page = fs::read_to_string(root().join("ARCHITECTURE.md")).unwrap();
    let (_, picture) = page.split_once("```mermaid\n").unwrap();
    let (picture, _) = picture.split_once("```").unwrap();
    let drawn: BTreeSet<(String, String)> = picture
        .lines()
        .filter_map(|line| line.trim().split_once(" --> "))
        .map(|(from, to)| (from.to_owned(), to.to_owned()))
        .collect();

    let mut folders = vec![root().join("kernels"), root().join("xtask")];
    for entry in fs::read_dir(root().join("crates")).unwrap() {
        folders.push(entry.unwrap().path());
    }
    let mut declared = BTreeSet::new();
    for folder in folders {
        let from = match folder.file_name().unwrap().to_str().unwrap() {
            "kernels" => "peersum-kernels",
            name => name,
        };
        let arrows = dependencies(&folder).into_iter();
        declared.extend(arrows.map(|to| (from.to_owned(), to)));
    }
    assert_eq!(drawn, declared);
}
