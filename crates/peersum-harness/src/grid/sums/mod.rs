//! All-reduces, compared with the reference bit for bit.

mod calls;
mod case;
mod plan;

pub(crate) use case::{Adversarial, SumCase, Work};
pub(crate) use plan::cases;
