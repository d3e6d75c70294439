//! `grid --op rms-norm`: calls with RMSNorm, compared with the reference bit for bit.

mod cases;
mod rank;

pub(crate) use cases::{Fp8Kind, NormCase, cases};
pub(crate) use rank::NormRank;
