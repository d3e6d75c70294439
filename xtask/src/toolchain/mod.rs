//! The CUDA compiler: one that the machine has, else the pinned one, installed on first use.
//!
//! [`resolve()`] is what a command that compiles calls. Once a compiler has been asked for its
//! version and targets, resolving it again costs some `stat` calls and starts no process.

mod command;
pub(crate) mod discovery;
mod nvcc;
mod pip;
mod resolve;
mod sealed;
pub(crate) mod wheels;

pub(crate) use command::{ToolchainArgs, run};
pub(crate) use nvcc::HIDDEN_FLAG_VARIABLES;
pub(crate) use resolve::{Nvcc, ToolkitChoice, escaped, resolve, resolve_nvrtc};
