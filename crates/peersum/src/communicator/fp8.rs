//! FP8 outputs of calls with RMSNorm.

use super::held::Held;
use crate::device::{BufferError, Device, Input, Output, Waits};
use crate::norm_error::NormError;

/// FP8 (E4M3) of the normalised rows, with a scale that the program gives.
///
/// `values[i] = e4m3(normalised[i] * inverse_scale)`, as
/// [`reference::fp8_static`](crate::reference::fp8_static) says: one byte an element, rounded to
/// nearest even, saturated at 448.
///
/// In an eager call both fields are borrowed buffers; in a capture `values` is a `&mut Held`.
///
/// ```no_run
/// use half::bf16;
/// use peersum::cudarc::driver::CudaSlice;
/// use peersum::{Communicator, Cuda, Error, Fp8Static, RmsNorm};
///
/// /// Leaves the normalised rows in `partial`, and in `quantized` what the next product reads.
/// fn before_mlp(
///     communicator: &mut Communicator<Cuda>,
///     partial: &mut CudaSlice<bf16>,
///     residual: &mut CudaSlice<bf16>,
///     norm: &RmsNorm<'_, CudaSlice<bf16>>,
///     inverse_scale: &CudaSlice<f32>,
///     quantized: &mut CudaSlice<u8>,
/// ) -> Result<(), Error> {
///     let fp8 = Fp8Static { values: quantized, inverse_scale };
///     communicator.all_reduce_add_rms_norm_fp8(partial, residual, norm, fp8)
/// }
/// ```
#[derive(Debug)]
pub struct Fp8Static<V, S> {
    /// One byte for each element of the rows; begins at a multiple of 16 bytes.
    pub values: V,
    /// One `f32` on the device, by which each element is multiplied.
    pub inverse_scale: S,
}

/// FP8 (E4M3) of the normalised rows, with a scale for each row (each token) that the call finds.
///
/// `scales[row] = max(largest magnitude of the row / 448, 1 / (512 * 448))` and
/// `values[i] = e4m3(normalised[i] / scales[row])`, as
/// [`reference::fp8_per_token`](crate::reference::fp8_per_token) says.
///
/// In an eager call both fields are `&mut` buffers; in a capture they are `&mut Held`.
#[derive(Debug)]
pub struct Fp8PerToken<V, S> {
    /// One byte for each element of the rows; begins at a multiple of 16 bytes.
    pub values: V,
    /// One `f32` for each row.
    pub scales: S,
}

/// What a call with RMSNorm writes besides the rows: an [`Fp8Static`] or an [`Fp8PerToken`].
/// Sealed.
pub trait Fp8Output<D: Device>: sealed::Fp8Buffers<D> {}

/// The same in a capture: its buffers live as long as the graph. Sealed.
pub trait HeldFp8Output<'a, D: Device>: sealed::HeldFp8Buffers<'a, D> {}

/// Where a call writes FP8, and with what scale. 0 stands for none.
#[derive(Debug, Clone, Copy, Default)]
pub struct Fp8Addresses {
    pub(super) values: u64,
    pub(super) inverse_scale: u64,
    pub(super) row_scales: u64,
}

impl Fp8Addresses {
    /// Those of the rows from `row` on.
    pub(super) fn at_row(self, row: u64, hidden: u64) -> Self {
        let from = |address: u64, bytes: u64| match address {
            0 => 0,
            address => address + bytes,
        };
        Self {
            values: from(self.values, row * hidden),
            row_scales: from(self.row_scales, row * size_of::<f32>() as u64),
            ..self
        }
    }
}

mod sealed {
    use super::{BufferError, Device, Fp8Addresses, Fp8Output, NormError, Waits};

    pub trait Fp8Buffers<D: Device> {
        /// As [`DeviceBuffer::check`](crate::DeviceBuffer::check).
        fn check(&self, stream: &D::Stream) -> Result<Waits, BufferError>;
        fn check_lengths(&self, rows: usize, hidden: usize) -> Result<(), NormError>;
        fn with_fp8<R, E: From<BufferError>>(
            self,
            stream: &D::Stream,
            launch: impl FnOnce(Fp8Addresses) -> Result<R, E>,
        ) -> Result<R, E>;
    }

    pub trait HeldFp8Buffers<'a, D: Device> {
        /// For one call.
        fn lend(self) -> impl Fp8Output<D>;
    }
}

pub(super) use sealed::{Fp8Buffers, HeldFp8Buffers};

/// For a call that writes the rows alone.
pub(super) struct NoFp8;

impl<D: Device> Fp8Buffers<D> for NoFp8 {
    fn check(&self, _stream: &D::Stream) -> Result<Waits, BufferError> {
        Ok(Waits::Never)
    }

    fn check_lengths(&self, _rows: usize, _hidden: usize) -> Result<(), NormError> {
        Ok(())
    }

    fn with_fp8<R, E: From<BufferError>>(
        self,
        _stream: &D::Stream,
        launch: impl FnOnce(Fp8Addresses) -> Result<R, E>,
    ) -> Result<R, E> {
        launch(Fp8Addresses::default())
    }
}

impl<D: Device> Fp8Output<D> for NoFp8 {}

fn check_len(buffer: &'static str, len: usize, needed: usize) -> Result<(), NormError> {
    match len == needed {
        true => Ok(()),
        false => Err(NormError::Fp8Length {
            buffer,
            len,
            needed,
        }),
    }
}

impl<D, V, S> Fp8Buffers<D> for Fp8Static<&mut V, &S>
where
    D: Device,
    V: Output<u8, D>,
    S: Input<f32, D>,
{
    fn check(&self, stream: &D::Stream) -> Result<Waits, BufferError> {
        Ok(self.values.check(stream)? | self.inverse_scale.check(stream)?)
    }

    fn check_lengths(&self, rows: usize, hidden: usize) -> Result<(), NormError> {
        check_len("FP8 values", self.values.len(), rows * hidden)?;
        check_len("inverse scale", self.inverse_scale.len(), 1)
    }

    fn with_fp8<R, E: From<BufferError>>(
        self,
        stream: &D::Stream,
        launch: impl FnOnce(Fp8Addresses) -> Result<R, E>,
    ) -> Result<R, E> {
        self.inverse_scale.with_input(stream, |inverse_scale| {
            self.values.with_output(stream, |values| {
                launch(Fp8Addresses {
                    values,
                    inverse_scale,
                    row_scales: 0,
                })
            })
        })
    }
}

impl<D, V, S> Fp8Buffers<D> for Fp8PerToken<&mut V, &mut S>
where
    D: Device,
    V: Output<u8, D>,
    S: Output<f32, D>,
{
    fn check(&self, stream: &D::Stream) -> Result<Waits, BufferError> {
        Ok(self.values.check(stream)? | self.scales.check(stream)?)
    }

    fn check_lengths(&self, rows: usize, hidden: usize) -> Result<(), NormError> {
        check_len("FP8 values", self.values.len(), rows * hidden)?;
        check_len("row scales", self.scales.len(), rows)
    }

    fn with_fp8<R, E: From<BufferError>>(
        self,
        stream: &D::Stream,
        launch: impl FnOnce(Fp8Addresses) -> Result<R, E>,
    ) -> Result<R, E> {
        self.scales.with_output(stream, |row_scales| {
            self.values.with_output(stream, |values| {
                launch(Fp8Addresses {
                    values,
                    inverse_scale: 0,
                    row_scales,
                })
            })
        })
    }
}

impl<D: Device, V: Output<u8, D>, S: Input<f32, D>> Fp8Output<D> for Fp8Static<&mut V, &S> {}

impl<D: Device, V: Output<u8, D>, S: Output<f32, D>> Fp8Output<D> for Fp8PerToken<&mut V, &mut S> {}

impl<'a, D, V, S> HeldFp8Buffers<'a, D> for Fp8Static<&mut Held<'a, V>, &'a S>
where
    D: Device,
    V: Output<u8, D>,
    S: Input<f32, D>,
{
    fn lend(self) -> impl Fp8Output<D> {
        Fp8Static {
            values: &mut *self.values.buffer,
            inverse_scale: self.inverse_scale,
        }
    }
}

impl<'a, D, V, S> HeldFp8Buffers<'a, D> for Fp8PerToken<&mut Held<'a, V>, &mut Held<'a, S>>
where
    D: Device,
    V: Output<u8, D>,
    S: Output<f32, D>,
{
    fn lend(self) -> impl Fp8Output<D> {
        Fp8PerToken {
            values: &mut *self.values.buffer,
            scales: &mut *self.scales.buffer,
        }
    }
}

impl<'a, D: Device, V: Output<u8, D>, S: Input<f32, D>> HeldFp8Output<'a, D>
    for Fp8Static<&mut Held<'a, V>, &'a S>
{
}

impl<'a, D: Device, V: Output<u8, D>, S: Output<f32, D>> HeldFp8Output<'a, D>
    for Fp8PerToken<&mut Held<'a, V>, &mut Held<'a, S>>
{
}
