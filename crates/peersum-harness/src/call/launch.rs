//! Makes calls on arrays that are given by their addresses.

use peersum::device::Device;
use peersum::{Communicator, Element, Error, RmsNorm, Scalar};

use super::array::{Array, Role};
use super::norm_data::NormKind;
use super::rank_call::{CallKind, RankCall};
use crate::collective::Collective;
use crate::data::{with_element, with_scalar};
use crate::memory::lend;
use crate::norm_output::Fp8Buffers;

/// The address of an array and its elements.
type Place = (u64, usize);

impl RankCall {
    /// Makes the call. `address` says where each of its arrays begins.
    ///
    /// # Safety
    /// Each array is aligned to its elements and lies there until the stream has passed the call.
    pub(crate) unsafe fn launch<D: Device>(
        &self,
        device: &D,
        communicator: &mut Communicator<D>,
        address: impl Fn(&Array) -> u64,
    ) -> Result<(), Error> {
        let place = |array: &Array| (address(array), array.elements);
        let of_role = |role| self.array(role).map(place);
        let mut launch = Launch {
            device,
            communicator,
            input: of_role(Role::Input),
            output: place(self.output()),
        };
        // SAFETY: the caller's promise; an array has as many elements as the call needs.
        unsafe {
            match self.kind {
                CallKind::AllReduce => with_element!(self.dtype, T => launch.all_reduce::<T>()),
                CallKind::Norm(kind) => {
                    with_element!(self.dtype, T => launch.rms_norm::<T>(&kind, of_role))
                }
                CallKind::Other(Collective::ReduceScatter) => {
                    with_element!(self.dtype, T => launch.reduce_scatter::<T>())
                }
                CallKind::Other(kind) => with_scalar!(self.dtype, T => launch.move_data::<T>(kind)),
            }
        }
    }
}

struct Launch<'a, D: Device> {
    device: &'a D,
    communicator: &'a mut Communicator<D>,
    /// `None`: the call works in place.
    input: Option<Place>,
    output: Place,
}

impl<D: Device> Launch<'_, D> {
    /// Passes the input, if there is one, and the output to `call`.
    ///
    /// # Safety
    /// As [`RankCall::launch`]. So are the other functions.
    unsafe fn between<T: Scalar>(
        &mut self,
        call: impl FnOnce(
            &mut Communicator<D>,
            Option<&D::Buffer<T>>,
            &mut D::Buffer<T>,
        ) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let (device, input) = (self.device, self.input);
        let communicator = &mut *self.communicator;
        // SAFETY: the caller's promise.
        unsafe {
            lend(device, self.output.0, self.output.1, |output| match input {
                None => call(communicator, None, output),
                Some((input, len)) => lend(device, input, len, |input| {
                    call(communicator, Some(&*input), output)
                }),
            })
        }
    }

    unsafe fn all_reduce<T: Element>(&mut self) -> Result<(), Error> {
        // SAFETY: the caller's promise.
        unsafe {
            self.between::<T>(|communicator, input, output| match input {
                None => communicator.all_reduce_in_place(output),
                Some(input) => communicator.all_reduce(input, output),
            })
        }
    }

    unsafe fn reduce_scatter<T: Element>(&mut self) -> Result<(), Error> {
        // SAFETY: the caller's promise.
        unsafe {
            self.between::<T>(|communicator, input, output| match input {
                None => communicator.reduce_scatter_in_place(output),
                Some(input) => communicator.reduce_scatter(input, output),
            })
        }
    }

    /// An all-gather or a broadcast.
    unsafe fn move_data<T: Scalar>(&mut self, kind: Collective) -> Result<(), Error> {
        // SAFETY: the caller's promise.
        unsafe {
            self.between::<T>(|communicator, input, output| match (kind, input) {
                (Collective::Broadcast { root }, _) => communicator.broadcast(output, root),
                (_, None) => communicator.all_gather_in_place(output),
                (_, Some(input)) => communicator.all_gather(input, output),
            })
        }
    }

    unsafe fn rms_norm<T: Element>(
        &mut self,
        kind: &NormKind,
        of_role: impl Fn(Role) -> Option<Place>,
    ) -> Result<(), Error> {
        // What a call does not have has no elements.
        let place = |role| of_role(role).unwrap_or((self.output.0, 0));
        let (weight, residual) = (place(Role::Weight), place(Role::Residual));
        let (values, scales) = (place(Role::Fp8Values), place(Role::Fp8Scales));
        let device = self.device;
        // SAFETY: the caller's promise.
        unsafe {
            lend::<T, D, _, _>(device, weight.0, weight.1, |weight| {
                let norm = RmsNorm {
                    weight: &*weight,
                    epsilon: kind.numbers.epsilon,
                    weight_offset: kind.numbers.weight_offset,
                };
                lend::<T, D, _, _>(device, residual.0, residual.1, |residual| {
                    let residual = kind.adds.then_some(residual);
                    self.between::<T>(|communicator, input, output| match (input, residual) {
                        (Some(input), Some(residual)) => {
                            communicator.all_reduce_add_rms_norm(input, residual, &norm, output)
                        }
                        (Some(input), None) => {
                            communicator.all_reduce_rms_norm(input, &norm, output)
                        }
                        (None, residual) => lend(device, values.0, values.1, |values| {
                            lend(device, scales.0, scales.1, |scales| {
                                let fp8 = Fp8Buffers { values, scales };
                                let form = kind.output;
                                form.call_in_place(communicator, output, residual, &norm, fp8)
                            })
                        }),
                    })
                })
            })
        }
    }
}
