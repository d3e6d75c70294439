//! `cargo xtask precompile` through the real binary, with the pinned compiler and small kernels.

#![allow(missing_docs)]
// The helpers of the tests, which are not test functions themselves, fail a test by panicking too.
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
