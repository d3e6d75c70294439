//! One rank of one group: its communicators and memory, and how a case is run on them.

use std::time::Instant;

use anyhow::Result;
use peersum::device::Device;
use peersum::{Graph, Rendezvous};

use super::case::{Case, GroupKind, Room};
use super::event::{Event, Spent};
use super::lane::{Lane, Round};
use super::settings::Settings;
use crate::machine::{DeviceOf, Machine};

/// One rank of a group, for cases of its kind and world size.
pub(crate) struct Session<D: Device> {
    /// The seed may change between cases.
    pub(crate) settings: Settings,
    rank: u32,
    kind: GroupKind,
    lanes: Vec<Lane<D>>,
    /// Whether a test asked for a wrong result in this case.
    pub(crate) corrupts: bool,
}

impl<D: Device> Session<D> {
    /// Joins the group of `cases` and allocates what the largest of them needs.
    pub(crate) fn new<M: Machine>(
        machine: &M,
        settings: &Settings,
        cases: &[&Case],
        rank: u32,
        join: &mut dyn FnMut(u32, usize) -> Result<Rendezvous>,
    ) -> Result<Session<DeviceOf<M>>> {
        let (kind, world_size) = (cases[0].kind, cases[0].world_size);
        let late = cases.iter().map(|case| case.late_start(settings, rank));
        std::thread::sleep(late.max().unwrap_or_default());
        let rooms = cases.iter().map(|case| case.room);
        let room = rooms.fold(cases[0].room, Room::max);
        let lane = |lane| {
            let rendezvous = join(world_size, kind.slot() + lane)?;
            Lane::<D>::new(machine, settings, rendezvous, kind, room)
        };
        Ok(Session {
            settings: settings.clone(),
            rank,
            kind,
            lanes: (0..kind.lanes()).map(lane).collect::<Result<_>>()?,
            corrupts: false,
        })
    }

    /// Runs one case and tells `emit` how it went. `meet` waits for the other ranks of this
    /// process.
    pub(crate) fn run_case(
        &mut self,
        index: usize,
        case: &Case,
        meet: &dyn Fn(),
        emit: &dyn Fn(Event),
    ) -> Result<()> {
        let (rank, seed) = (self.rank, self.settings.seed);
        let Case {
            name, world_size, ..
        } = case;
        let mismatch = |wrong: String| Event::Mismatch {
            case: index,
            text: format!("mismatch on rank {rank} of {world_size}: {name}, {wrong}; seed {seed}"),
        };
        let mut spent = Spent::default();
        let mut graph = None;
        for number in 0..case.rounds {
            let began = Instant::now();
            let round = Round::new(number, case.calls(&self.settings, rank, number));
            for (index, lane) in self.lanes.iter_mut().enumerate() {
                lane.prepare(&round, index)?;
            }
            spent.check += began.elapsed().as_secs_f64();

            let began = Instant::now();
            self.launch(case, &round, &mut graph, meet)?;
            spent.calls += round.calls.len() as u64;
            for lane in self.lanes.iter_mut().filter(|lane| !lane.checks_itself()) {
                lane.communicator.synchronize()?;
            }
            spent.run += began.elapsed().as_secs_f64();

            let began = Instant::now();
            for (layer, call) in round.calls.iter().enumerate() {
                // In round 1, layer 2, if there is one.
                let place = ((case.rounds - 1).min(1), (round.calls.len() - 1).min(2));
                let corrupts = self.corrupts && (number, layer) == place;
                for wrong in self.lanes[call.lane].compare(&round, layer, corrupts)? {
                    emit(mismatch(wrong));
                }
            }
            spent.check += began.elapsed().as_secs_f64();
        }
        let began = Instant::now();
        for lane in &mut self.lanes {
            for wrong in lane.take()? {
                emit(mismatch(wrong));
            }
        }
        spent.run += began.elapsed().as_secs_f64();
        if graph.is_some() {
            self.meet(meet);
        }
        emit(Event::Ended { case: index, spent });
        Ok(())
    }
    /// Makes the calls of a round, or launches the graph of them.
    fn launch(
        &mut self,
        case: &Case,
        round: &Round,
        graph: &mut Option<Graph<'static, D>>,
        meet: &dyn Fn(),
    ) -> Result<()> {
        if !case.is_captured {
            for (layer, call) in round.calls.iter().enumerate() {
                if !call.delay.is_zero() {
                    std::thread::sleep(call.delay);
                }
                self.lanes[call.lane].launch(round, layer)?;
            }
            return Ok(());
        }
        let graph = match graph {
            Some(graph) => graph,
            none => {
                let graph = none.insert(self.lanes[0].capture(round)?);
                self.meet(meet);
                graph
            }
        };
        Ok(graph.launch(&mut self.lanes[0].communicator)?)
    }

    /// The driver may wait for the device while it makes a graph or frees one, and so for kernels
    /// of other ranks of this process on the same device, which wait for this rank.
    fn meet(&self, meet: &dyn Fn()) {
        if !self.kind.is_sum() {
            meet();
        }
    }
}
