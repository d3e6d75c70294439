//! The include closure of a source file: what one module is compiled from.

use std::collections::BTreeMap;

use serde::Serialize;
use thiserror::Error;

use crate::digest::Digest;

/// A source file and everything it includes, directly or not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Closure {
    /// The paths and the digests of their texts, sorted by path.
    pub files: Vec<(String, Digest)>,
    /// One digest over all paths and digests.
    pub digest: Digest,
}

/// Why a closure cannot be formed.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ClosureError {
    /// The root itself is not among the sources.
    #[error("there is no source `{root}`; known: {known}")]
    UnknownRoot {
        /// The root that was asked for.
        root: String,
        /// The known sources.
        known: String,
    },
    /// A directive that does not lead to another source: kernels include nothing but each other.
    #[error("{file}:{line}: {problem}")]
    Include {
        /// The file with the directive.
        file: String,
        /// The line of the directive, from 1.
        line: usize,
        /// What is wrong with it.
        problem: String,
    },
}

/// Forms the include closure of `root` among `sources`, which are pairs of path and text.
///
/// Directives are read as text, without evaluating conditionals or comments that span lines: the
/// closure may hold a file that some configuration does not include, never lack one. Includes may
/// be cyclic.
///
/// # Errors
///
/// The root or an included file is not among the sources, or a directive is not of the form
/// `#include "file"`.
pub fn include_closure(root: &str, sources: &[(&str, &str)]) -> Result<Closure, ClosureError> {
    let texts: BTreeMap<&str, &str> = sources.iter().copied().collect();
    let known = || texts.keys().copied().collect::<Vec<_>>().join(", ");

    let mut closure: BTreeMap<&str, Digest> = BTreeMap::new();
    let Some(root_text) = texts.get_key_value(root) else {
        return Err(ClosureError::UnknownRoot {
            root: root.to_owned(),
            known: known(),
        });
    };
    let mut pending = vec![root_text];
    while let Some((&path, &text)) = pending.pop() {
        if closure.insert(path, Digest::of(text.as_bytes())).is_some() {
            continue;
        }
        for (index, line) in text.lines().enumerate() {
            let source = match included_file(line) {
                Ok(None) => continue,
                Ok(Some(included)) => texts.get_key_value(included).ok_or_else(|| {
                    format!(
                        "includes `{included}`, which is not among the kernels' sources ({})",
                        known()
                    )
                }),
                Err(problem) => Err(problem),
            };
            pending.push(source.map_err(|problem| ClosureError::Include {
                file: path.to_owned(),
                line: index + 1,
                problem,
            })?);
        }
    }

    let files: Vec<(String, Digest)> = closure
        .into_iter()
        .map(|(path, digest)| (path.to_owned(), digest))
        .collect();
    let digest = Digest::of_json(&files);
    Ok(Closure { files, digest })
}

/// The file that a line includes, if it includes one.
fn included_file(line: &str) -> Result<Option<&str>, String> {
    let directive = line.trim_start().strip_prefix('#').map(str::trim_start);
    // `include_next` and `import` also include a file, so neither may be ignored.
    let including = |text: &&str| text.starts_with("include") || text.starts_with("import");
    let Some(directive) = directive.filter(including) else {
        return Ok(None);
    };
    let operand = directive.strip_prefix("include").unwrap_or_default();
    let delimited = |open, close| {
        Some(
            operand
                .trim_start()
                .strip_prefix(open)?
                .split_once(close)?
                .0,
        )
    };
    if let Some(system) = delimited('<', '>') {
        return Err(format!(
            "includes the system header <{system}>; kernels include only each other"
        ));
    }
    let local = delimited('"', '"').map(Some);
    local.ok_or_else(|| {
        let line = line.trim();
        format!("`{line}` is not of the form #include \"file\", the only one allowed")
    })
}
