//! Benchmarks. Commands, never assertions: they print medians and what they were measured on.

pub(crate) mod allreduce;
mod timing;
