//! Calls of every operation on arrays that are given by their addresses.

use peersum::device::Device;
use peersum::reference::NormNumbers;
use peersum::{Communicator, Element, Error, RmsNorm, Scalar};

use crate::collective::Collective;
use crate::memory::lend;
use crate::norm_output::{Fp8Buffers, NormOutput};

/// What a call reads and writes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Message<'a, D> {
    pub(crate) device: &'a D,
    /// `None`: the call works in place.
    pub(crate) input: Option<u64>,
    pub(crate) output: u64,
    /// Elements, of each rank if it has chunks.
    pub(crate) elements: usize,
}

/// What a call with RMSNorm has beyond its message.
#[derive(Debug, Clone, Copy)]
pub(crate) struct NormArrays {
    pub(crate) weight: u64,
    pub(crate) residual: Option<u64>,
    pub(crate) fp8_values: u64,
    /// The scales of the rows, or the one inverse scale.
    pub(crate) fp8_scales: u64,
    pub(crate) output: NormOutput,
    /// Elements of a row.
    pub(crate) hidden: usize,
    pub(crate) numbers: NormNumbers,
}

impl<D: Device> Message<'_, D> {
    /// # Safety
    /// Every array is aligned to its elements and holds as many as the call needs, until the stream
    /// has passed the call.
    pub(crate) unsafe fn all_reduce<T: Element>(
        self,
        communicator: &mut Communicator<D>,
    ) -> Result<(), Error> {
        let Message {
            device,
            output,
            elements,
            ..
        } = self;
        // SAFETY: the caller's promise.
        unsafe {
            lend::<T, D, _, _>(device, output, elements, |output| match self.input {
                None => communicator.all_reduce_in_place(output),
                Some(input) => lend::<T, D, _, _>(device, input, elements, |input| {
                    communicator.all_reduce(&*input, output)
                }),
            })
        }
    }

    /// An all-gather or a broadcast.
    ///
    /// # Safety
    /// As [`Message::all_reduce`].
    pub(crate) unsafe fn move_data<T: Scalar>(
        self,
        communicator: &mut Communicator<D>,
        kind: Collective,
    ) -> Result<(), Error> {
        let (device, input) = (self.device, self.input);
        let (sent, received) = kind.lengths(self.elements, communicator.world_size());
        // SAFETY: the caller's promise.
        unsafe {
            lend::<T, D, _, _>(device, self.output, received, |output| {
                match (kind, input) {
                    (Collective::Broadcast { root }, _) => communicator.broadcast(output, root),
                    (_, None) => communicator.all_gather_in_place(output),
                    (_, Some(input)) => lend::<T, D, _, _>(device, input, sent, |input| {
                        communicator.all_gather(&*input, output)
                    }),
                }
            })
        }
    }

    /// # Safety
    /// As [`Message::all_reduce`].
    pub(crate) unsafe fn reduce_scatter<T: Element>(
        self,
        communicator: &mut Communicator<D>,
    ) -> Result<(), Error> {
        let (device, output) = (self.device, self.output);
        let kind = Collective::ReduceScatter;
        let (whole, chunk) = kind.lengths(self.elements, communicator.world_size());
        // SAFETY: the caller's promise.
        unsafe {
            match self.input {
                None => lend::<T, D, _, _>(device, output, whole, |buffer| {
                    communicator.reduce_scatter_in_place(buffer)
                }),
                Some(input) => lend::<T, D, _, _>(device, output, chunk, |output| {
                    lend::<T, D, _, _>(device, input, whole, |input| {
                        communicator.reduce_scatter(&*input, output)
                    })
                }),
            }
        }
    }

    /// # Safety
    /// As [`Message::all_reduce`]. Without FP8 there need be no arrays for it.
    pub(crate) unsafe fn rms_norm<T: Element>(
        self,
        communicator: &mut Communicator<D>,
        arrays: NormArrays,
    ) -> Result<(), Error> {
        let (device, elements, hidden) = (self.device, self.elements, arrays.hidden);
        let kind = arrays.output;
        let fp8_elements = if kind.has_fp8() { elements } else { 0 };
        let scales = kind.scales(elements / hidden);
        let residual = arrays.residual.unwrap_or(self.output);
        // SAFETY: the caller's promise. Without a residual nobody uses its buffer.
        unsafe {
            lend::<T, D, _, _>(device, arrays.weight, hidden, |weight| {
                let norm = RmsNorm {
                    weight: &*weight,
                    epsilon: arrays.numbers.epsilon,
                    weight_offset: arrays.numbers.weight_offset,
                };
                lend::<T, D, _, _>(device, residual, elements, |residual| {
                    let residual = arrays.residual.map(|_| residual);
                    lend::<T, D, _, _>(device, self.output, elements, |output| {
                        let Some(input) = self.input else {
                            return lend::<u8, D, _, _>(
                                device,
                                arrays.fp8_values,
                                fp8_elements,
                                |values| {
                                    lend::<f32, D, _, _>(
                                        device,
                                        arrays.fp8_scales,
                                        scales,
                                        |scales| {
                                            let fp8 = Fp8Buffers { values, scales };
                                            kind.call_in_place(
                                                communicator,
                                                output,
                                                residual,
                                                &norm,
                                                fp8,
                                            )
                                        },
                                    )
                                },
                            );
                        };
                        lend::<T, D, _, _>(device, input, elements, |input| match residual {
                            Some(residual) => communicator
                                .all_reduce_add_rms_norm(&*input, residual, &norm, output),
                            None => communicator.all_reduce_rms_norm(&*input, &norm, output),
                        })
                    })
                })
            })
        }
    }
}
