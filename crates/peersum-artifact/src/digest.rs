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

    /// A digest that was computed elsewhere.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 32]) -> Digest {
        Digest(bytes)
    }

    /// The raw bytes.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
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
            .ok_or_else(|| ParseNameError {
                what: "digest",
                given: given.to_owned(),
                valid: "64 lower-case hexadecimal digits".to_owned(),
            })
    }
}

/// The value of each byte as a hexadecimal digit; [`NO_DIGIT`] for every other byte.
///
/// Lower case only: a digest has one spelling, as manifests are compared byte for byte.
const DIGIT_VALUES: [u8; 256] = {
    let mut values = [NO_DIGIT; 256];
    let digits = b"0123456789abcdef";
    let mut value = 0;
    while value < 16 {
        values[digits[value as usize] as usize] = value;
        value += 1;
    }
    values
};

/// A bit that no digit's value has.
const NO_DIGIT: u8 = 0x80;

fn parse_hex(digits: &[u8]) -> Option<[u8; 32]> {
    let mut bytes = [0; 32];
    if digits.len() != 2 * bytes.len() {
        return None;
    }
    // Checked once at the end: a manifest has tens of thousands of digits.
    let mut seen = 0;
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        let (high, low) = (
            DIGIT_VALUES[usize::from(pair[0])],
            DIGIT_VALUES[usize::from(pair[1])],
        );
        seen |= high | low;
        *byte = high << 4 | low & 0xf;
    }
    (seen & NO_DIGIT == 0).then_some(bytes)
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
