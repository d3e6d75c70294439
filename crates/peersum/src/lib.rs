//! A low-latency all-reduce for the GPUs of one machine, with kernels compiled ahead of time.

pub mod device;
pub mod loader;
pub mod reference;
pub mod rendezvous;
