//! Benchmarks. Commands, never assertions: they print medians and what they were measured on.

pub(crate) mod allreduce;
pub(crate) mod call;
pub(crate) mod load;
mod timing;
