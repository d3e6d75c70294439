//! The toolchain commands through the real binary, on small machines made of a few fake programs.

#![allow(missing_docs)]
// The helpers of the tests, which are not test functions themselves, fail a test by panicking too.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod discovery;
mod install;
mod machine;
mod memory;
mod real;
mod rust_build;
#[path = "../seeded/mod.rs"]
mod seeded;
