//! `cargo xtask precompile` through the real binary, with the pinned compiler and small kernels.

mod bad_input;
mod checkout;
mod incremental;
mod interrupted;
mod messages;
mod output;
