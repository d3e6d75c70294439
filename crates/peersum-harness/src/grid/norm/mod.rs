//! `grid --op rms_norm`: calls with RMSNorm, compared with the reference bit for bit.

mod cases;
mod rank;

pub(crate) use cases::{NUMBERS, NormCase, cases};
pub(crate) use rank::NormRank;
