//! Benchmarks. Commands, never assertions: they print medians and what they were measured on.

pub(crate) mod allreduce;
pub(crate) mod arguments;
mod bandwidth;
pub(crate) mod build;
pub(crate) mod candidates;
mod chart;
mod cublas;
pub(crate) mod kernel_sources;
pub(crate) mod layer;
mod limits;
mod nccl;
pub(crate) mod norm;
mod norm_table;
mod page;
pub(crate) mod ranks;
pub(crate) mod report;
mod series;
pub(crate) mod sizes;
mod table;
mod tables;
pub(crate) mod timing;
