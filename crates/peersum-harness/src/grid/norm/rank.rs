//! One rank of a group that makes calls with RMSNorm.

use std::time::Instant;

use anyhow::Result;
use peersum::device::Device;
use peersum::dispatch::Plan;
use peersum::reference::{self, NormNumbers};
use peersum::{Communicator, Element, Error, Output, Rendezvous, RmsNorm, Scalar, SymmetricBuffer};

use super::super::event::{Event, Spent};
use super::super::settings::Settings;
use super::cases::NormCase;
use crate::data::{self, Key, TestElement, bytes_of, case_seed, with_element};
use crate::machine::{DeviceKind, DeviceOf, Machine};
use crate::memory::{GUARD_BYTES, Guarded, POISON, difference, lend};
use crate::norm_output::{Fp8Buffers, NormOutput};

/// One rank with its memory. Every array begins behind a guard.
pub(crate) struct NormRank<D: Device> {
    // Dropped first: its teardown waits for the stream, which uses what follows.
    communicator: Communicator<D>,
    device: D,
    kind: DeviceKind,
    /// Of the data, together with the name of the configuration.
    pub(crate) seed: u64,
    /// Whether a test asked for a wrong result in this case.
    pub(crate) corrupts: bool,
    input: Guarded<D>,
    output: Guarded<D>,
    residual: Guarded<D>,
    weight: Guarded<D>,
    fp8_values: Guarded<D>,
    /// The scales of the rows, or the one inverse scale.
    fp8_scales: Guarded<D>,
    symmetric: SymmetricBuffer<f32, D>,
}

impl<D: Device> NormRank<D> {
    /// Joins the group and allocates what the largest of `cases` needs.
    pub(crate) fn new<M: Machine>(
        machine: &M,
        settings: &Settings,
        rendezvous: Rendezvous,
        cases: &[&NormCase],
    ) -> Result<NormRank<DeviceOf<M>>> {
        let stream = machine.stream(rendezvous.rank())?;
        let device = DeviceOf::<M>::open(&stream)?;
        let elements = cases.iter().map(|case| case.elements()).max().unwrap_or(1);
        let bytes = elements * size_of::<f32>();
        let rows = cases.iter().map(|case| case.rows).max().unwrap_or(1);
        let sharing = settings.sharing();
        let mut communicator = settings
            .builder(rendezvous)?
            // So that split calls are tested too.
            .max_bytes((bytes / 2).max(1024))
            .push_half_bytes((bytes / 2).max(1024))
            .build(&stream)?;
        let symmetric = communicator.symmetric_alloc::<f32>(elements)?;
        let guarded = |bytes| Guarded::new(&device, bytes + 2 * GUARD_BYTES, sharing);
        Ok(NormRank {
            input: guarded(bytes)?,
            output: guarded(bytes)?,
            residual: guarded(bytes)?,
            weight: guarded(peersum_kernels::abi::PEERSUM_MAX_HIDDEN as usize * 4)?,
            fp8_values: guarded(elements)?,
            fp8_scales: guarded(rows * size_of::<f32>())?,
            symmetric,
            communicator,
            device,
            kind: machine.kind(),
            seed: settings.seed,
            corrupts: false,
        })
    }

    /// Runs one configuration and tells `emit` how it went. `meet` waits for the other ranks of
    /// this process.
    pub(crate) fn run_case(
        &mut self,
        index: usize,
        case: &NormCase,
        meet: &dyn Fn(),
        emit: &dyn Fn(Event),
    ) -> Result<()> {
        let began = Instant::now();
        let (seconds, wrong) = self.call_and_compare(case, meet)?;
        for wrong in wrong {
            let (rank, world_size) = (self.communicator.rank(), case.world_size);
            let text = format!(
                "mismatch on rank {rank} of {world_size}: {case}, {wrong}; seed {}",
                self.seed
            );
            emit(Event::Mismatch { case: index, text });
        }
        let spent = Spent {
            calls: 1,
            run: seconds,
            check: began.elapsed().as_secs_f64() - seconds,
        };
        emit(Event::Ended { case: index, spent });
        Ok(())
    }

    /// Makes the call of a configuration. Returns its seconds, and what is wrong with its results.
    pub(crate) fn call_and_compare(
        &mut self,
        case: &NormCase,
        meet: &dyn Fn(),
    ) -> Result<(f64, Vec<String>)> {
        with_element!(case.dtype, T => self.run_typed::<T>(case, meet))
    }

    fn run_typed<T: TestElement>(
        &mut self,
        case: &NormCase,
        meet: &dyn Fn(),
    ) -> Result<(f64, Vec<String>)> {
        let (rank, world_size) = (self.communicator.rank(), self.communicator.world_size());
        let seed = case_seed(self.seed, &case.to_string());
        let (content, elements) = (case.content(), case.elements());
        let keys = Key::of_all(seed, world_size);
        // Each rank has a residual and a weight of its own.
        let side = |layer, len| data::input::<T>(content, Key::new(seed, 0, layer, rank), len);
        let (residual, weight) = (side(1, elements), side(2, case.hidden));
        let own = data::input::<T>(content, keys[rank as usize], elements);

        let sum = data::expected::<T>(content, &keys, elements);
        let kept = match case.has_residual {
            true => reference::add_residual(&sum, &residual),
            false => sum,
        };
        let numbers = NormNumbers {
            epsilon: case.epsilon(),
            weight_offset: case.weight_offset(),
        };
        let normalised = reference::rms_norm(&kept, &weight, numbers);

        // Few values saturate.
        let inverse_scale = 100.0 + seed as u8 as f32;
        let (values, scales) = case
            .output
            .expected(&normalised, case.hidden, inverse_scale);

        self.prepare(case, &own, &residual, &weight)?;
        if case.output == NormOutput::Fp8Static {
            self.fp8_scales
                .write(&self.device, GUARD_BYTES, bytes_of(&scales))?;
        }
        let began = Instant::now();
        self.make_call::<T>(case, meet)?;
        let seconds = began.elapsed().as_secs_f64();

        let mut wrong = Vec::new();
        let output = self.output_address(case)?;
        wrong.extend(self.compare(output, &normalised, "output")?);
        // What no call writes to.
        if !case.in_place {
            let input = self.input_address(case)?;
            wrong.extend(self.compare(input, &own, "input")?);
        }
        let begin = |array: &Guarded<D>| array.base() + GUARD_BYTES as u64;
        if case.has_residual {
            wrong.extend(self.compare(begin(&self.residual), &kept, "residual")?);
        }
        wrong.extend(self.compare(begin(&self.weight), &weight, "weight")?);
        wrong.extend(self.compare(begin(&self.fp8_values), &values, "FP8 values")?);
        wrong.extend(self.compare(begin(&self.fp8_scales), &scales, "FP8 scales")?);
        Ok((seconds, wrong))
    }

    /// Makes the call, eager or in a graph, and waits for its end.
    fn make_call<T: Element>(&mut self, case: &NormCase, meet: &dyn Fn()) -> Result<()> {
        let shape = self.shape(case);
        self.communicator.force_plan(shape)?;
        if !case.is_captured {
            self.call::<T>(case)?;
            return Ok(self.communicator.synchronize()?);
        }
        self.communicator.capture_begin()?;
        let called = self.call::<T>(case);
        // SAFETY: the calls use memory of this rank, which outlives the graph.
        let graph = unsafe { self.communicator.capture_end() };
        called?;
        let graph = graph?;
        // The driver may wait for the device while it makes a graph or frees one, and so for
        // kernels of other ranks of this process on the same device, which wait for this rank.
        meet();
        graph.launch(&mut self.communicator)?;
        self.communicator.synchronize()?;
        meet();
        Ok(())
    }

    /// The plan of a forced route, whose shape also limits the blocks that normalise.
    fn shape(&self, case: &NormCase) -> Option<Plan> {
        let (blocks, threads) = match self.kind {
            DeviceKind::Emulator => (2, [8, 16, 24][case.shape() % 3]),
            DeviceKind::Cuda => [(132, 512), (16, 256), (7, 96), (1, 512)][case.shape() % 4],
        };
        case.route.map(|route| Plan {
            route,
            blocks,
            threads,
        })
    }

    fn symmetric_address(&mut self) -> Result<u64> {
        let mut view = self.symmetric.as_view_mut();
        Ok(view.with_output(self.device.stream(), Ok::<_, Error>)?)
    }

    fn output_address(&mut self, case: &NormCase) -> Result<u64> {
        match case.is_symmetric() && case.in_place {
            true => self.symmetric_address(),
            false => Ok(self.output.base() + GUARD_BYTES as u64),
        }
    }

    fn input_address(&mut self, case: &NormCase) -> Result<u64> {
        match (case.is_symmetric(), case.in_place) {
            (true, _) => self.symmetric_address(),
            (false, true) => self.output_address(case),
            (false, false) => Ok(self.input.base() + GUARD_BYTES as u64),
        }
    }

    /// Poisons all arrays and writes what the call reads.
    fn prepare<T: Element>(
        &mut self,
        case: &NormCase,
        own: &[T],
        residual: &[T],
        weight: &[T],
    ) -> Result<()> {
        let rows = [&self.input, &self.output, &self.residual, &self.weight];
        let arrays = rows.into_iter().chain([&self.fp8_values, &self.fp8_scales]);
        for array in arrays {
            array.poison(&self.device)?;
        }
        self.residual
            .write(&self.device, GUARD_BYTES, bytes_of(residual))?;
        self.weight
            .write(&self.device, GUARD_BYTES, bytes_of(weight))?;
        let input = self.input_address(case)?;
        // SAFETY: the array has room for the largest case.
        unsafe { self.device.write(input, bytes_of(own))? };
        Ok(())
    }

    fn call<T: Element>(&mut self, case: &NormCase) -> Result<()> {
        if case.in_place {
            return self.call_in_place::<T>(case);
        }
        let (input, output) = (self.input_address(case)?, self.output_address(case)?);
        let residual = self.residual.base() + GUARD_BYTES as u64;
        let weight = self.weight.base() + GUARD_BYTES as u64;
        let (device, communicator) = (&self.device, &mut self.communicator);
        let elements = case.elements();
        // SAFETY: every array has room for the largest case and outlives the stream's work; the
        // buffers are given back before this returns.
        let called = unsafe {
            lend::<T, D, _, _>(device, weight, case.hidden, |weight| {
                let norm = norm_of(case, weight);
                lend::<T, D, _, _>(device, output, elements, |output| {
                    lend::<T, D, _, _>(device, residual, elements, |residual| {
                        lend::<T, D, _, _>(device, input, elements, |input| {
                            match case.has_residual {
                                false => communicator.all_reduce_rms_norm(&*input, &norm, output),
                                true => communicator
                                    .all_reduce_add_rms_norm(&*input, residual, &norm, output),
                            }
                        })
                    })
                })
            })
        };
        Ok(called?)
    }

    fn call_in_place<T: Element>(&mut self, case: &NormCase) -> Result<()> {
        let output = self.output_address(case)?;
        let begin = |array: &Guarded<D>| array.base() + GUARD_BYTES as u64;
        let (residual, weight) = (begin(&self.residual), begin(&self.weight));
        let (values, scales) = (begin(&self.fp8_values), begin(&self.fp8_scales));
        let (device, communicator) = (&self.device, &mut self.communicator);
        let (elements, scale_count) = (case.elements(), case.output.scales(case.rows));
        // SAFETY: as in `call`.
        let called = unsafe {
            lend::<T, D, _, _>(device, weight, case.hidden, |weight| {
                let norm = norm_of(case, weight);
                lend::<T, D, _, _>(device, output, elements, |rows| {
                    lend::<T, D, _, _>(device, residual, elements, |residual| {
                        let residual = case.has_residual.then_some(residual);
                        lend::<u8, D, _, _>(device, values, elements, |values| {
                            lend::<f32, D, _, _>(device, scales, scale_count, |scales| {
                                let fp8 = Fp8Buffers { values, scales };
                                let output = case.output;
                                output.call_in_place(communicator, rows, residual, &norm, fp8)
                            })
                        })
                    })
                })
            })
        };
        Ok(called?)
    }

    /// What is wrong with an array, if anything: its bits, or the guards of an ordinary one.
    fn compare<T: Scalar>(
        &self,
        address: u64,
        expected: &[T],
        name: &str,
    ) -> Result<Option<String>> {
        let bytes = size_of_val(expected);
        let guarded = [
            &self.input,
            &self.output,
            &self.residual,
            &self.weight,
            &self.fp8_values,
            &self.fp8_scales,
        ];
        let is_guarded = guarded
            .iter()
            .any(|array| array.base() + GUARD_BYTES as u64 == address);
        let guard = if is_guarded { GUARD_BYTES } else { 0 };
        let mut memory = vec![0; bytes + 2 * guard];
        // SAFETY: the array and its guards lie within memory of this rank.
        unsafe { self.device.read(address - guard as u64, &mut memory)? };
        if self.corrupts {
            memory[guard] ^= 1;
        }
        let behind = memory.split_off(guard + bytes);
        let array = memory.split_off(guard);
        if memory.iter().chain(&behind).any(|&byte| byte != POISON) {
            return Ok(Some(format!("{name}: memory beside it was written")));
        }
        Ok(difference::<T>(&array, bytes_of(expected), name))
    }
}

/// The RMSNorm of a configuration.
fn norm_of<'a, W>(case: &NormCase, weight: &'a mut W) -> RmsNorm<'a, W> {
    RmsNorm {
        weight,
        epsilon: case.epsilon(),
        weight_offset: case.weight_offset(),
    }
}
