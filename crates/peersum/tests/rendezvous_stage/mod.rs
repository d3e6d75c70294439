//! Ranks as real processes: a test starts its own binary again, once a rank, with a list of steps
//! to take.

// Each test binary uses its own part of this module; what fails here fails the test.
#![allow(dead_code, unreachable_pub, unused_imports, clippy::unwrap_used)]

pub mod by_hand;
mod forks;
mod play;
mod rank;
mod stage;
mod timing;
mod traffic;

pub use rank::Rank;
pub use stage::{Stage, chmod};
pub use timing::{AMPLE, settle};
pub use traffic::{exchange_memory, gather, open_descriptors};
