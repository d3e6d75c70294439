//! All-gathers, reduce-scatters and broadcasts of one rank: arrays, and what they must hold.

use std::fmt;

use anyhow::{Result, ensure};
use half::bf16;
use peersum::device::Device;
use peersum::{Communicator, Error, Operation, reference};
use serde::{Deserialize, Serialize};

use crate::data::{self, Content, Key};
use crate::memory::{POISON, TestBuffer};
use crate::norm_sides::{NAN, Outcome};

/// A call that is no all-reduce.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Collective {
    AllGather,
    ReduceScatter,
    Broadcast { root: u32 },
}

impl Collective {
    /// One of them at random.
    pub(crate) fn any(rng: &mut fastrand::Rng, world_size: u32) -> Collective {
        let root = rng.u32(..world_size);
        match rng.u8(..3) {
            0 => Collective::AllGather,
            1 => Collective::ReduceScatter,
            _ => Collective::Broadcast { root },
        }
    }

    /// The same among fewer ranks.
    fn of(self, world_size: u32) -> Collective {
        match self {
            Collective::Broadcast { root } => Collective::Broadcast {
                root: root % world_size,
            },
            other => other,
        }
    }

    pub(crate) fn operation(self) -> Operation {
        match self {
            Collective::AllGather => Operation::AllGather,
            Collective::ReduceScatter => Operation::ReduceScatter,
            Collective::Broadcast { root } => Operation::Broadcast { root },
        }
    }
}

impl fmt::Display for Collective {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.operation())
    }
}

/// An element of an output to which nothing was moved.
const ONES: u16 = 0xFFFF;
/// Elements of a unit.
const UNIT: usize = 8;

/// The arrays of one rank's call, which may be made any number of times.
pub(crate) struct CollectiveCall<D: Device> {
    device: D,
    kind: Collective,
    rank: u32,
    input: TestBuffer<D>,
    /// Of a broadcast its only array.
    output: TestBuffer<D>,
    own: Vec<bf16>,
    expected: Vec<bf16>,
    /// Whether a test asked for a wrong result.
    pub(crate) corrupts: bool,
}

impl<D: Device> CollectiveCall<D> {
    /// A rank's message has `elements` elements, or its chunk. A root that the group does not have
    /// stands for another. All ranks must pass the same arguments.
    pub(crate) fn new(
        communicator: &Communicator<D>,
        kind: Collective,
        seed: u64,
        elements: usize,
    ) -> Result<Self> {
        let device = D::open(communicator.stream())?;
        let (rank, world_size) = (communicator.rank(), communicator.world_size());
        let kind = kind.of(world_size);
        let all = elements * world_size as usize;
        let inputs: Vec<Vec<bf16>> = Key::of_all(seed, world_size)
            .into_iter()
            .map(|key| match kind {
                Collective::ReduceScatter => data::input(Content::Ordinary, key, all),
                _ => moved_input(key, elements),
            })
            .collect();
        let slices: Vec<&[bf16]> = inputs.iter().map(Vec::as_slice).collect();
        let expected = match kind {
            Collective::AllGather => reference::all_gather(&slices),
            Collective::ReduceScatter => reference::reduce_scatter(&slices, rank as usize),
            Collective::Broadcast { root } => reference::broadcast(&slices, root as usize),
        };
        let own = inputs[rank as usize].clone();
        let call = CollectiveCall {
            input: TestBuffer::new::<bf16>(&device, own.len())?,
            output: TestBuffer::new::<bf16>(&device, expected.len())?,
            device,
            kind,
            rank,
            own,
            expected,
            corrupts: false,
        };
        call.input.write(&call.device, &call.own)?;
        call.prepare()?;
        Ok(call)
    }

    /// Poisons what the next call writes, and writes what it reads.
    pub(crate) fn prepare(&self) -> Result<()> {
        self.output.poison(&self.device)?;
        match self.kind {
            Collective::Broadcast { .. } => self.output.write(&self.device, &self.own),
            _ => Ok(()),
        }
    }

    pub(crate) fn call(&self, communicator: &mut Communicator<D>) -> Result<(), Error> {
        let device = &self.device;
        self.output.with::<bf16, _, _>(device, |output| {
            if let Collective::Broadcast { root } = self.kind {
                return communicator.broadcast(output, root);
            }
            self.input
                .with::<bf16, _, _>(device, |input| match self.kind {
                    Collective::AllGather => communicator.all_gather(&*input, output),
                    _ => communicator.reduce_scatter(&*input, output),
                })
        })
    }

    fn is_root(&self) -> bool {
        self.kind == Collective::Broadcast { root: self.rank }
    }

    /// An element of an output that has not received anything.
    fn lost(&self) -> u16 {
        match self.kind {
            Collective::ReduceScatter => NAN,
            _ => ONES,
        }
    }

    /// Fails unless `is_right(index, found, expected)` for each element of the output. `demand`
    /// says what that is.
    fn check_each(&self, demand: &str, is_right: impl Fn(usize, u16, u16) -> bool) -> Result<()> {
        let (mut found, intact) = self.output.read::<bf16>(&self.device)?;
        ensure!(intact, "memory beside the output was written");
        if self.corrupts {
            found[0] = bf16::from_bits(found[0].to_bits() ^ 1);
        }
        for (index, (found, expected)) in found.iter().zip(&self.expected).enumerate() {
            let (found, expected) = (found.to_bits(), expected.to_bits());
            ensure!(
                is_right(index, found, expected),
                "{}: element {index} is {found:#06x}, the reference {expected:#06x} ({demand})",
                self.kind
            );
        }
        Ok(())
    }

    /// Right if the call succeeded, right or lost if it failed, the old contents if it was refused.
    pub(crate) fn check(&self, outcome: Outcome) -> Result<()> {
        let lost = self.lost();
        let demand = format!("{outcome:?}");
        self.check_each(&demand, |index, found, expected| {
            match (outcome, self.kind) {
                (Outcome::Succeeded, _) => found == expected,
                (Outcome::Failed, _) => found == expected || (found == lost && !self.is_root()),
                (Outcome::Refused, Collective::Broadcast { .. }) => {
                    found == self.own[index].to_bits()
                }
                (Outcome::Refused, _) => found == u16::from_ne_bytes([POISON; 2]),
            }
        })
    }

    /// Fails unless the output is lost for want of a rank: all of an all-gather and of a
    /// reduce-scatter. Of a broadcast the root keeps what it has, and others may have received all
    /// but the first unit.
    pub(crate) fn ensure_lost(&self) -> Result<()> {
        let (lost, is_root) = (self.lost(), self.is_root());
        let is_broadcast = matches!(self.kind, Collective::Broadcast { .. });
        self.check_each("must be lost", |index, found, expected| match is_root {
            true => found == expected,
            false => found == lost || (is_broadcast && index >= UNIT && found == expected),
        })
    }
}

/// Any bits, with runs of the marks of empty slots and of escaped units.
pub(crate) fn moved_input(key: Key, elements: usize) -> Vec<bf16> {
    let bytes = data::moved(key.with_runs_of_marks(), 2 * elements);
    let values = bytes.chunks_exact(2);
    values
        .map(|value| bf16::from_ne_bytes([value[0], value[1]]))
        .collect()
}
