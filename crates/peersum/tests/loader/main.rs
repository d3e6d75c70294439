//! The loader: which place serves a module, what is refused and why, the JIT cache, and NVRTC.

#![allow(clippy::unwrap_used, reason = "a test that cannot set up fails")]

mod cache;
mod directories;
mod disk;
#[path = "../../../../xtask/tests/disk/faulty_disk.rs"]
mod faulty_disk;
mod nvrtc;
mod processes;
mod support;
mod toolchain;
