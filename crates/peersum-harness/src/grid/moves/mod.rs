//! All-gather, reduce-scatter and broadcast, compared with the reference bit for bit.

mod cases;
mod data;
mod rank;

pub(crate) use cases::cases;
pub(crate) use rank::MoveRank;
