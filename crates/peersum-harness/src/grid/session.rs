//! One rank of one group: its communicators and memory, and how a case is run on them.

use std::time::Instant;

use anyhow::{Context, Result, ensure};
use peersum::Rendezvous;
use peersum::device::{Device, DeviceStream};
use peersum::loader::Place;

use super::calls::{LAYERS, delay, late_start, round_calls, stride};
use super::case::{Adversarial, Case, Mode, Work};
use super::device_check;
use super::event::{Event, Spent};
use super::lane::{self, Array, ArrayOfCase, Lane, Round, region_bytes};
use super::plan;
use super::settings::{GridKind, Settings};
use super::slot::{Wrong, number_of};
use crate::data::{self, Key, TestElement, bytes_of, case_seed, with_element};
use crate::machine::{DeviceOf, Machine};
use crate::memory::Guarded;
use crate::names::name_of;

/// The largest grid of each of two communicators that share the devices, and under a sanitizer.
const FEW_BLOCKS: u32 = 8;

/// One rank of a group, for all cases of its world size.
pub(crate) struct Session<S: DeviceStream> {
    /// The seed may change between cases.
    pub(crate) settings: Settings,
    rank: u32,
    lanes: Vec<Lane<S::Device>>,
    /// Whether a test asked for a wrong result in this case.
    pub(crate) corrupts: bool,
}

impl<S: DeviceStream> Session<S> {
    /// Joins the group and allocates what the largest of `cases` needs.
    pub(crate) fn new<M: Machine<Stream = S>>(
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
            lanes,
            corrupts: false,
        })
    }

    /// Runs one case and tells `emit` how it went.
    pub(crate) fn run_case(&mut self, case: usize, its: &Case, emit: &dyn Fn(Event)) -> Result<()> {
        let spent = with_element!(its.dtype, T => self.run_typed::<T>(case, its, emit)?);
        emit(Event::Ended { case, spent });
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
        let keys = keys(self.settings.seed, case);
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
            spent.check += began.elapsed().as_secs_f64();

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
            // The results of a device that compares them itself are waited for once, at the end.
            for lane in self.lanes.iter_mut().filter(|lane| lane.check.is_none()) {
                lane.communicator.synchronize()?;
            }
            spent.run += began.elapsed().as_secs_f64();

            let began = Instant::now();
            for (layer, call) in calls.iter().enumerate() {
                let corrupts = self.corrupts && (number, layer) == (1, 2);
                let lane = &mut self.lanes[call.lane];
                let found = lane.compare::<T>(&round, layer, corrupts)?;
                for (array, wrong) in found {
                    let place = (number, layer, array);
                    emit(self.mismatch(index, case, place, wrong));
                }
            }
            spent.check += began.elapsed().as_secs_f64();
        }
        let began = Instant::now();
        for (place, wrong) in self.take_from_devices::<T>(case, &keys)? {
            emit(self.mismatch(index, case, place, wrong));
        }
        spent.run += began.elapsed().as_secs_f64();
        Ok(spent)
    }

    /// What the devices have found in all rounds of a case, by round, call and array.
    fn take_from_devices<T: TestElement>(
        &mut self,
        case: &Case,
        keys: &[Vec<Vec<Key>>],
    ) -> Result<Vec<(ArrayOfCase, Wrong)>> {
        let settings = &self.settings;
        let rank = self.rank as usize;
        let expected = |place: usize, index| {
            let (round, layer, array) = lane::at_place(place);
            let content = round_calls(settings, case, round)[layer].content;
            let keys = &keys[round as usize][layer];
            let element = data::expected_at::<T>(content, array.keys(keys, rank), index);
            number_of(bytes_of(&[element]))
        };
        let mut all = Vec::new();
        for lane in &mut self.lanes {
            if let Some(check) = &mut lane.check {
                lane.communicator.synchronize()?;
                let found = check.take(lane::places(case.rounds), expected)?;
                let found = found.into_iter();
                all.extend(found.map(|(place, wrong)| (lane::at_place(place), wrong)));
            }
        }
        Ok(all)
    }

    /// An array that does not hold what it must after a call, named by round, layer and which it
    /// is. `case` is the place in the plan of `its`.
    fn mismatch(
        &self,
        case: usize,
        its: &Case,
        (round, layer, array): ArrayOfCase,
        wrong: Wrong,
    ) -> Event {
        let call = round_calls(&self.settings, its, round)[layer];
        let mode = match its.work {
            Work::Uniform { mode, variant, .. } => {
                format!("{}, {}", name_of(&mode), name_of(&variant))
            }
            Work::Adversarial(kind) => format!("eager, adversarial {}", name_of(&kind)),
        };
        let text = format!(
            "mismatch on rank {} of {}: {} {}, {} elements, {mode}, round {round}, layer {layer}: \
             {}{wrong}; seed {}",
            self.rank,
            its.world_size,
            call.plan.map_or("table", |plan| plan.route.name()),
            its.dtype,
            call.elements,
            if array == Array::Input { "input, " } else { "" },
            self.settings.seed
        );
        Event::Mismatch { case, text }
    }
}

/// The keys of all ranks' arrays, by round and call.
fn keys(seed: u64, case: &Case) -> Vec<Vec<Vec<Key>>> {
    let seed = case_seed(seed, &case.to_string());
    let of_call = |round, layer| -> Vec<Key> {
        let ranks = 0..case.world_size;
        ranks
            .map(|rank| Key::new(seed, round, layer, rank))
            .collect()
    };
    let layers = 0..LAYERS as u32;
    let of_round = |round| layers.clone().map(|layer| of_call(round, layer)).collect();
    (0..case.rounds).map(of_round).collect()
}

/// Joins one of a session's groups.
fn new_lane<M: Machine>(
    machine: &M,
    settings: &Settings,
    rendezvous: Rendezvous,
    elements: usize,
    few_blocks: bool,
) -> Result<Lane<DeviceOf<M>>> {
    let (rank, world_size) = (rendezvous.rank(), rendezvous.world_size());
    let stream = machine.stream(rank)?;
    let device = DeviceOf::<M>::open(&stream)?;
    let (bytes, sharing) = (region_bytes(elements), settings.sharing());
    let mut builder = settings
        .builder(rendezvous)?
        // Half of the largest message, so that split calls are tested too.
        .max_bytes((elements * size_of::<f32>() / 2).max(1024));
    if few_blocks {
        builder = builder.max_blocks(FEW_BLOCKS);
    }
    let mut communicator = builder.build(&stream)?;
    for report in communicator.load_reports() {
        let is_compiled = matches!(
            report.place,
            Place::Directory(_) | Place::EnvDirectory(_) | Place::Pack
        );
        ensure!(is_compiled, "{report}: a rank must compile nothing");
    }
    let symmetric = communicator.symmetric_alloc::<f32>(bytes.div_ceil(size_of::<f32>()))?;
    let mut check = machine.device_check(rank, &stream)?;
    if let Some(check) = &mut check {
        // Of the sum, and of an input.
        for ranks in [world_size, 1] {
            device_check::prove(check, &device, ranks)
                .context("the check on the GPU against peersum::reference")?;
        }
    }
    Ok(Lane {
        input: Guarded::new(&device, bytes, sharing)?,
        output: Guarded::new(&device, bytes, sharing)?,
        symmetric,
        check,
        communicator,
        device,
    })
}
