//! One communicator of a rank with its memory: the arrays of each round lie in it, one slot a layer
//! in each of three regions, every slot between guards.

use anyhow::Result;
use peersum::device::Device;
use peersum::{Communicator, Error, Graph, Output, SymmetricBuffer};

use super::calls::{Call, LAYERS, Place, stride};
use super::device_check::DeviceCheck;
use super::slot::{Slot, Wrong};
use crate::data::{self, Key, TestElement, bytes_of};
use crate::memory::{Guarded, POISON, lend};

/// The calls of one round, and what they sum.
pub(crate) struct Round<'a> {
    pub(crate) number: u32,
    pub(crate) calls: &'a [Call],
    /// Bytes from slot to slot.
    pub(crate) stride: usize,
    /// For each call the keys of all ranks.
    pub(crate) keys: &'a [Vec<Key>],
}

/// An array of a call that is compared after it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Array {
    Output,
    /// Not of a call in place.
    Input,
}

impl Array {
    /// Those of the keys of all ranks whose arrays it is the sum of.
    pub(crate) fn keys(self, all: &[Key], rank: usize) -> &[Key] {
        match self {
            Array::Output => all,
            Array::Input => &all[rank..=rank],
        }
    }
}

/// An array of a case: of which round and call, and which of the call's.
pub(crate) type ArrayOfCase = (u32, usize, Array);

/// The place among a device's results of an array of a call.
fn place_of(round: u32, layer: usize, array: Array) -> usize {
    (round as usize * LAYERS + layer) * 2 + usize::from(array == Array::Input)
}

/// The round, layer and array of a place.
pub(crate) fn at_place(place: usize) -> ArrayOfCase {
    let array = [Array::Output, Array::Input][place % 2];
    let (round, layer) = (place / 2 / LAYERS, place / 2 % LAYERS);
    (round as u32, layer, array)
}

/// The places of so many rounds.
pub(crate) fn places(rounds: u32) -> usize {
    place_of(rounds, 0, Array::Output)
}

/// The bytes of a region: room for the slots of the largest round.
pub(crate) fn region_bytes(elements: usize) -> usize {
    LAYERS * stride(elements, size_of::<f32>())
}

/// One communicator with its memory.
pub(crate) struct Lane<D: Device> {
    // Dropped first: its teardown waits for the stream, which uses what follows.
    pub(crate) communicator: Communicator<D>,
    /// A second handle on the same stream: the communicator keeps its own.
    pub(crate) device: D,
    pub(crate) check: Option<DeviceCheck>,
    pub(crate) input: Guarded<D>,
    pub(crate) output: Guarded<D>,
    pub(crate) symmetric: SymmetricBuffer<f32, D>,
}

impl<D: Device> Lane<D> {
    /// The first byte of all slots of a place.
    fn base(&mut self, place: Place) -> Result<u64> {
        Ok(match place {
            Place::Input => self.input.base(),
            Place::Output => self.output.base(),
            Place::Symmetric => {
                let mut view = self.symmetric.as_view_mut();
                view.with_output(self.device.stream(), Ok::<_, Error>)?
            }
        })
    }

    fn slot<T: TestElement>(
        &mut self,
        round: &Round<'_>,
        layer: usize,
        place: Place,
    ) -> Result<Slot> {
        let base = self.base(place)? + (layer * round.stride) as u64;
        let rank = self.communicator.rank();
        Ok(round.calls[layer].slot(base, place, rank, layer, size_of::<T>()))
    }

    /// Poisons the arrays of the lane's calls and what is around them, and writes what the calls
    /// read, on the stream.
    pub(crate) fn prepare<T: TestElement>(
        &mut self,
        round: &Round<'_>,
        layers: &[usize],
    ) -> Result<()> {
        for place in [Place::Input, Place::Output, Place::Symmetric] {
            let mut calls = layers.iter().map(|&layer| &round.calls[layer]);
            if calls.any(|call| call.source == place || call.target == place) {
                let (base, word) = (self.base(place)?, u32::from_ne_bytes([POISON; 4]));
                let words = LAYERS * round.stride / 4;
                // SAFETY: the slots of a round lie within the region, which outlives the stream's
                // work.
                unsafe { self.device.fill(base, word, words)? };
            }
        }
        for &layer in layers {
            let call = &round.calls[layer];
            let slot = self.slot::<T>(round, layer, call.source)?;
            let key = round.keys[layer][self.communicator.rank() as usize];
            match &mut self.check {
                Some(check) => check.generate(T::DTYPE, call.content, key, &slot)?,
                None => {
                    let values = data::input::<T>(call.content, key, call.elements);
                    // SAFETY: the slot lies within the region.
                    unsafe { self.device.write(slot.address(), bytes_of(&values))? };
                }
            }
        }
        Ok(())
    }

    /// Makes one call.
    pub(crate) fn launch<T: TestElement>(&mut self, round: &Round<'_>, layer: usize) -> Result<()> {
        let call = &round.calls[layer];
        let source = self.slot::<T>(round, layer, call.source)?.address();
        let target = self.slot::<T>(round, layer, call.target)?.address();
        let (communicator, device) = (&mut self.communicator, &self.device);
        communicator.force_plan(call.plan)?;
        // SAFETY: the slots lie within regions that outlive the stream's work.
        unsafe {
            lend::<T, D, _, _>(device, target, call.elements, |output| {
                if source == target {
                    return Ok(communicator.all_reduce_in_place(output)?);
                }
                lend::<T, D, _, _>(device, source, call.elements, |input| {
                    Ok(communicator.all_reduce(&*input, output)?)
                })
            })
        }
    }

    /// Captures all calls of a round.
    pub(crate) fn capture<T: TestElement>(
        &mut self,
        round: &Round<'_>,
    ) -> Result<Graph<'static, D>> {
        self.communicator.capture_begin()?;
        let mut layers = 0..round.calls.len();
        let launched = layers.try_for_each(|layer| self.launch::<T>(round, layer));
        // SAFETY: the calls use regions of the lane, which outlives the graph: that lives as long
        // as its case.
        let graph = unsafe { self.communicator.capture_end() };
        launched?;
        Ok(graph?)
    }

    /// Compares a call's result, and its input, which no call writes to: on the host or by
    /// enqueuing it on a device that does it itself. On the host, `corrupts` changes a bit of each
    /// first, for tests.
    pub(crate) fn compare<T: TestElement>(
        &mut self,
        round: &Round<'_>,
        layer: usize,
        corrupts: bool,
    ) -> Result<Vec<(Array, Wrong)>> {
        let call = &round.calls[layer];
        let mut found = Vec::new();
        for array in [Array::Output, Array::Input] {
            let place = match array {
                Array::Output => call.target,
                Array::Input if call.source == call.target => continue,
                Array::Input => call.source,
            };
            let slot = self.slot::<T>(round, layer, place)?;
            let keys = array.keys(&round.keys[layer], self.communicator.rank() as usize);
            if let Some(check) = &mut self.check {
                let place = place_of(round.number, layer, array);
                check.check(T::DTYPE, call.content, keys, &slot, place)?;
                continue;
            }
            let mut memory = vec![0; slot.guarded_bytes];
            // SAFETY: the slot lies within the region.
            unsafe { self.device.read(slot.base, &mut memory)? };
            if corrupts {
                // The second element.
                memory[slot.start + size_of::<T>()] ^= 1;
            }
            let expected = data::expected::<T>(call.content, keys, call.elements);
            let wrong = slot.compare(&memory, bytes_of(&expected), size_of::<T>());
            found.extend(wrong.map(|wrong| (array, wrong)));
        }
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_array_of_a_case_has_a_place_of_its_own() {
        for place in 0..places(16) {
            let (round, layer, array) = at_place(place);
            assert!(round < 16 && layer < LAYERS);
            assert_eq!(place_of(round, layer, array), place);
        }
        let keys = [1, 2, 3].map(Key);
        assert_eq!(*Array::Output.keys(&keys, 1), keys);
        assert_eq!(*Array::Input.keys(&keys, 1), [Key(2)]);
    }
}
