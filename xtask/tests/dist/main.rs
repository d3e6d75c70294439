//! `cargo xtask dist` through the real binary, in copies of this checkout.

#![allow(missing_docs)]
// The helpers of the tests, which are not test functions themselves, fail a test by panicking too.
#![allow(clippy::unwrap_used, clippy::expect_used)]
