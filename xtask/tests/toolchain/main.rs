//! The toolchain commands through the real binary, on small machines made of a few fake programs.

#![allow(missing_docs)]

mod discovery;
mod install;
mod machine;
mod memory;
mod real;
