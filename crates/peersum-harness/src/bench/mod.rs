//! Benchmarks. Commands, never assertions: they print medians and what they were measured on.

pub(crate) mod allreduce;
pub(crate) mod arguments;
mod bandwidth;
pub(crate) mod build;
pub(crate) mod call;
pub(crate) mod candidates;
mod chart;
mod cublas;
pub(crate) mod kernel_sources;
pub(crate) mod layer;
mod limits;
mod measured_limits;
mod nccl;
mod norm_arrays;
mod page;
pub(crate) mod rank_calls;
pub(crate) mod ranks;
pub(crate) mod report;
mod series;
pub(crate) mod sizes;
mod tables;
pub(crate) mod timing;
