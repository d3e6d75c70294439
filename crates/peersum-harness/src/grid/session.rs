//! One rank of one group: its communicators and memory, and how a case is run on them.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use peersum::device::{Device, DeviceStream};
use peersum::{Communicator, Rendezvous};

use super::calls::{Call, LAYERS, delay, late_start, round_calls};
use super::case::{Adversarial, Case, Mode, Work};
use super::device_check;
use super::event::{Event, Mismatch, Wrong};
use super::lane::{Lane, Round};
use super::machine::{GridMachine, load_policy, require_precompiled};
use super::memory::{number_of, region_bytes, stride};
use super::plan;
use super::settings::{GridKind, Settings};
use crate::data::{self, Key, TestElement, bytes_of, case_seed, with_element};
use crate::memory::Guarded;

/// Maximum time that ranks wait for each other in set-up. It can be long because the runner watches
/// the ranks, and must be long because ranks of larger groups wait here while the smaller groups
/// run.
const SETUP_TIMEOUT: Duration = Duration::from_secs(3600);

/// The largest grid of each of two communicators that share the devices, and under a sanitizer.
const FEW_BLOCKS: u32 = 8;

/// One rank of a group, for all cases of its world size.
pub(crate) struct Session<S: DeviceStream> {
    /// The seed may change between cases.
    pub(crate) settings: Settings,
    rank: u32,
    world_size: u32,
    lanes: Vec<Lane<S::Device>>,
    /// Whether a test asked for a wrong result in this case.
    pub(crate) corrupts: bool,
}

/// The calls of a case, and the time that they took.
#[derive(Default)]
struct Spent {
    calls: u64,
    run: Duration,
    check: Duration,
}

impl<S: DeviceStream> Session<S> {
    /// Joins the group and allocates what the largest of `cases` needs.
    pub(crate) fn new<M: GridMachine<Stream = S>>(
        machine: &M,
        settings: &Settings,
        cases: &[&Case],
        rank: u32,
        lanes: usize,
        rendezvous: &mut dyn FnMut(u32, usize) -> Result<Rendezvous>,
    ) -> Result<Self> {
        let world_size = cases.first().context("a group without cases")?.world_size;
        let is_late = |case: &&&Case| case.work == Work::Adversarial(Adversarial::LateStart);
        if let Some(case) = cases.iter().find(is_late) {
            std::thread::sleep(late_start(settings, case, rank));
        }
        let elements = plan::largest_elements(settings, cases);
        // 0 for a session of one communicator, 1 and 2 for one of two.
        let first_slot = lanes - 1;
        // The code that a sanitizer adds to a kernel needs registers, so fewer blocks fit than the
        // driver reports.
        let few_blocks = lanes > 1 || settings.grid == GridKind::Sanitizer;
        let lanes = (0..lanes)
            .map(|lane| {
                let rendezvous = rendezvous(world_size, first_slot + lane)?;
                new_lane(machine, settings, rendezvous, elements, few_blocks)
            })
            .collect::<Result<_>>()?;
        Ok(Session {
            settings: settings.clone(),
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
        let spent = with_element!(case.dtype, T => self.run_typed::<T>(index, case, emit)?);
        emit(Event::Ended {
            case: index,
            calls: spent.calls,
            run_seconds: spent.run.as_secs_f64(),
            check_seconds: spent.check.as_secs_f64(),
        });
        Ok(())
    }

    fn run_typed<T: TestElement>(
        &mut self,
        index: usize,
        case: &Case,
        emit: &dyn Fn(Event),
    ) -> Result<Spent> {
        let mut spent = Spent::default();
        let mut graph = None;
        let keys = self.keys(case);
        let in_graph = matches!(case.work, Work::Uniform { mode, .. } if mode == Mode::Graph);
        for (number, keys) in (0..case.rounds).zip(&keys) {
            let calls = round_calls(&self.settings, case, number);
            let largest = calls.iter().map(|call| call.elements).max().unwrap_or(1);
            let round = Round {
                number,
                calls: &calls,
                stride: stride(largest, size_of::<T>()),
                keys,
            };

            let began = Instant::now();
            for (index, lane) in self.lanes.iter_mut().enumerate() {
                let layers = 0..calls.len();
                let own: Vec<usize> = layers.filter(|&layer| calls[layer].lane == index).collect();
                lane.prepare::<T>(&round, &own)?;
            }
            spent.check += began.elapsed();

            let began = Instant::now();
            if in_graph {
                let lane = &mut self.lanes[0];
                let graph = match &mut graph {
                    Some(graph) => graph,
                    none => none.insert(lane.capture::<T>(&round)?),
                };
                graph.launch(&mut lane.communicator)?;
            } else {
                for (layer, call) in calls.iter().enumerate() {
                    let delay = delay(&self.settings, case, number, layer, self.rank);
                    if !delay.is_zero() {
                        std::thread::sleep(delay);
                    }
                    self.lanes[call.lane].launch::<T>(&round, layer)?;
                }
            }
            spent.calls += calls.len() as u64;
            for (layer, wrong) in self.compare::<T>(&round, began, &mut spent)? {
                self.report(index, number, layer, &calls[layer], wrong, emit);
            }
        }
        let began = Instant::now();
        for (place, wrong) in self.take_from_devices::<T>(case, &keys)? {
            let (number, layer) = ((place / LAYERS) as u32, place % LAYERS);
            let calls = round_calls(&self.settings, case, number);
            self.report(index, number, layer, &calls[layer], wrong, emit);
        }
        spent.run += began.elapsed();
        Ok(spent)
    }

    /// The keys of all ranks' arrays, by round and call.
    fn keys(&self, case: &Case) -> Vec<Vec<Vec<Key>>> {
        let seed = case_seed(self.settings.seed, &case.to_string());
        let of_call = |round, layer| -> Vec<Key> {
            let ranks = 0..self.world_size;
            ranks
                .map(|rank| Key::new(seed, round, layer, rank))
                .collect()
        };
        let of_round = |round| {
            (0..LAYERS as u32)
                .map(|layer| of_call(round, layer))
                .collect()
        };
        (0..case.rounds).map(of_round).collect()
    }

    /// Waits for the round and compares its results, or enqueues the comparison on devices that do
    /// it themselves.
    fn compare<T: TestElement>(
        &mut self,
        round: &Round<'_>,
        began: Instant,
        spent: &mut Spent,
    ) -> Result<Vec<(usize, Wrong)>> {
        let mut waited = false;
        for lane in self.lanes.iter_mut().filter(|lane| lane.check.is_none()) {
            lane.communicator.synchronize()?;
            waited = true;
        }
        spent.run += began.elapsed();
        let began = Instant::now();
        let mut all = Vec::new();
        for (layer, call) in round.calls.iter().enumerate() {
            let lane = &mut self.lanes[call.lane];
            if lane.check.is_some() {
                lane.compare_on_device::<T>(round, layer)?;
                continue;
            }
            let corrupts = self.corrupts && (round.number, layer) == (1, 2);
            let wrong = lane.compare::<T>(round, layer, corrupts)?;
            all.extend(wrong.map(|wrong| (layer, wrong)));
        }
        let time = if waited {
            &mut spent.check
        } else {
            &mut spent.run
        };
        *time += began.elapsed();
        Ok(all)
    }

    /// What the devices have found in all rounds of a case, by round and call.
    fn take_from_devices<T: TestElement>(
        &mut self,
        case: &Case,
        keys: &[Vec<Vec<Key>>],
    ) -> Result<Vec<(usize, Wrong)>> {
        let settings = &self.settings;
        let expected = |place: usize, index| {
            let (round, layer) = (place / LAYERS, place % LAYERS);
            let content = round_calls(settings, case, round as u32)[layer].content;
            let element = data::expected_at::<T>(content, &keys[round][layer], index);
            number_of(bytes_of(&[element]))
        };
        let mut all = Vec::new();
        for lane in &mut self.lanes {
            if let Some(check) = &mut lane.check {
                lane.communicator.synchronize()?;
                all.extend(check.take(case.rounds as usize * LAYERS, expected)?);
            }
        }
        Ok(all)
    }

    fn report(
        &self,
        case: usize,
        round: u32,
        layer: usize,
        call: &Call,
        wrong: Wrong,
        emit: &dyn Fn(Event),
    ) {
        let algorithm = call.plan.map_or("table", |plan| plan.route.name());
        emit(Event::Mismatch(Mismatch {
            case,
            rank: self.rank,
            round,
            layer: layer as u32,
            algorithm: algorithm.to_owned(),
            elements: call.elements,
            wrong,
        }));
    }
}

/// Joins one of a session's groups.
fn new_lane<M: GridMachine>(
    machine: &M,
    settings: &Settings,
    rendezvous: Rendezvous,
    elements: usize,
    few_blocks: bool,
) -> Result<Lane<<M::Stream as DeviceStream>::Device>> {
    let (rank, world_size) = (rendezvous.rank(), rendezvous.world_size());
    let stream = machine.stream(rank)?;
    let device = <M::Stream as DeviceStream>::Device::open(&stream)?;
    let bytes = region_bytes(elements);
    let mut builder = Communicator::builder()
        .rendezvous(rendezvous)
        .load_policy(load_policy()?)
        // Half of the largest message, so that split calls are tested too.
        .max_bytes((elements * size_of::<f32>() / 2).max(1024))
        .setup_timeout(SETUP_TIMEOUT)
        .timeout(settings.timeout)
        .start_epochs(settings.start_epochs.0, settings.start_epochs.1)
        .memory_sharing(settings.sharing());
    if few_blocks {
        builder = builder.max_blocks(FEW_BLOCKS);
    }
    let mut communicator = builder.build(&stream)?;
    require_precompiled(communicator.load_reports())?;
    let symmetric = communicator.symmetric_alloc::<f32>(bytes.div_ceil(size_of::<f32>()))?;
    let mut check = machine.device_check(rank, &stream)?;
    if let Some(check) = &mut check {
        device_check::prove(check, &device, world_size)
            .context("the check on the GPU against peersum::reference")?;
    }
    Ok(Lane {
        input: Guarded::new(&device, bytes, settings.sharing())?,
        output: Guarded::new(&device, bytes, settings.sharing())?,
        symmetric,
        check,
        communicator,
        device,
    })
}
