//! What the directives of a PTX file say.

use thiserror::Error;

use crate::arch::Target;
use crate::cuda_version::PtxVersion;

/// What the directives of a PTX file say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PtxInfo {
    /// The ISA version of the `.version` directive: the driver must be at least as new.
    pub version: PtxVersion,
    /// The target of the `.target` directive.
    pub target: Target,
    /// The names of the kernels, sorted.
    pub entry_points: Vec<String>,
}

/// Why text is not a usable PTX file.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum PtxError {
    /// The bytes are not text, or hold a NUL, at which a driver would stop reading.
    #[error("not PTX: it is not plain text")]
    NotText,
    /// A directive is absent or cannot be read.
    #[error("not PTX: no readable `{directive}` directive")]
    Directive {
        /// The directive.
        directive: &'static str,
    },
    /// A kernel's body has no end.
    #[error("truncated: the last kernel or function has no end")]
    Truncated,
}

/// Reads the directives of a PTX file.
///
/// # Errors
///
/// The bytes are not text, lack a `.version` or `.target`, or end within a body. No input panics.
pub fn inspect_ptx(bytes: &[u8]) -> Result<PtxInfo, PtxError> {
    let text = std::str::from_utf8(bytes).map_err(|_| PtxError::NotText)?;
    if text.contains('\0') {
        return Err(PtxError::NotText);
    }
    let lines = || {
        text.lines()
            .map(|line| line.split_once("//").map_or(line, |(code, _)| code).trim())
    };
    let directive = |name: &'static str| {
        lines().find_map(|line| {
            line.strip_prefix(name)
                .filter(|rest| rest.starts_with(char::is_whitespace))
        })
    };

    let version = directive(".version")
        .and_then(|rest| rest.trim().parse().ok())
        .ok_or(PtxError::Directive {
            directive: ".version",
        })?;
    // `.target sm_80, texmode_independent`: the architecture comes first, spelt as the real one.
    let target = directive(".target")
        .and_then(|rest| {
            rest.split(',')
                .next()?
                .trim()
                .strip_prefix("sm_")?
                .parse()
                .ok()
        })
        .map(Target::Ptx)
        .ok_or(PtxError::Directive {
            directive: ".target",
        })?;

    let mut entry_points: Vec<String> = lines()
        .filter_map(|line| {
            let (before, after) = line.split_once(".entry")?;
            let known_before = before
                .split_whitespace()
                .all(|word| matches!(word, ".visible" | ".weak" | ".extern"));
            let name = after
                .trim_start()
                .split(|c: char| c.is_whitespace() || matches!(c, '(' | ';' | '{'))
                .next()?;
            (known_before && after.starts_with(char::is_whitespace) && !name.is_empty())
                .then(|| name.to_owned())
        })
        .collect();
    entry_points.sort();

    let count = |brace| {
        lines()
            .map(|line| line.matches(brace).count())
            .sum::<usize>()
    };
    if count('{') != count('}') {
        return Err(PtxError::Truncated);
    }
    Ok(PtxInfo {
        version,
        target,
        entry_points,
    })
}
