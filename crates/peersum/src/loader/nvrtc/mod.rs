//! Compiling a module at run time: NVRTC, from sources in memory to a cubin.
//!
//! Needs `libnvrtc` only: no driver, no GPU, no header, no host compiler. For one CUDA version
//! NVRTC and nvcc make the same machine code of these sources (a test compares every module's
//! `.text` sections), so a module compiled here behaves like the shipped one.

mod build_id;
mod compile;
mod error;
mod launch_bounds;
mod library;
mod locate;
mod program;

pub use build_id::build_id;
pub use compile::{Compiled, compile, compile_flags};
pub use error::NvrtcError;
pub use library::NvrtcLibrary;
pub use locate::{NvrtcFile, NvrtcSearch};
