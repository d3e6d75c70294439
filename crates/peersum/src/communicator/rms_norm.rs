//! All-reduce, residual and RMSNorm in one call.

use peersum_kernels::abi;

use super::fp8::{Fp8Addresses, Fp8Output, NoFp8};
use super::norm_launch::NormCall;
use super::prepared::Call;
use super::state::Communicator;
use crate::call_signature::unit_elements;
use crate::device::{Device, Input, Output};
use crate::element::Element;
use crate::error::Error;
use crate::norm_error::NormError;
use crate::operation::Operation;

/// An RMSNorm: `n = (r / sqrt(mean(r * r) + epsilon)) * (weight_offset + weight)` for each row `r`,
/// with the roundings that [`crate::reference::rms_norm`] states.
///
/// ```no_run
/// use half::bf16;
/// use peersum::cudarc::driver::CudaSlice;
/// use peersum::{Communicator, Cuda, Error, RmsNorm};
///
/// /// Adds the sum of all ranks' `partial` to `residual`, and normalises its rows.
/// fn after_attention(
///     communicator: &mut Communicator<Cuda>,
///     partial: &CudaSlice<bf16>,
///     residual: &mut CudaSlice<bf16>,
///     gamma: &CudaSlice<bf16>,
///     normalized: &mut CudaSlice<bf16>,
/// ) -> Result<(), Error> {
///     let norm = RmsNorm {
///         weight: gamma,
///         epsilon: 1e-6,
///         weight_offset: 0.0,
///     };
///     communicator.all_reduce_add_rms_norm(partial, residual, &norm, normalized)
/// }
/// ```
#[derive(Debug, Clone, Copy)]
pub struct RmsNorm<'a, W: ?Sized> {
    /// One element for each element of a row: its length is the length of the rows, a multiple of
    /// 16 bytes and at most 32,768 elements.
    pub weight: &'a W,
    /// Added to the mean of the squares. Finite, not negative.
    pub epsilon: f32,
    /// Added to each weight. Finite. 0 is the plain RMSNorm, 1 the one of Gemma and Qwen.
    pub weight_offset: f32,
}

impl<D: Device> Communicator<D> {
    /// Sums `input` over all ranks and normalises each row of the sum:
    /// `output = rms_norm(all_reduce(input))`.
    ///
    /// All buffers hold rows of `norm.weight.len()` elements, and begin at multiples of 16 bytes. A
    /// row's bits depend on that row, the weight and the numbers in `norm` alone, not on how many
    /// rows there are or how the call is carried out.
    ///
    /// Otherwise as [`Communicator::all_reduce`]: `Ok` means launched, no element does nothing, and
    /// all ranks must call with the same `epsilon`, `weight_offset` and lengths. (The values of the
    /// weight may differ: each rank normalises with its own.) After a failure the output holds NaN.
    ///
    /// # Errors
    /// [`Error::Norm`] and [`Error::LengthMismatch`] for arguments that do not fit each other;
    /// those of [`Communicator::all_reduce`].
    pub fn all_reduce_rms_norm<T, I, W, O>(
        &mut self,
        input: &I,
        norm: &RmsNorm<'_, W>,
        output: &mut O,
    ) -> Result<(), Error>
    where
        T: Element,
        I: Input<T, D>,
        W: Input<T, D>,
        O: Output<T, D>,
    {
        let stream = self.device.stream().clone();
        let waits = input.check(&stream)? | norm.weight.check(&stream)? | output.check(&stream)?;
        self.check_before_waits(waits)?;
        check_output_len(input.len(), output.len())?;
        let rows = self.check_norm::<T, W>(norm, input.len())?;
        input.with_input(&stream, |input| {
            norm.weight.with_input(&stream, |weight| {
                output.with_output(&stream, |output| {
                    self.enqueue_norm(rows.with(
                        input,
                        output,
                        0,
                        weight,
                        Fp8Addresses::default(),
                    )?)
                })
            })
        })
    }

    /// Sums `input` over all ranks, adds `residual`, and normalises each row of the result:
    /// `residual = all_reduce(input) + residual; output = rms_norm(residual)`.
    ///
    /// Each rank adds its own residual. After a failure the residual may be untouched, updated or
    /// NaN. Otherwise as [`Communicator::all_reduce_rms_norm`].
    ///
    /// # Errors
    /// As [`Communicator::all_reduce_rms_norm`].
    pub fn all_reduce_add_rms_norm<T, I, R, W, O>(
        &mut self,
        input: &I,
        residual: &mut R,
        norm: &RmsNorm<'_, W>,
        output: &mut O,
    ) -> Result<(), Error>
    where
        T: Element,
        I: Input<T, D>,
        R: Output<T, D>,
        W: Input<T, D>,
        O: Output<T, D>,
    {
        let stream = self.device.stream().clone();
        let waits = input.check(&stream)? | norm.weight.check(&stream)?;
        self.check_before_waits(waits | residual.check(&stream)? | output.check(&stream)?)?;
        check_output_len(input.len(), output.len())?;
        let rows = self.check_norm::<T, W>(norm, input.len())?;
        rows.check_residual_len(residual.len())?;
        input.with_input(&stream, |input| {
            norm.weight.with_input(&stream, |weight| {
                residual.with_output(&stream, |residual| {
                    output.with_output(&stream, |output| {
                        self.enqueue_norm(rows.with(
                            input,
                            output,
                            residual,
                            weight,
                            Fp8Addresses::default(),
                        )?)
                    })
                })
            })
        })
    }

    /// [`Communicator::all_reduce_rms_norm`] with the result in the place of the input.
    ///
    /// # Errors
    /// As [`Communicator::all_reduce_rms_norm`].
    pub fn all_reduce_rms_norm_in_place<T, W, O>(
        &mut self,
        buffer: &mut O,
        norm: &RmsNorm<'_, W>,
    ) -> Result<(), Error>
    where
        T: Element,
        W: Input<T, D>,
        O: Output<T, D>,
    {
        self.all_reduce_rms_norm_fp8(buffer, norm, NoFp8)
    }

    /// [`Communicator::all_reduce_add_rms_norm`] with the result in the place of the input.
    ///
    /// # Errors
    /// As [`Communicator::all_reduce_rms_norm`].
    pub fn all_reduce_add_rms_norm_in_place<T, R, W, O>(
        &mut self,
        buffer: &mut O,
        residual: &mut R,
        norm: &RmsNorm<'_, W>,
    ) -> Result<(), Error>
    where
        T: Element,
        R: Output<T, D>,
        W: Input<T, D>,
        O: Output<T, D>,
    {
        self.all_reduce_add_rms_norm_fp8(buffer, residual, norm, NoFp8)
    }

    /// [`Communicator::all_reduce_rms_norm_in_place`], and FP8 of the normalised rows: an
    /// [`Fp8Static`](crate::Fp8Static) or an [`Fp8PerToken`](crate::Fp8PerToken).
    ///
    /// The rows replace the input, as the sum needs a place in any case. All ranks must ask for
    /// the same kind of FP8; with a static scale its value may differ, as the weight may. After a
    /// failure the FP8 values are 0x7F, and the scales of rows are NaN.
    ///
    /// # Errors
    /// As [`Communicator::all_reduce_rms_norm`].
    pub fn all_reduce_rms_norm_fp8<T, W, O>(
        &mut self,
        buffer: &mut O,
        norm: &RmsNorm<'_, W>,
        fp8: impl Fp8Output<D>,
    ) -> Result<(), Error>
    where
        T: Element,
        W: Input<T, D>,
        O: Output<T, D>,
    {
        let stream = self.device.stream().clone();
        let waits = buffer.check(&stream)? | norm.weight.check(&stream)? | fp8.check(&stream)?;
        self.check_before_waits(waits)?;
        let rows = self.check_norm::<T, W>(norm, buffer.len())?;
        fp8.check_lengths(rows.rows(), norm.weight.len())?;
        norm.weight.with_input(&stream, |weight| {
            fp8.with_fp8(&stream, |fp8| {
                buffer.with_output(&stream, |buffer| {
                    self.enqueue_norm(rows.with(buffer, buffer, 0, weight, fp8)?)
                })
            })
        })
    }

    /// [`Communicator::all_reduce_add_rms_norm_in_place`], and FP8 of the normalised rows, as in
    /// [`Communicator::all_reduce_rms_norm_fp8`].
    ///
    /// # Errors
    /// As [`Communicator::all_reduce_rms_norm`].
    pub fn all_reduce_add_rms_norm_fp8<T, R, W, O>(
        &mut self,
        buffer: &mut O,
        residual: &mut R,
        norm: &RmsNorm<'_, W>,
        fp8: impl Fp8Output<D>,
    ) -> Result<(), Error>
    where
        T: Element,
        R: Output<T, D>,
        W: Input<T, D>,
        O: Output<T, D>,
    {
        let stream = self.device.stream().clone();
        let waits = buffer.check(&stream)? | norm.weight.check(&stream)?;
        self.check_before_waits(waits | residual.check(&stream)? | fp8.check(&stream)?)?;
        let rows = self.check_norm::<T, W>(norm, buffer.len())?;
        rows.check_residual_len(residual.len())?;
        fp8.check_lengths(rows.rows(), norm.weight.len())?;
        norm.weight.with_input(&stream, |weight| {
            fp8.with_fp8(&stream, |fp8| {
                residual.with_output(&stream, |residual| {
                    buffer.with_output(&stream, |buffer| {
                        self.enqueue_norm(rows.with(buffer, buffer, residual, weight, fp8)?)
                    })
                })
            })
        })
    }

    /// Checks the numbers and the lengths.
    fn check_norm<T: Element, W: Input<T, D>>(
        &self,
        norm: &RmsNorm<'_, W>,
        elements: usize,
    ) -> Result<RowsOf, Error> {
        let parameter = |name, value, demand| NormError::Parameter {
            name,
            value,
            demand,
        };
        if !norm.epsilon.is_finite() || norm.epsilon < 0.0 {
            let demand = "finite and not negative";
            return Err(parameter("epsilon", norm.epsilon, demand).into());
        }
        if !norm.weight_offset.is_finite() {
            return Err(parameter("weight_offset", norm.weight_offset, "finite").into());
        }
        let hidden = norm.weight.len();
        let unit = unit_elements(T::DTYPE) as usize;
        let most = abi::PEERSUM_MAX_HIDDEN as usize;
        if hidden == 0 || hidden > most || !hidden.is_multiple_of(unit) {
            return Err(NormError::Hidden { hidden, unit }.into());
        }
        if !elements.is_multiple_of(hidden) {
            return Err(NormError::Rows { elements, hidden }.into());
        }
        Ok(RowsOf {
            call: Call {
                dtype: T::DTYPE,
                input: 0,
                output: 0,
                elements: elements as u64,
                operation: Operation::RmsNorm,
            },
            hidden: hidden as u32,
            epsilon: norm.epsilon,
            weight_offset: norm.weight_offset,
        })
    }
}

fn check_output_len(input: usize, output: usize) -> Result<(), Error> {
    match input == output {
        true => Ok(()),
        false => Err(Error::LengthMismatch { input, output }),
    }
}

/// A call whose lengths and numbers are checked.
#[derive(Clone, Copy)]
struct RowsOf {
    call: Call,
    hidden: u32,
    epsilon: f32,
    weight_offset: f32,
}

impl RowsOf {
    fn check_residual_len(&self, residual: usize) -> Result<(), NormError> {
        let input = self.call.elements as usize;
        match input == residual {
            true => Ok(()),
            false => Err(NormError::ResidualLength { input, residual }),
        }
    }

    fn rows(&self) -> usize {
        self.call.elements as usize / self.hidden as usize
    }

    /// The call with these addresses; 0 for no residual.
    fn with(
        &self,
        input: u64,
        output: u64,
        residual: u64,
        weight: u64,
        fp8: Fp8Addresses,
    ) -> Result<NormCall, Error> {
        let call = Call {
            input,
            output,
            ..self.call
        };
        let bytes = call.bytes()?;
        let named = [
            ("input", input),
            ("output", output),
            ("residual", residual),
            ("weight", weight),
            ("FP8 values", fp8.values),
        ];
        if call.elements != 0 {
            for (buffer, address) in named {
                if !address.is_multiple_of(u64::from(abi::PEERSUM_UNIT_BYTES)) {
                    return Err(NormError::Misaligned { buffer, address }.into());
                }
            }
        }
        let rows = self.rows() as u64;
        let residual_range = ("residual", residual, bytes);
        let values = ("FP8 values", fp8.values, call.elements);
        let scales = ("row scales", fp8.row_scales, rows * size_of::<f32>() as u64);
        for (one, begin, len) in [residual_range, values, scales] {
            let others = [
                ("input", input, bytes),
                ("output", output, bytes),
                residual_range,
                values,
            ];
            for (other, other_begin, other_len) in others {
                let are_both = begin != 0 && other_begin != 0 && one != other;
                if are_both && begin < other_begin + other_len && other_begin < begin + len {
                    return Err(NormError::Overlap { one, other }.into());
                }
            }
        }
        Ok(NormCall {
            call,
            residual,
            weight,
            hidden: self.hidden,
            epsilon: self.epsilon,
            weight_offset: self.weight_offset,
            fp8,
        })
    }
}
