//! What to reduce by.

/// What to reduce by, with the names of `cudarc::nccl::ReduceOp`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReduceOp {
    /// The sum over all ranks: the only operation here.
    Sum,
    /// Refused with [`NcclError::Operation`](crate::nccl_shape::NcclError).
    Prod,
    /// Refused with [`NcclError::Operation`](crate::nccl_shape::NcclError).
    Max,
    /// Refused with [`NcclError::Operation`](crate::nccl_shape::NcclError).
    Min,
    /// Refused with [`NcclError::Operation`](crate::nccl_shape::NcclError).
    Avg,
}
