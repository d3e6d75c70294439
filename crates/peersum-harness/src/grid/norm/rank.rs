//! One rank of a group that makes calls with RMSNorm.

use anyhow::{Result, ensure};
use peersum::device::Device;
use peersum::dispatch::Plan;
use peersum::loader::{JitMode, LoadPolicy};
use peersum::reference::{self, NormNumbers};
use peersum::{Communicator, Element, Output, Rendezvous, RmsNorm, SymmetricBuffer};

use super::super::settings::Settings;
use super::cases::NormCase;
use crate::data::{self, Key, TestElement, bytes_of, case_seed, with_element};
use crate::machine::{DeviceKind, DeviceOf, Machine};
use crate::memory::{GUARD_BYTES, Guarded, POISON, elements_of, lend};
use crate::ranks::{PATIENCE, Peers};

/// One rank with its memory. Every array begins behind a guard.
pub(crate) struct NormRank<D: Device> {
    // Dropped first: its teardown waits for the stream, which uses what follows.
    communicator: Communicator<D>,
    device: D,
    kind: DeviceKind,
    /// Of the data, together with the name of the configuration.
    pub(crate) seed: u64,
    /// For tests: changes one bit of an array before it is compared.
    pub(crate) corrupts: bool,
    input: Guarded<D>,
    output: Guarded<D>,
    residual: Guarded<D>,
    weight: Guarded<D>,
    symmetric: SymmetricBuffer<f32, D>,
}

impl<D: Device> NormRank<D> {
    /// Joins the group and allocates what the largest of `cases` needs.
    pub(crate) fn new<M: Machine>(
        machine: &M,
        settings: &Settings,
        rendezvous: Rendezvous,
        cases: &[NormCase],
    ) -> Result<NormRank<DeviceOf<M>>> {
        let stream = machine.stream(rendezvous.rank())?;
        let device = DeviceOf::<M>::open(&stream)?;
        let elements = cases.iter().map(NormCase::elements).max().unwrap_or(1);
        let bytes = elements * size_of::<f32>();
        let sharing = settings.sharing();
        let mut communicator = Communicator::builder()
            .rendezvous(rendezvous)
            .load_policy(LoadPolicy::from_env()?.jit(JitMode::Deny))
            // So that split calls are tested too.
            .max_bytes((bytes / 2).max(1024))
            .push_half_bytes((bytes / 2).max(1024))
            .setup_timeout(PATIENCE)
            .timeout(settings.timeout)
            .start_epochs(settings.start_epochs.0, settings.start_epochs.1)
            .memory_sharing(sharing)
            .build(&stream)?;
        let symmetric = communicator.symmetric_alloc::<f32>(elements)?;
        let guarded = |bytes| Guarded::new(&device, bytes + 2 * GUARD_BYTES, sharing);
        Ok(NormRank {
            input: guarded(bytes)?,
            output: guarded(bytes)?,
            residual: guarded(bytes)?,
            weight: guarded(peersum_kernels::abi::PEERSUM_MAX_HIDDEN as usize * 4)?,
            symmetric,
            communicator,
            device,
            kind: machine.kind(),
            seed: settings.seed,
            corrupts: false,
        })
    }

    /// Runs one configuration. Returns what is wrong with its results.
    pub(crate) fn run(&mut self, case: &NormCase, peers: &Peers<'_>) -> Result<Vec<String>> {
        with_element!(case.dtype, T => self.run_typed::<T>(case, peers))
    }

    fn run_typed<T: TestElement>(
        &mut self,
        case: &NormCase,
        peers: &Peers<'_>,
    ) -> Result<Vec<String>> {
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

        self.prepare(case, &own, &residual, &weight)?;
        let shape = self.shape(case);
        self.communicator.force_plan(shape)?;
        if case.is_captured {
            self.communicator.capture_begin()?;
            let called = self.call::<T>(case);
            // SAFETY: the calls use memory of this rank, which outlives the graph.
            let graph = unsafe { self.communicator.capture_end() };
            called?;
            let graph = graph?;
            // The driver may wait for the device while it makes a graph or frees one, and so for
            // kernels of other ranks on the same device, which wait for this rank.
            peers.meet()?;
            graph.launch(&mut self.communicator)?;
            self.communicator.synchronize()?;
            peers.meet()?;
        } else {
            self.call::<T>(case)?;
            self.communicator.synchronize()?;
        }

        let mut wrong = Vec::new();
        let output = self.output_address(case);
        wrong.extend(self.compare(output, &normalised, "output")?);
        if case.has_residual {
            let residual = self.residual.base() + GUARD_BYTES as u64;
            wrong.extend(self.compare(residual, &kept, "residual")?);
        }
        let named = |wrong| format!("{case}, rank {rank}: {wrong} (seed {})", self.seed);
        Ok(wrong.into_iter().map(named).collect())
    }

    /// The plan of a forced route, whose shape also limits the blocks that normalise.
    fn shape(&self, case: &NormCase) -> Option<Plan> {
        let (blocks, threads) = match self.kind {
            DeviceKind::Emulator => (2, [8, 16, 24][case.numbers % 3]),
            DeviceKind::Cuda => [(132, 512), (16, 256), (7, 96), (1, 512)][case.numbers % 4],
        };
        case.route.map(|route| Plan {
            route,
            blocks,
            threads,
        })
    }

    fn symmetric_address(&mut self) -> u64 {
        let mut view = self.symmetric.as_view_mut();
        view.with_output(self.device.stream(), |address| address)
    }

    fn output_address(&mut self, case: &NormCase) -> u64 {
        match case.is_symmetric() && case.in_place {
            true => self.symmetric_address(),
            false => self.output.base() + GUARD_BYTES as u64,
        }
    }

    fn input_address(&mut self, case: &NormCase) -> u64 {
        match (case.is_symmetric(), case.in_place) {
            (true, _) => self.symmetric_address(),
            (false, true) => self.output_address(case),
            (false, false) => self.input.base() + GUARD_BYTES as u64,
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
        let arrays = [&self.input, &self.output, &self.residual, &self.weight];
        for array in arrays {
            array.poison(&self.device)?;
        }
        self.residual
            .write(&self.device, GUARD_BYTES, bytes_of(residual))?;
        self.weight
            .write(&self.device, GUARD_BYTES, bytes_of(weight))?;
        let input = self.input_address(case);
        // SAFETY: the array has room for the largest case.
        unsafe { self.device.write(input, bytes_of(own))? };
        Ok(())
    }

    fn call<T: Element>(&mut self, case: &NormCase) -> Result<()> {
        let (input, output) = (self.input_address(case), self.output_address(case));
        let residual = self.residual.base() + GUARD_BYTES as u64;
        let weight = self.weight.base() + GUARD_BYTES as u64;
        let (device, communicator) = (&self.device, &mut self.communicator);
        let elements = case.elements();
        // SAFETY: every array has room for the largest case and outlives the stream's work; the
        // buffers are given back before this returns.
        let called = unsafe {
            lend::<T, D, _>(device, weight, case.hidden, |weight| {
                let norm = RmsNorm {
                    weight: &*weight,
                    epsilon: case.epsilon(),
                    weight_offset: case.weight_offset(),
                };
                lend::<T, D, _>(device, output, elements, |output| {
                    lend::<T, D, _>(device, residual, elements, |residual| {
                        lend::<T, D, _>(device, input, elements, |input| {
                            match (case.in_place, case.has_residual) {
                                (false, false) => {
                                    communicator.all_reduce_rms_norm(&*input, &norm, output)
                                }
                                (false, true) => communicator
                                    .all_reduce_add_rms_norm(&*input, residual, &norm, output),
                                (true, false) => {
                                    communicator.all_reduce_rms_norm_in_place(output, &norm)
                                }
                                (true, true) => communicator
                                    .all_reduce_add_rms_norm_in_place(output, residual, &norm),
                            }
                        })
                    })
                })
            })
        };
        Ok(called?)
    }

    /// What is wrong with an array, if anything: its bits, or the guards of an ordinary one.
    fn compare<T: Element>(
        &self,
        address: u64,
        expected: &[T],
        name: &str,
    ) -> Result<Option<String>> {
        let bytes = size_of_val(expected);
        let is_guarded = [&self.output, &self.residual]
            .iter()
            .any(|array| array.base() + GUARD_BYTES as u64 == address);
        let guard = if is_guarded { GUARD_BYTES } else { 0 };
        let mut memory = vec![0; bytes + 2 * guard];
        // SAFETY: the array and its guards lie within memory of this rank.
        unsafe { self.device.read(address - guard as u64, &mut memory)? };
        let behind = memory.split_off(guard + bytes);
        let mut array = memory.split_off(guard);
        array[0] ^= u8::from(self.corrupts);
        if memory.iter().chain(&behind).any(|&byte| byte != POISON) {
            return Ok(Some(format!("{name}: memory beside it was written")));
        }
        let found = elements_of::<T>(&array);
        ensure!(
            found.len() == expected.len(),
            "an array of the call's length"
        );
        let wrong = found
            .iter()
            .zip(expected)
            .position(|(found, expected)| found.raw() != expected.raw());
        Ok(wrong.map(|index| {
            format!(
                "{name}, element {index}: {:#x}, not {:#x}",
                found[index].raw(),
                expected[index].raw()
            )
        }))
    }
}
