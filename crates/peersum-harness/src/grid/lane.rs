//! One communicator of a rank with its memory: the arrays of each round lie in it.

use anyhow::{Context, Result};
use peersum::device::Device;
use peersum::{Communicator, Graph, SymmetricBuffer};

use super::calls::{Call, LAYERS, Place};
use super::device_check::DeviceCheck;
use super::event::Wrong;
use super::memory::{Slot, Slots, compare};
use crate::data::{self, Key, TestElement, bytes_of};
use crate::memory::{Guarded, POISON};

/// The calls of one round, and what they sum.
pub(crate) struct Round<'a> {
    pub(crate) number: u32,
    pub(crate) calls: &'a [Call],
    /// Bytes from slot to slot.
    pub(crate) stride: usize,
    /// For each call the keys of all ranks.
    pub(crate) keys: &'a [Vec<Key>],
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
    fn slots(&mut self, stride: usize) -> Slots {
        Slots {
            input: self.input.base(),
            output: self.output.base(),
            symmetric: peersum::Output::with_output(
                &mut self.symmetric.as_view_mut(),
                self.device.stream(),
                |address| address,
            ),
            stride,
            rank: self.communicator.rank(),
        }
    }

    fn slot<T: TestElement>(&mut self, round: &Round<'_>, layer: usize, place: Place) -> Slot {
        let slots = self.slots(round.stride);
        slots.slot(&round.calls[layer], place, layer, size_of::<T>())
    }

    /// Poisons what the lane's calls write and writes what they read, on the stream.
    pub(crate) fn prepare<T: TestElement>(
        &mut self,
        round: &Round<'_>,
        layers: &[usize],
    ) -> Result<()> {
        let slots = self.slots(round.stride);
        for place in [Place::Output, Place::Symmetric] {
            let uses = |&&layer: &&usize| {
                let call = &round.calls[layer];
                call.source == place || call.target == place
            };
            if layers.iter().any(|layer| uses(&layer)) {
                let word = u32::from_ne_bytes([POISON; 4]);
                let words = LAYERS * round.stride / 4;
                // SAFETY: the slots of a round lie within the region, which outlives the stream's
                // work.
                unsafe { self.device.fill(slots.base(place), word, words)? };
            }
        }
        for &layer in layers {
            let call = &round.calls[layer];
            let slot = slots.slot(call, call.source, layer, size_of::<T>());
            let key = round.keys[layer][slots.rank as usize];
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
        let source = self.slot::<T>(round, layer, call.source).address();
        let target = self.slot::<T>(round, layer, call.target).address();
        let (communicator, device) = (&mut self.communicator, &self.device);
        communicator.force_plan(call.plan)?;
        // SAFETY: the slot lies within a region that outlives the stream's work, and the buffer is
        // disowned below.
        let mut output = unsafe { device.adopt::<T>(target, call.elements) };
        let launched = if source == target {
            communicator.all_reduce_in_place(&mut output)
        } else {
            // SAFETY: as above.
            let input = unsafe { device.adopt::<T>(source, call.elements) };
            let launched = communicator.all_reduce(&input, &mut output);
            D::disown(input);
            launched
        };
        D::disown(output);
        Ok(launched?)
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

    /// Enqueues the comparison of a call's result on the device.
    pub(crate) fn compare_on_device<T: TestElement>(
        &mut self,
        round: &Round<'_>,
        layer: usize,
    ) -> Result<()> {
        let call = &round.calls[layer];
        let slot = self.slot::<T>(round, layer, call.target);
        let place = round.number as usize * LAYERS + layer;
        let keys = &round.keys[layer];
        let check = self.check.as_mut().context("no check on this device")?;
        check.check(T::DTYPE, call.content, keys, &slot, place)
    }

    /// Compares a call's result on the host; `corrupts` one of its bits first, for tests.
    pub(crate) fn compare<T: TestElement>(
        &mut self,
        round: &Round<'_>,
        layer: usize,
        corrupts: bool,
    ) -> Result<Option<Wrong>> {
        let call = &round.calls[layer];
        let slot = self.slot::<T>(round, layer, call.target);
        let expected = data::expected::<T>(call.content, &round.keys[layer], call.elements);
        let mut memory = vec![0; slot.guarded_bytes];
        // SAFETY: the slot lies within the region.
        unsafe { self.device.read(slot.base, &mut memory)? };
        if corrupts {
            // The second element.
            memory[slot.start + size_of::<T>()] ^= 1;
        }
        let expected = bytes_of(&expected);
        Ok(compare(&slot, &memory, expected, size_of::<T>()))
    }
}
