//! The toolchain commands through the real binary, on small machines made of a few fake programs.

#![allow(missing_docs)]
// Helpers that are not test functions themselves may panic too: it fails the test.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod discovery;
mod install;
mod machine;
mod memory;
mod real;
mod rust_build;
#[path = "../seeded/mod.rs"]
mod seeded;
