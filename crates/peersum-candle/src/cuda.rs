//! The operations on tensors of a GPU.

use candle_core::backend::BackendStorage;
use candle_core::cuda_backend::CudaDType;
use candle_core::{CudaDevice, CudaStorage, DType, Error, Layout, Result, Shape};
use half::{bf16, f16};
use peersum::cudarc::driver::CudaSlice;
use peersum::nccl_shape::{Comm, NcclType, ReduceOp};

use crate::error::{AllReduceError, NAME};
use crate::layout::elements;

pub(crate) fn all_reduce(
    comm: &Comm,
    storage: &CudaStorage,
    layout: &Layout,
) -> Result<(CudaStorage, Shape)> {
    require_stream(comm, storage.device())?;
    let sum = match storage.dtype() {
        DType::BF16 => sum::<bf16>(comm, storage, layout),
        DType::F16 => sum::<f16>(comm, storage, layout),
        DType::F32 => sum::<f32>(comm, storage, layout),
        other => Err(Error::UnsupportedDTypeForOp(other, NAME)),
    }?;
    Ok((sum, layout.shape().clone()))
}

pub(crate) fn all_reduce_in_place(
    comm: &Comm,
    storage: &mut CudaStorage,
    layout: &Layout,
) -> Result<()> {
    require_stream(comm, storage.device())?;
    match storage.dtype() {
        DType::BF16 => sum_in_place::<bf16>(comm, storage, layout),
        DType::F16 => sum_in_place::<f16>(comm, storage, layout),
        DType::F32 => sum_in_place::<f32>(comm, storage, layout),
        other => Err(Error::UnsupportedDTypeForOp(other, NAME)),
    }
}

fn sum<T: CudaDType + NcclType>(
    comm: &Comm,
    storage: &CudaStorage,
    layout: &Layout,
) -> Result<CudaStorage> {
    let elements = elements(layout)?;
    let partial: &CudaSlice<T> = storage.as_cuda_slice()?;
    let device = storage.device();
    // The driver allocates no zero bytes, and a storage may be longer than its tensor. SAFETY: the
    // call below writes every element that the tensor has, in the order of the device's own stream,
    // before anything reads it.
    let mut sum = unsafe { device.alloc::<T>(elements.len().max(1)) }?;
    comm.all_reduce(&partial.slice(elements), &mut sum, &ReduceOp::Sum)
        .map_err(AllReduceError::from)?;
    Ok(CudaStorage::wrap_cuda_slice(sum, device.clone()))
}

fn sum_in_place<T: CudaDType + NcclType>(
    comm: &Comm,
    storage: &mut CudaStorage,
    layout: &Layout,
) -> Result<()> {
    let elements = elements(layout)?;
    let partial: &mut CudaSlice<T> = storage.as_cuda_slice_mut()?;
    comm.all_reduce_in_place(&mut partial.slice_mut(elements), &ReduceOp::Sum)
        .map_err(AllReduceError::from)?;
    Ok(())
}

/// The communicator's calls are ordered with the work on the stream that it was given, and with no
/// other.
fn require_stream(comm: &Comm, device: &CudaDevice) -> Result<()> {
    let (own, theirs) = (comm.stream(), device.cuda_stream());
    // The default streams' handles are the same in every context.
    if own.cu_stream() == theirs.cu_stream() && own.context().cu_ctx() == theirs.context().cu_ctx()
    {
        Ok(())
    } else {
        Err(AllReduceError::OtherStream.into())
    }
}
