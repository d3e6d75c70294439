//! SHA-256 digests.

use std::fmt;
use std::str::FromStr;

use serde::Serialize;
use sha2::{Digest as _, Sha256};

use crate::vocabulary::{ParseNameError, name_traits};

/// A SHA-256 digest, written as 64 lower-case hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest([u8; 32]);

impl Digest {
    /// The digest of `bytes`.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Digest {
        Digest(Sha256::digest(bytes).into())
    }

    /// The digest of data as JSON, in which no two different values of one type look the same.
    #[expect(
        clippy::expect_used,
        reason = "names and numbers serialise to memory without failing"
    )]
    pub(crate) fn of_json(data: &impl Serialize) -> Digest {
        Digest::of(&serde_json::to_vec(data).expect("plain data"))
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Digest({self})")
    }
}

impl FromStr for Digest {
    type Err = ParseNameError;

    fn from_str(given: &str) -> Result<Self, Self::Err> {
        parse_hex(given.as_bytes())
            .map(Digest)
            .ok_or_else(|| ParseNameError::new("digest", given, "64 lower-case hexadecimal digits"))
    }
}

fn parse_hex(digits: &[u8]) -> Option<[u8; 32]> {
    let mut bytes = [0; 32];
    if digits.len() != 2 * bytes.len() {
        return None;
    }
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    Some(bytes)
}

/// The value of a hexadecimal digit. Lower case only: a digest has one spelling, as manifests are
/// compared byte for byte.
fn digit(byte: u8) -> Option<u8> {
    match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    }
}

name_traits!(Digest);
