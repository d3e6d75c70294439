//! The operations on tensors of a GPU.

use candle_core::backend::BackendStorage;
use candle_core::cuda_backend::CudaDType;
use candle_core::{CudaDevice, CudaStorage, DType, Error, Layout, Result, Shape};
use half::{bf16, f16};
use peersum::cudarc::driver::{CudaSlice, CudaView};
use peersum::device::DeviceStream;
use peersum::nccl_shape::{Comm, NcclError, NcclType, ReduceOp};
use peersum::reference::NormNumbers;
use peersum::{Communicator, Cuda, Element, RmsNorm};

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

/// The normalised rows of the sum of `partial`. A residual is added to the sum first, in its place.
pub(crate) fn all_reduce_rms_norm(
    comm: &Comm,
    numbers: NormNumbers,
    partial: (&CudaStorage, &Layout),
    residual: Option<(&mut CudaStorage, &Layout)>,
    weight: (&CudaStorage, &Layout),
) -> Result<CudaStorage> {
    require_stream(comm, partial.0.device())?;
    match partial.0.dtype() {
        DType::BF16 => normalise::<bf16>(comm, numbers, partial, residual, weight),
        DType::F16 => normalise::<f16>(comm, numbers, partial, residual, weight),
        DType::F32 => normalise::<f32>(comm, numbers, partial, residual, weight),
        other => Err(Error::UnsupportedDTypeForOp(other, NAME)),
    }
}

fn normalise<T: CudaDType + Element>(
    comm: &Comm,
    numbers: NormNumbers,
    partial: (&CudaStorage, &Layout),
    residual: Option<(&mut CudaStorage, &Layout)>,
    weight: (&CudaStorage, &Layout),
) -> Result<CudaStorage> {
    let device = partial.0.device();
    let (partial, weight) = (view::<T>(partial)?, view::<T>(weight)?);
    let norm = RmsNorm {
        weight: &weight,
        epsilon: numbers.epsilon,
        weight_offset: numbers.weight_offset,
    };
    let len = partial.len();
    // SAFETY: as in `sum`.
    let mut output = unsafe { device.alloc::<T>(len.max(1)) }?;
    let mut normalized = output.slice_mut(0..len);
    match residual {
        None => in_order(comm, device, |communicator| {
            communicator.all_reduce_rms_norm(&partial, &norm, &mut normalized)
        }),
        Some((storage, layout)) => {
            let storage: &mut CudaSlice<T> = storage.as_cuda_slice_mut()?;
            let mut residual = storage.slice_mut(elements(layout)?);
            in_order(comm, device, |communicator| {
                communicator.all_reduce_add_rms_norm(
                    &partial,
                    &mut residual,
                    &norm,
                    &mut normalized,
                )
            })
        }
    }?;
    Ok(CudaStorage::wrap_cuda_slice(output, device.clone()))
}

fn view<'a, T: CudaDType>(
    (storage, layout): (&'a CudaStorage, &Layout),
) -> Result<CudaView<'a, T>> {
    let storage: &CudaSlice<T> = storage.as_cuda_slice()?;
    Ok(storage.slice(elements(layout)?))
}

/// Makes a call that [`Comm`] does not have, in order with the device's stream as [`Comm`] does:
/// the communicator has a stream of its own if the device has a default stream.
fn in_order(
    comm: &Comm,
    device: &CudaDevice,
    call: impl FnOnce(&mut Communicator<Cuda>) -> std::result::Result<(), peersum::Error>,
) -> Result<()> {
    let refused = |error| AllReduceError::from(NcclError::from(error));
    // Under one lock, so that no other thread's call comes between the call and what orders it.
    let mut communicator = comm.communicator().lock();
    let (own, theirs) = (communicator.stream().clone(), device.cuda_stream());
    let is_stand_in = own.cu_stream() != theirs.cu_stream();
    if is_stand_in {
        own.wait_for(&theirs)
            .map_err(|error| refused(error.into()))?;
    }
    let launched = call(&mut communicator);
    // After an error as well: a part of the call may have been launched.
    if is_stand_in {
        theirs
            .wait_for(&own)
            .map_err(|error| refused(error.into()))?;
    }
    Ok(launched.map_err(refused)?)
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
