//! peersum's all-reduce as operations of candle: sums a tensor over the ranks of a group, for
//! layers that are split over several GPUs.
//!
//! ```no_run
//! # #[cfg(feature = "cuda")]
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use candle_core::{DType, Device, Tensor};
//! use peersum::nccl_shape::Comm;
//! use peersum::{Communicator, Rendezvous};
//! use peersum_candle::AllReduce;
//!
//! let rendezvous = Rendezvous::from_env()?;
//! let device = Device::new_cuda_with_stream(rendezvous.local_rank() as usize)?;
//! let stream = device.as_cuda_device()?.cuda_stream();
//! let communicator = Communicator::builder().rendezvous(rendezvous).build(&stream)?;
//! let all_reduce = AllReduce::new(Comm::from(communicator));
//!
//! let partial = Tensor::ones((1, 4096), DType::BF16, &device)?;
//! let hidden = partial.apply_op1_no_bwd(&all_reduce)?; // into a new tensor
//! partial.inplace_op1(&all_reduce)?; // or in place
//! all_reduce.comm().synchronize()?; // once a step: the only proof that the sums are valid
//! # Ok(())
//! # }
//! # #[cfg(not(feature = "cuda"))]
//! # fn main() {}
//! ```
//!
//! [`AllReduceRmsNorm`] also adds the residual and normalises, in the same call:
//!
//! ```no_run
//! # use candle_core::{Result, Tensor};
//! # use peersum_candle::{AllReduce, AllReduceRmsNorm};
//! # fn layer(
//! #     all_reduce: &AllReduce,
//! #     weight: Tensor,
//! #     partial: &Tensor,
//! #     residual: &Tensor,
//! # ) -> Result<()> {
//! let norm = AllReduceRmsNorm::new(all_reduce.comm().clone(), weight, 1e-6);
//! let normalized = norm.forward_add(partial, residual)?; // adds to `residual` in place
//! # Ok(())
//! # }
//! ```
//!
//! - Types: bf16, f16 and f32; another is candle's `UnsupportedDTypeForOp`.
//! - Layouts: a contiguous tensor that begins anywhere in its storage (`narrow` along the first
//!   dimension, say); another is candle's `RequiresContiguous`: call `contiguous()` first. A tensor
//!   without elements is summed without a launch.
//! - The tensor must be on the device, with its stream, that the communicator was built for; else
//!   it is [`AllReduceError::OtherStream`]. `Device::new_cuda` works, at some microseconds a call
//!   (see [`peersum::nccl_shape`]); `Device::new_cuda_with_stream` saves them.
//! - A tensor on the CPU is [`AllReduceError::OnCpu`]: an engine that runs on the CPU has one rank
//!   and leaves the operation out.
//! - There is no backward pass.
//!
//! Without the feature `cuda` the crate builds with no CUDA on the machine, and every use of the
//! operation is an error.

#![deny(missing_docs)]

#[cfg(feature = "cuda")]
mod cuda;
mod error;
mod layout;
mod norm;

use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp1, InplaceOp1, Layout, Result, Shape};
use peersum::nccl_shape::Comm;

use error::NAME;

pub use error::AllReduceError;
pub use norm::AllReduceRmsNorm;

/// The sum over all ranks, as a [`CustomOp1`] (`tensor.apply_op1_no_bwd(&all_reduce)`) and as an
/// [`InplaceOp1`] (`tensor.inplace_op1(&all_reduce)`).
///
/// Every rank must apply it in the same order to tensors of the same size and type. `Ok` means
/// launched: call [`Comm::synchronize`] of [`AllReduce::comm`] once a step.
#[derive(Debug, Clone)]
pub struct AllReduce {
    comm: Arc<Comm>,
}

impl AllReduce {
    /// The operation on a communicator, which several may share.
    pub fn new(comm: impl Into<Arc<Comm>>) -> Self {
        AllReduce { comm: comm.into() }
    }

    /// The communicator.
    pub fn comm(&self) -> &Arc<Comm> {
        &self.comm
    }
}

impl CustomOp1 for AllReduce {
    fn name(&self) -> &'static str {
        NAME
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        Err(AllReduceError::OnCpu.into())
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        storage: &candle_core::CudaStorage,
        layout: &Layout,
    ) -> Result<(candle_core::CudaStorage, Shape)> {
        cuda::all_reduce(&self.comm, storage, layout)
    }
}

impl InplaceOp1 for AllReduce {
    fn name(&self) -> &'static str {
        NAME
    }

    fn cpu_fwd(&self, _: &mut CpuStorage, _: &Layout) -> Result<()> {
        Err(AllReduceError::OnCpu.into())
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, storage: &mut candle_core::CudaStorage, layout: &Layout) -> Result<()> {
        cuda::all_reduce_in_place(&self.comm, storage, layout)
    }
}
