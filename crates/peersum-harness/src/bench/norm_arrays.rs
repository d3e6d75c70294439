//! What a rank's calls with RMSNorm have beside their messages: the weight, the residual and FP8.

use anyhow::Result;
use peersum::device::{Device, MemorySharing};
use peersum::reference::NormNumbers;
use peersum::{Element, Error, RmsNorm};
use peersum_kernels::abi;

use super::call::MeasuredCall;
use crate::data::bytes_of;
use crate::memory::{Guarded, lend, write_repeated};

/// As in most models.
pub(super) const NUMBERS: NormNumbers = NormNumbers {
    epsilon: 1e-6,
    weight_offset: 0.0,
};

/// With which few FP8 values saturate.
pub(super) const INVERSE_SCALE: f32 = 100.0;

/// Makes an input or a weight small. Each timed call adds to the residual, which would otherwise
/// overflow in f16, and calls with values that are not finite take longer.
pub(super) fn small<T: Element>(mut values: Vec<T>) -> Vec<T> {
    for value in &mut values {
        *value = T::round(value.widen() / 16384.0);
    }
    values
}

/// A buffer as the communicator takes it.
type Buffer<T, D> = <D as Device>::Buffer<T>;

/// The arrays of one rank.
pub(super) struct NormArrays<D: Device> {
    pub(super) residual: Guarded<D>,
    pub(super) weight: Guarded<D>,
    pub(super) fp8_values: Guarded<D>,
    /// The one inverse scale, or the scales of the rows.
    pub(super) fp8_scales: Guarded<D>,
}

impl<D: Device> NormArrays<D> {
    /// For messages of at most so many bytes.
    pub(super) fn new(device: &D, bytes: usize) -> Result<Self> {
        let guarded = |bytes| -> Result<Guarded<D>> {
            let memory = Guarded::new(device, bytes, MemorySharing::Auto)?;
            memory.poison(device)?;
            Ok(memory)
        };
        Ok(NormArrays {
            residual: guarded(bytes)?,
            weight: guarded(abi::PEERSUM_MAX_HIDDEN as usize * size_of::<f32>())?,
            // An element has at least two bytes, a row at least one unit.
            fp8_values: guarded(bytes / 2)?,
            fp8_scales: guarded(bytes / 4)?,
        })
    }

    /// Writes what the next call of `len` elements reads beside its message, and poisons what it
    /// writes. The residual repeats.
    pub(super) fn prepare<T: Element>(
        &self,
        device: &D,
        len: usize,
        residual: &[T],
        weight: &[T],
    ) -> Result<()> {
        self.weight.write(device, 0, bytes_of(weight))?;
        let bytes = len * size_of::<T>();
        // SAFETY: the allocation has room for the largest message.
        unsafe { write_repeated(device, self.residual.base(), bytes, residual)? };
        self.fp8_values.poison(device)?;
        self.fp8_scales.poison(device)?;
        self.fp8_scales.write(device, 0, bytes_of(&[INVERSE_SCALE]))
    }

    /// Passes the arrays of a call to `body`: weight and numbers, residual, FP8 values and scales.
    ///
    /// # Safety
    /// `self` must live until the stream has passed all that `body` enqueues.
    pub(super) unsafe fn lend<T: Element, R, E: From<Error>>(
        &self,
        device: &D,
        call: &MeasuredCall,
        body: impl FnOnce(
            &RmsNorm<'_, Buffer<T, D>>,
            &mut Buffer<T, D>,
            &mut Buffer<u8, D>,
            &mut Buffer<f32, D>,
        ) -> Result<R, E>,
    ) -> Result<R, E> {
        let (rows, hidden) = (call.rows::<T>() as usize, call.hidden as usize);
        let (weight, residual) = (self.weight.base(), self.residual.base());
        let (values, scales) = (self.fp8_values.base(), self.fp8_scales.base());
        let (len, scale_count) = (rows * hidden, call.output.scales(rows));
        // SAFETY: each array has at least so many elements and begins at a multiple of 16 bytes;
        // the rest is the caller's promise.
        unsafe {
            lend::<T, D, _, _>(device, weight, hidden, |weight| {
                let norm = RmsNorm {
                    weight: &*weight,
                    epsilon: NUMBERS.epsilon,
                    weight_offset: NUMBERS.weight_offset,
                };
                lend::<T, D, _, _>(device, residual, len, |residual| {
                    lend::<u8, D, _, _>(device, values, len, |values| {
                        lend::<f32, D, _, _>(device, scales, scale_count, |scales| {
                            body(&norm, residual, values, scales)
                        })
                    })
                })
            })
        }
    }
}
