//! `cargo xtask precompile` through the real binary, with the pinned compiler and small kernels.

#![allow(missing_docs)]
// Helpers that are not test functions themselves may panic too: it fails the test.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod bad_input;
mod checkout;
mod incremental;
mod interrupted;
mod messages;
mod output;
#[path = "../seeded/mod.rs"]
mod seeded;
mod stock_headers;
