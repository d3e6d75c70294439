//! SHA-256 digests, and an encoder that hashes structured data without ambiguity.

use std::fmt;
use std::str::FromStr;

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

/// Hashes a sequence of fields so that no two different sequences feed the same bytes: every
/// variable-length field is preceded by its length, every list by its count, every optional by a
/// flag.
pub(crate) struct Encoder(Sha256);

impl Encoder {
    /// Starts with a domain name, which separates digests of different meaning and of different
    /// schemas.
    pub(crate) fn new(domain: &str) -> Encoder {
        let mut encoder = Encoder(Sha256::new());
        encoder.text(domain);
        encoder
    }

    pub(crate) fn count(&mut self, count: usize) {
        self.0.update((count as u64).to_le_bytes());
    }

    pub(crate) fn text(&mut self, text: &str) {
        self.count(text.len());
        self.0.update(text);
    }

    pub(crate) fn texts(&mut self, texts: &[String]) {
        self.count(texts.len());
        texts.iter().for_each(|text| self.text(text));
    }

    pub(crate) fn digest(&mut self, digest: &Digest) {
        self.0.update(digest.0);
    }

    pub(crate) fn optional_digest(&mut self, digest: Option<&Digest>) {
        self.count(usize::from(digest.is_some()));
        if let Some(digest) = digest {
            self.digest(digest);
        }
    }

    pub(crate) fn finish(self) -> Digest {
        Digest(self.0.finalize().into())
    }
}
