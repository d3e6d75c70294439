//! All-gather, reduce-scatter and broadcast, compared with the reference bit for bit.

mod cases;

pub(crate) use cases::cases;
