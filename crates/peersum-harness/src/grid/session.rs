//! One rank of one group: its communicators and memory, and how a case is run on them.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use half::{bf16, f16};
use peersum::device::{Device, DeviceStream};
use peersum::{Communicator, Element, Graph, Rendezvous, SymmetricBuffer};
use peersum_artifact::Dtype;

use super::case::{Adversarial, Case, Mode, Work};
use super::device_check::{self, DeviceCheck};
use super::event::{Event, Mismatch, Wrong};
use super::generator::{self, Key, bytes_of, case_seed};
use super::machine::Machine;
use super::memory::{POISON, Region, Slots, compare, region_bytes, stride};
use super::plan::{self, Call, LAYERS, Place};
use super::settings::{GridKind, Settings};

/// How long ranks wait for each other in set-up. The runner watches over the ranks, so this need not be short; ranks of larger groups
/// wait here while the smaller ones run.
const SETUP_TIMEOUT: Duration = Duration::from_secs(3600);

/// The largest grid of each of two communicators that share the devices, and under a sanitizer.
const FEW_BLOCKS: u32 = 8;

/// One communicator with its memory.
struct Lane<D: Device> {
    // Dropped first: its teardown waits for the stream, which uses what follows.
    communicator: Communicator<D>,
    /// A second handle on the same stream: the communicator keeps its own.
    device: D,
    check: Option<Box<dyn DeviceCheck>>,
    input: Region<D>,
    output: Region<D>,
    symmetric: SymmetricBuffer<f32, D>,
}

/// One rank of a group, for all cases of its world size.
pub(crate) struct Session<'a, S: DeviceStream> {
    /// May be exchanged between cases, for another seed.
    pub(crate) settings: &'a Settings,
    rank: u32,
    world_size: u32,
    lanes: Vec<Lane<S::Device>>,
    /// Whether a test asked for a wrong result in this case.
    pub(crate) corrupts: bool,
}

/// What a case took.
#[derive(Default)]
struct Spent {
    calls: u64,
    run: Duration,
    check: Duration,
}

impl<'a, S: DeviceStream> Session<'a, S> {
    /// Joins the group and allocates what the largest of `cases` needs.
    pub(crate) fn new<M: Machine<Stream = S>>(
        machine: &M,
        settings: &'a Settings,
        cases: &[(usize, &Case)],
        rank: u32,
        lanes: usize,
        rendezvous: &mut dyn FnMut(u32, usize) -> Result<Rendezvous>,
    ) -> Result<Self> {
        let (_, first) = cases.first().context("a group without cases")?;
        let world_size = first.world_size;
        let late = cases
            .iter()
            .find(|(_, case)| case.work == Work::Adversarial(Adversarial::LateStart));
        if let Some((_, case)) = late {
            std::thread::sleep(plan::late_start(settings, case, rank));
        }
        let cases_only: Vec<Case> = cases.iter().map(|(_, case)| **case).collect();
        let elements = plan::largest_elements(settings, &cases_only);
        let bytes = region_bytes(elements);
        // 0 for a session of one communicator, 1 and 2 for one of two.
        let first_slot = lanes - 1;
        let lanes = (0..lanes)
            .map(|lane| {
                let stream = machine.stream(rank)?;
                let device = S::Device::open(&stream)?;
                let mut builder = Communicator::builder()
                    .rendezvous(rendezvous(world_size, first_slot + lane)?)
                    .load_policy(machine.load_policy()?)
                    // Half of the largest message, so that calls are split as well.
                    .max_bytes((elements * size_of::<f32>() / 2).max(1024))
                    .setup_timeout(SETUP_TIMEOUT)
                    .timeout(settings.timeout)
                    .start_epochs(settings.start_epochs.0, settings.start_epochs.1)
                    .memory_sharing(settings.sharing());
                // A sanitizer's additions to a kernel take registers, so that fewer blocks fit than the driver says of the kernel.
                if lanes > 1 || settings.grid == GridKind::Sanitizer {
                    builder = builder.max_blocks(FEW_BLOCKS);
                }
                let mut communicator = builder.build(&stream)?;
                machine.require_precompiled(communicator.load_reports())?;
                let symmetric =
                    communicator.symmetric_alloc::<f32>(bytes.div_ceil(size_of::<f32>()))?;
                let mut check = machine.device_check(rank, &stream)?;
                if let Some(check) = &mut check {
                    device_check::prove(check.as_mut(), &device, world_size)
                        .context("the check on the card against peersum::reference")?;
                }
                Ok(Lane {
                    input: Region::new(&device, bytes, settings.sharing())?,
                    output: Region::new(&device, bytes, settings.sharing())?,
                    symmetric,
                    check,
                    communicator,
                    device,
                })
            })
            .collect::<Result<_>>()?;
        Ok(Session {
            settings,
            rank,
            world_size,
            lanes,
            corrupts: false,
        })
    }

    /// Runs one case and tells `emit` how it went.
    pub(crate) fn run_case(
        &mut self,
        index: usize,
        case: &Case,
        emit: &dyn Fn(Event),
    ) -> Result<()> {
        let spent = match case.dtype {
            Dtype::F16 => self.run_typed::<f16>(index, case, emit)?,
            Dtype::Bf16 => self.run_typed::<bf16>(index, case, emit)?,
            Dtype::F32 => self.run_typed::<f32>(index, case, emit)?,
        };
        emit(Event::Ended {
            case: index,
            calls: spent.calls,
            run_seconds: spent.run.as_secs_f64(),
            check_seconds: spent.check.as_secs_f64(),
        });
        Ok(())
    }

    fn run_typed<T: Element>(
        &mut self,
        index: usize,
        case: &Case,
        emit: &dyn Fn(Event),
    ) -> Result<Spent>
    where
        T::Bits: TryFrom<u32>,
    {
        let mut spent = Spent::default();
        let mut graph: Option<Graph<'static, S::Device>> = None;
        let seed = case_seed(self.settings.seed, &case.to_string());
        let keys = |round: u32, layer: usize| -> Vec<Key> {
            (0..self.world_size)
                .map(|rank| Key::new(seed, round, layer as u32, rank))
                .collect()
        };
        let keys: Vec<Vec<Vec<Key>>> = (0..case.rounds)
            .map(|round| (0..LAYERS).map(|layer| keys(round, layer)).collect())
            .collect();
        for round in 0..case.rounds {
            let keys = &keys[round as usize];
            let calls = plan::round_calls(self.settings, case, round);
            let largest = calls.iter().map(|call| call.elements).max().unwrap_or(1);
            let stride = stride(largest, size_of::<T>());

            let began = Instant::now();
            self.prepare::<T>(&calls, stride, keys)?;
            spent.check += began.elapsed();

            let began = Instant::now();
            if matches!(
                case.work,
                Work::Uniform {
                    mode: Mode::Graph,
                    ..
                }
            ) {
                let graph = match &mut graph {
                    Some(graph) => graph,
                    none => none.insert(self.capture::<T>(&calls, stride)?),
                };
                graph.launch(&mut self.lanes[0].communicator)?;
            } else {
                for (layer, call) in calls.iter().enumerate() {
                    let delay = plan::delay(self.settings, case, round, layer, self.rank);
                    if !delay.is_zero() {
                        std::thread::sleep(delay);
                    }
                    self.launch::<T>(call, layer, stride)?;
                }
            }
            spent.calls += calls.len() as u64;

            let wrong = self.compare::<T>(&calls, stride, round, keys, began, &mut spent)?;
            self.report(index, &calls, round, wrong, emit);
        }
        let began = Instant::now();
        let wrong = self.compare_on_device::<T>(case, &keys)?;
        spent.run += began.elapsed();
        for (round, wrong) in wrong {
            let calls = plan::round_calls(self.settings, case, round);
            self.report(index, &calls, round, vec![wrong], emit);
        }
        Ok(spent)
    }

    fn slots(&mut self, lane: usize, stride: usize) -> Slots {
        let Lane {
            device,
            input,
            output,
            symmetric,
            ..
        } = &mut self.lanes[lane];
        Slots {
            input: input.base(device),
            output: output.base(device),
            symmetric: peersum::Output::with_output(
                &mut symmetric.as_view_mut(),
                device.stream(),
                |address| address,
            ),
            stride,
            rank: self.rank,
        }
    }

    /// Poisons what is written and writes what is read, on the stream.
    fn prepare<T: Element>(
        &mut self,
        calls: &[Call],
        stride: usize,
        keys: &[Vec<Key>],
    ) -> Result<()>
    where
        T::Bits: TryFrom<u32>,
    {
        for lane in 0..self.lanes.len() {
            let slots = self.slots(lane, stride);
            let rank = self.rank as usize;
            let lane_calls = || {
                calls
                    .iter()
                    .enumerate()
                    .filter(move |(_, call)| call.lane == lane)
            };
            let Lane { device, check, .. } = &mut self.lanes[lane];
            for place in [Place::Output, Place::Symmetric] {
                if lane_calls().any(|(_, call)| call.source == place || call.target == place) {
                    // SAFETY: the slots of a round lie within the region, which outlives the stream's work.
                    unsafe {
                        device.fill(
                            slots.base(place),
                            u32::from_ne_bytes([POISON; 4]),
                            LAYERS * stride / 4,
                        )?
                    };
                }
            }
            for (layer, call) in lane_calls() {
                let slot = slots.slot(call, call.source, layer, size_of::<T>());
                let key = keys[layer][rank];
                match check {
                    Some(check) => check.generate(T::DTYPE, call.content, key, &slot)?,
                    None => {
                        let values = generator::input::<T>(call.content, key, call.elements);
                        // SAFETY: the slot lies within the region.
                        unsafe { device.write(slot.address(), bytes_of(&values))? };
                    }
                }
            }
        }
        Ok(())
    }

    fn launch<T: Element>(&mut self, call: &Call, layer: usize, stride: usize) -> Result<()> {
        let slots = self.slots(call.lane, stride);
        let source = slots
            .slot(call, call.source, layer, size_of::<T>())
            .address();
        let target = slots
            .slot(call, call.target, layer, size_of::<T>())
            .address();
        let Lane {
            communicator,
            device,
            ..
        } = &mut self.lanes[call.lane];
        communicator.force_plan(call.plan)?;
        // SAFETY: the slot lies within a region that outlives the stream's work, and the buffer is disowned below.
        let mut output = unsafe { device.adopt::<T>(target, call.elements) };
        let launched = if source == target {
            communicator.all_reduce_in_place(&mut output)
        } else {
            // SAFETY: as above.
            let input = unsafe { device.adopt::<T>(source, call.elements) };
            let launched = communicator.all_reduce(&input, &mut output);
            S::Device::disown(input);
            launched
        };
        S::Device::disown(output);
        Ok(launched?)
    }

    fn capture<T: Element>(
        &mut self,
        calls: &[Call],
        stride: usize,
    ) -> Result<Graph<'static, S::Device>> {
        self.lanes[0].communicator.capture_begin()?;
        let mut launched = Ok(());
        for (layer, call) in calls.iter().enumerate() {
            launched = launched.and_then(|()| self.launch::<T>(call, layer, stride));
        }
        // SAFETY: the calls use regions of the lane, which outlives the graph: that lives as long as its case.
        let graph = unsafe { self.lanes[0].communicator.capture_end() };
        launched?;
        Ok(graph?)
    }

    /// Waits for the round and compares its results; where the device compares, enqueues that instead.
    fn compare<T: Element>(
        &mut self,
        calls: &[Call],
        stride: usize,
        round: u32,
        keys: &[Vec<Key>],
        began: Instant,
        spent: &mut Spent,
    ) -> Result<Vec<(usize, Wrong)>>
    where
        T::Bits: TryFrom<u32>,
    {
        let mut waited = false;
        for lane in &mut self.lanes {
            if lane.check.is_none() {
                lane.communicator.synchronize()?;
                waited = true;
            }
        }
        spent.run += began.elapsed();
        let began = Instant::now();
        let mut wrong = Vec::new();
        for (layer, call) in calls.iter().enumerate() {
            let slots = self.slots(call.lane, stride);
            let slot = slots.slot(call, call.target, layer, size_of::<T>());
            let Lane { device, check, .. } = &mut self.lanes[call.lane];
            if let Some(check) = check {
                let place = round as usize * LAYERS + layer;
                check.check(T::DTYPE, call.content, &keys[layer], &slot, place)?;
                continue;
            }
            let expected = generator::expected::<T>(call.content, &keys[layer], call.elements);
            let mut memory = vec![0; slot.guarded_bytes];
            // SAFETY: the slot lies within the region.
            unsafe { device.read(slot.base, &mut memory)? };
            if self.corrupts && (round, layer) == (1, 2) {
                // The second element, as a test asked for.
                memory[slot.start + size_of::<T>()] ^= 1;
            }
            wrong.extend(
                compare(&slot, &memory, bytes_of(&expected), size_of::<T>())
                    .map(|wrong| (layer, wrong)),
            );
        }
        if waited {
            spent.check += began.elapsed();
        } else {
            spent.run += began.elapsed();
        }
        Ok(wrong)
    }

    /// What the device found in all rounds of a case: (round, (layer, what)).
    fn compare_on_device<T: Element>(
        &mut self,
        case: &Case,
        keys: &[Vec<Vec<Key>>],
    ) -> Result<Vec<(u32, (usize, Wrong))>>
    where
        T::Bits: TryFrom<u32>,
    {
        let mut all = Vec::new();
        for lane in 0..self.lanes.len() {
            if self.lanes[lane].check.is_none() {
                continue;
            }
            self.lanes[lane].communicator.synchronize()?;
            let Some(check) = &mut self.lanes[lane].check else {
                continue;
            };
            for (place, found) in check.take(case.rounds as usize * LAYERS)? {
                let (round, layer) = ((place / LAYERS) as u32, place % LAYERS);
                let calls = plan::round_calls(self.settings, case, round);
                let Some(call) = calls.get(layer) else {
                    bail!(
                        "the check on the card names call {layer} of {}",
                        calls.len()
                    );
                };
                let expected = |index| {
                    let bits = generator::expected_at::<T>(
                        call.content,
                        &keys[round as usize][layer],
                        index,
                    );
                    bytes_of(&[bits])
                        .iter()
                        .rev()
                        .fold(0, |bits, byte| bits << 8 | u32::from(*byte))
                };
                all.push((round, (layer, found.with_expected(expected))));
            }
        }
        Ok(all)
    }

    fn report(
        &self,
        index: usize,
        calls: &[Call],
        round: u32,
        wrong: Vec<(usize, Wrong)>,
        emit: &dyn Fn(Event),
    ) {
        for (layer, wrong) in wrong {
            let Some(call) = calls.get(layer) else {
                continue;
            };
            emit(Event::Mismatch(Mismatch {
                case: index,
                rank: self.rank,
                round,
                layer: layer as u32,
                algorithm: call
                    .plan
                    .map_or("table", |plan| plan.route.name())
                    .to_owned(),
                elements: call.elements,
                wrong,
            }));
        }
    }
}
