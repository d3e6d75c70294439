//! Calls with RMSNorm, compared with the reference bit for bit.

mod cases;

pub(crate) use cases::{NUMBERS, NormCase, cases};
