//! One rank's calls of any operation, and what they must give.

use std::fmt;

use anyhow::{Context, Result};
use peersum::device::Device;
use peersum::{Communicator, Error};
use serde::{Deserialize, Serialize};

use crate::collective::{Collective, CollectiveCall};
use crate::norm_output::NormOutput;
use crate::norm_sides::{NormKind, Outcome};
use crate::sum_call::SumCall;

/// What calls do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) enum What {
    AllReduce,
    /// With RMSNorm that writes this.
    Norm(NormOutput),
    Other(Collective),
}

impl What {
    /// Everything, with broadcasts from the first of three ranks and from the last.
    pub(crate) const ALL: [What; 8] = [
        What::AllReduce,
        What::Norm(NormOutput::Same),
        What::Norm(NormOutput::Fp8Static),
        What::Norm(NormOutput::Fp8PerToken),
        What::Other(Collective::AllGather),
        What::Other(Collective::ReduceScatter),
        What::Other(Collective::Broadcast { root: 0 }),
        What::Other(Collective::Broadcast { root: 2 }),
    ];
}

impl fmt::Display for What {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            What::AllReduce => f.write_str("all_reduce"),
            What::Norm(NormOutput::Same) => f.write_str("all_reduce with RMSNorm"),
            What::Norm(output) => write!(f, "all_reduce with RMSNorm, {output}"),
            What::Other(collective) => write!(f, "{collective}"),
        }
    }
}

/// A rank's calls of one kind, with their arrays.
pub(crate) enum Calls<D: Device> {
    Sum(Box<SumCall<D>>),
    Other(CollectiveCall<D>),
}

impl<D: Device> Calls<D> {
    /// Calls of so many elements, of each rank if it has chunks. With RMSNorm a row has `hidden`
    /// elements. All ranks must pass the same arguments.
    pub(crate) fn new(
        communicator: &Communicator<D>,
        what: What,
        seed: u64,
        elements: usize,
        hidden: usize,
    ) -> Result<Self> {
        let norm = match what {
            What::Other(kind) => {
                let call = CollectiveCall::new(communicator, kind, seed, elements)?;
                return Ok(Calls::Other(call));
            }
            What::AllReduce => None,
            What::Norm(output) => Some(NormKind {
                seed,
                hidden,
                adds: false,
                output,
            }),
        };
        let call = SumCall::new(communicator, norm, seed, elements, None)?;
        Ok(Calls::Sum(Box::new(call)))
    }

    /// Whether the result of a call replaces its input. Such a call has to be prepared each time.
    pub(crate) fn is_in_place(&self) -> bool {
        match self {
            Calls::Sum(call) => call.is_in_place(),
            Calls::Other(_) => false,
        }
    }

    /// Makes results wrong before they are checked, for a test.
    pub(crate) fn corrupt(&mut self, corrupts: bool) {
        match self {
            Calls::Sum(call) => call.corrupts = corrupts,
            Calls::Other(call) => call.corrupts = corrupts,
        }
    }

    /// Poisons what the next call writes, and writes what it reads.
    pub(crate) fn prepare(&self) -> Result<()> {
        match self {
            Calls::Sum(call) => call.prepare(),
            Calls::Other(call) => call.prepare(),
        }
    }

    pub(crate) fn call(&self, communicator: &mut Communicator<D>) -> Result<(), Error> {
        match self {
            Calls::Sum(call) => call.call(communicator),
            Calls::Other(call) => call.call(communicator),
        }
    }

    /// Checks the result: right if the calls succeeded, right or lost if they failed, the old
    /// contents if nothing was launched.
    pub(crate) fn check(&self, outcome: Outcome) -> Result<()> {
        match self {
            Calls::Sum(call) => call.check(outcome),
            Calls::Other(call) => call.check(outcome),
        }
    }

    pub(crate) fn ensure_result(&self) -> Result<()> {
        self.check(Outcome::Succeeded)
    }

    /// Fails unless everything is lost that a call writes, as after one in which a rank had no
    /// part: NaN, or ones in all bits.
    pub(crate) fn ensure_lost(&self) -> Result<()> {
        let lost = match self {
            Calls::Sum(call) => call.ensure_lost(),
            Calls::Other(call) => call.ensure_lost(),
        };
        lost.context("an output that was not reduced")
    }

    /// Fails unless everything is as [`Calls::prepare`] has left it.
    pub(crate) fn ensure_untouched(&self) -> Result<()> {
        let untouched = self.check(Outcome::Refused);
        untouched.context("the output of a refused call")
    }
}
