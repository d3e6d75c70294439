//! What a mutant differs in from the seed that it comes from.

/// Numbers at which arithmetic and limits break.
const NUMBERS: [u64; 14] = [
    0,
    1,
    7,
    8,
    64,
    127,
    255,
    256,
    1 << 16,
    (1 << 31) - 1,
    1 << 32,
    1 << 63,
    u64::MAX - 1,
    u64::MAX,
];

/// What JSON is made of.
const TOKENS: [&str; 14] = [
    "{",
    "}",
    "[",
    "]",
    ",",
    ":",
    "\"",
    "null",
    "-1",
    "1e999",
    "18446744073709551616",
    "\\u0000",
    "../",
    "\u{fffd}",
];

/// A few edits of `whole`, some of them with parts of `other`.
pub(crate) fn mutate(random: &mut fastrand::Rng, whole: &[u8], other: &[u8]) -> Vec<u8> {
    let mut bytes = whole.to_vec();
    for _ in 0..random.usize(1..5) {
        let at = random.usize(..=bytes.len());
        let end = (at + random.usize(..64)).min(bytes.len());
        match random.u8(0..10) {
            0 | 1 if at < bytes.len() => bytes[at] ^= 1 << random.u8(0..8),
            2 if at < bytes.len() => bytes[at] = random.u8(..),
            3 | 4 => {
                // A number of 1, 2, 4 or 8 bytes.
                let number = NUMBERS[random.usize(..NUMBERS.len())].to_le_bytes();
                let width = (1 << random.u8(0..4)).min(bytes.len() - at);
                bytes[at..at + width].copy_from_slice(&number[..width]);
            }
            5 => {
                bytes.drain(at..end);
            }
            6 => {
                let part = bytes[at..end].to_vec();
                let to = random.usize(..=bytes.len());
                bytes.splice(to..to, part);
            }
            7 => {
                let token = TOKENS[random.usize(..TOKENS.len())];
                bytes.splice(at..end.min(at + random.usize(..3)), token.bytes());
            }
            8 => {
                let from = random.usize(..=other.len());
                let part = &other[from..(from + random.usize(..256)).min(other.len())];
                bytes.splice(at..at, part.iter().copied());
            }
            _ => bytes.truncate(bytes.len() - random.usize(..=bytes.len().min(16))),
        }
    }
    bytes
}
