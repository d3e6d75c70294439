//! All-reduce, residual and RMSNorm in one call.

use std::cell::Cell;
use std::sync::Arc;

use candle_core::op::BackpropOp;
use candle_core::{
    CpuStorage, CudaStorage, CustomOp2, Error, InplaceOp3, Layout, Result, Shape, Storage, Tensor,
};
use peersum::nccl_shape::Comm;
use peersum::reference::NormNumbers;

#[cfg(feature = "cuda")]
use crate::cuda;
use crate::error::{AllReduceError, NAME};

/// The sum over all ranks and what follows it in a layer, in one call: the residual is added, and
/// each row is normalised (RMSNorm).
///
/// The weight belongs to the operation, as in `candle_nn::RmsNorm`. Rows are as long as the weight:
/// a multiple of 16 bytes, at most 32,768 elements. The results have the bits of
/// [`peersum::reference::add_residual`] and [`peersum::reference::rms_norm`], which do not depend
/// on the number of rows.
///
/// Every rank must apply it in the same order to tensors of the same size and type, with the same
/// numbers. `Ok` means launched: call [`Comm::synchronize`] of [`AllReduceRmsNorm::comm`] once a
/// step.
#[derive(Debug, Clone)]
pub struct AllReduceRmsNorm {
    comm: Arc<Comm>,
    weight: Tensor,
    #[cfg_attr(not(feature = "cuda"), allow(dead_code, reason = "only GPUs reduce"))]
    numbers: NormNumbers,
}

impl AllReduceRmsNorm {
    /// The operation on a communicator, which several may share, with a weight of one dimension.
    /// `epsilon` is added to the mean of the squares.
    pub fn new(comm: impl Into<Arc<Comm>>, weight: Tensor, epsilon: f32) -> Self {
        AllReduceRmsNorm {
            comm: comm.into(),
            weight,
            numbers: NormNumbers {
                epsilon,
                weight_offset: 0.0,
            },
        }
    }

    /// Adds `weight_offset` to each weight: 1 for the models of Gemma. 0 if it is not set.
    #[must_use]
    pub fn with_weight_offset(mut self, weight_offset: f32) -> Self {
        self.numbers.weight_offset = weight_offset;
        self
    }

    /// The communicator.
    pub fn comm(&self) -> &Arc<Comm> {
        &self.comm
    }

    /// Sums `partial` over all ranks and normalises its rows, into a new tensor.
    ///
    /// # Errors
    /// candle's own for types, shapes and layouts that do not fit; [`AllReduceError`].
    pub fn forward(&self, partial: &Tensor) -> Result<Tensor> {
        check_shapes(partial.shape(), partial.shape(), self.weight.shape())?;
        partial.apply_op2_no_bwd(&self.weight, &Norm(self))
    }

    /// Sums `partial` over all ranks, adds the sum to `residual` in place, and normalises the rows
    /// of `residual` into a new tensor.
    ///
    /// `residual` has the shape of `partial`, and shares its storage with no other operand. After a
    /// failure that [`Comm::synchronize`] reports it may be untouched, updated or NaN.
    ///
    /// # Errors
    /// As [`AllReduceRmsNorm::forward`]; candle's own if `residual` shares its storage.
    pub fn forward_add(&self, partial: &Tensor, residual: &Tensor) -> Result<Tensor> {
        check_shapes(partial.shape(), residual.shape(), self.weight.shape())?;
        let add = AddNorm {
            norm: self,
            output: Cell::new(None),
        };
        residual.inplace_op3(partial, &self.weight, &add)?;
        // Only a GPU gets as far as here, and it has made one.
        let output = add.output.take().ok_or(AllReduceError::OnCpu)?;
        let (storage, shape) = (Storage::Cuda(output), partial.shape());
        Ok(Tensor::from_storage(
            storage,
            shape,
            BackpropOp::none(),
            false,
        ))
    }
}

/// The communicator sees buffers without shapes: it would take rows of another length for rows of
/// the weight's.
fn check_shapes(partial: &Shape, residual: &Shape, weight: &Shape) -> Result<()> {
    let mismatch = |lhs: &Shape, rhs: &Shape| Error::ShapeMismatchBinaryOp {
        lhs: lhs.clone(),
        rhs: rhs.clone(),
        op: NAME,
    };
    let hidden = weight.dims1()?;
    if partial.dims().last() != Some(&hidden) {
        return Err(mismatch(partial, weight).bt());
    }
    if partial != residual {
        return Err(mismatch(partial, residual).bt());
    }
    Ok(())
}

/// The operation without a residual, on what is summed and the weight.
struct Norm<'a>(
    #[cfg_attr(not(feature = "cuda"), allow(dead_code, reason = "only GPUs reduce"))]
    &'a AllReduceRmsNorm,
);

impl CustomOp2 for Norm<'_> {
    fn name(&self) -> &'static str {
        NAME
    }

    fn cpu_fwd(
        &self,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        Err(AllReduceError::OnCpu.into())
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        partial: &CudaStorage,
        layout: &Layout,
        weight: &CudaStorage,
        weight_layout: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        let AllReduceRmsNorm { comm, numbers, .. } = self.0;
        let (partial, weight) = ((partial, layout), (weight, weight_layout));
        let output = cuda::all_reduce_rms_norm(comm, *numbers, partial, None, weight)?;
        Ok((output, layout.shape().clone()))
    }
}

/// The operation in place of the residual, on what is summed and the weight. candle's operations
/// return one tensor or change one, so the other result waits here.
struct AddNorm<'a> {
    #[cfg_attr(not(feature = "cuda"), allow(dead_code, reason = "only GPUs reduce"))]
    norm: &'a AllReduceRmsNorm,
    output: Cell<Option<CudaStorage>>,
}

impl InplaceOp3 for AddNorm<'_> {
    fn name(&self) -> &'static str {
        NAME
    }

    fn cpu_fwd(
        &self,
        _: &mut CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
    ) -> Result<()> {
        Err(AllReduceError::OnCpu.into())
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        residual: &mut CudaStorage,
        residual_layout: &Layout,
        partial: &CudaStorage,
        layout: &Layout,
        weight: &CudaStorage,
        weight_layout: &Layout,
    ) -> Result<()> {
        let AllReduceRmsNorm { comm, numbers, .. } = self.norm;
        let (partial, weight) = ((partial, layout), (weight, weight_layout));
        let residual = Some((residual, residual_layout));
        let output = cuda::all_reduce_rms_norm(comm, *numbers, partial, residual, weight)?;
        self.output.set(Some(output));
        Ok(())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn rows_that_are_not_as_long_as_the_weight_are_refused_though_the_elements_would_fit() {
        let shape = |dims: &[usize]| Shape::from(dims);
        let (rows, weight) = (shape(&[2, 3, 64]), shape(&[64]));
        check_shapes(&rows, &rows, &weight).unwrap();
        let refused = [
            (shape(&[2, 32]), shape(&[2, 32]), shape(&[64])),
            (shape(&[2, 64]), shape(&[1, 64]), shape(&[64])),
            (shape(&[2, 64]), shape(&[128]), shape(&[64])),
            (shape(&[]), shape(&[]), shape(&[64])),
            (shape(&[2, 64]), shape(&[2, 64]), shape(&[1, 64])),
        ];
        for (partial, residual, weight) in refused {
            let outcome = check_shapes(&partial, &residual, &weight);
            assert!(outcome.is_err(), "{partial:?} {residual:?} {weight:?}");
        }
    }
}
