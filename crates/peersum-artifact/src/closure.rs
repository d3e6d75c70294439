//! The include closure of a source file: what one module is compiled from.

use std::collections::BTreeMap;

use thiserror::Error;

use crate::digest::{Digest, Encoder};

/// A source file and everything it includes, directly or not.
#[derive(Debug, Clone, PartialEq, Eq)]
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
    /// An included file is not among the sources.
    #[error(
        "{file}:{line}: includes `{included}`, which is not among the kernels' sources ({known})"
    )]
    MissingFile {
        /// The file with the directive.
        file: String,
        /// The line of the directive, from 1.
        line: usize,
        /// The name it includes.
        included: String,
        /// The known sources.
        known: String,
    },
    /// A `#include <...>`: kernels include nothing but each other.
    #[error(
        "{file}:{line}: includes the system header <{included}>; kernels include only each other"
    )]
    SystemHeader {
        /// The file with the directive.
        file: String,
        /// The line of the directive, from 1.
        line: usize,
        /// The header's name.
        included: String,
    },
    /// A directive whose text alone does not tell the file.
    #[error(
        "{file}:{line}: `{directive}` is not of the form #include \"file\", the only one allowed"
    )]
    Unsupported {
        /// The file with the directive.
        file: String,
        /// The line of the directive, from 1.
        line: usize,
        /// The line's text.
        directive: String,
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
        for (index, text) in text.lines().enumerate() {
            let (file, line) = (path.to_owned(), index + 1);
            match include_directive(text) {
                None => {}
                Some(Directive::Local(included)) => {
                    let entry = texts.get_key_value(included);
                    pending.push(entry.ok_or_else(|| ClosureError::MissingFile {
                        file,
                        line,
                        included: included.to_owned(),
                        known: known(),
                    })?);
                }
                Some(Directive::System(included)) => {
                    return Err(ClosureError::SystemHeader {
                        file,
                        line,
                        included: included.to_owned(),
                    });
                }
                Some(Directive::Unsupported) => {
                    return Err(ClosureError::Unsupported {
                        file,
                        line,
                        directive: text.trim().to_owned(),
                    });
                }
            }
        }
    }

    let files: Vec<(String, Digest)> = closure
        .into_iter()
        .map(|(path, digest)| (path.to_owned(), digest))
        .collect();
    let mut encoder = Encoder::new("peersum include closure 1");
    encode_files(&mut encoder, &files);
    Ok(Closure {
        digest: encoder.finish(),
        files,
    })
}

pub(crate) fn encode_files(encoder: &mut Encoder, files: &[(String, Digest)]) {
    encoder.count(files.len());
    for (path, digest) in files {
        encoder.text(path);
        encoder.digest(digest);
    }
}

enum Directive<'a> {
    Local(&'a str),
    System(&'a str),
    Unsupported,
}

/// The directive of a line that includes a file.
fn include_directive(line: &str) -> Option<Directive<'_>> {
    let directive = line.trim_start().strip_prefix('#')?.trim_start();
    // `include_next` and `import` also include a file, so neither may be ignored.
    if directive.starts_with("import") {
        return Some(Directive::Unsupported);
    }
    let operand = directive.strip_prefix("include")?.trim_start();
    let delimited = |open, close| Some(operand.strip_prefix(open)?.split_once(close)?.0);
    let local = delimited('"', '"').map(Directive::Local);
    let found = local.or_else(|| delimited('<', '>').map(Directive::System));
    Some(found.unwrap_or(Directive::Unsupported))
}
