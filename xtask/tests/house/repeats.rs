//! Runs of equal lines in two places.

use std::collections::{BTreeMap, HashMap};

use crate::sources::Source;

/// Each pair of places with at least `min_lines` equal lines in a row, as `path:line = path:line`.
/// Blank lines, comments, imports and lines of punctuation do not count.
pub(crate) fn of(sources: &[Source], min_lines: usize) -> Vec<String> {
    let mut places: HashMap<Vec<&str>, Vec<(&str, usize)>> = HashMap::new();
    for source in sources.iter().filter(|source| !source.is_test()) {
        let lines: Vec<(usize, &str)> = source
            .lines()
            .enumerate()
            .map(|(index, line)| (index + 1, line.trim()))
            .filter(|(_, line)| counts(line))
            .collect();
        for window in lines.windows(min_lines) {
            let text = window.iter().map(|(_, line)| *line).collect();
            places
                .entry(text)
                .or_default()
                .push((&source.path, window[0].0));
        }
    }
    // The first place of each pair of files stands for its longer runs.
    let mut pairs: BTreeMap<(&str, &str), (usize, usize)> = BTreeMap::new();
    for found in places.values() {
        for (index, (path, line)) in found.iter().enumerate() {
            for (other, other_line) in &found[index + 1..] {
                let pair = pairs.entry((path, other)).or_insert((*line, *other_line));
                *pair = (*pair).min((*line, *other_line));
            }
        }
    }
    let show =
        |((path, other), (line, other_line))| format!("{path}:{line} = {other}:{other_line}");
    pairs.into_iter().map(show).collect()
}

fn counts(line: &str) -> bool {
    let is_import = line.starts_with("use ") || line.starts_with("#include");
    line.chars().any(char::is_alphanumeric) && !line.starts_with("//") && !is_import
}
