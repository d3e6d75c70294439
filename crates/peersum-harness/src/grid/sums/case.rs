//! The configurations of all-reduces: what they are, and their names.

use std::fmt;

use clap::ValueEnum;
use peersum::dispatch::Route;
use peersum_artifact::Dtype;

use super::super::case::Mode;
use crate::call::Variant;
use crate::names::name_of;

/// Cases that aim at the weak points of the protocols.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, ValueEnum)]
#[value(rename_all = "snake_case")]
pub(crate) enum Adversarial {
    /// Each rank sleeps for a random time before every call.
    Delays,
    /// The ranks start at different times.
    LateStart,
    /// A new size in every call; the dispatch table chooses the plan.
    Sizes,
    /// A new algorithm in every call.
    Mixed,
    /// A new launch shape in every call.
    Grids,
    /// Two communicators on two streams, called in turn.
    TwoCommunicators,
}

/// What the ranks do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Work {
    /// The same call, `LAYERS` times a round.
    Uniform {
        route: Route,
        elements: usize,
        mode: Mode,
        variant: Variant,
    },
    /// Calls that differ.
    Adversarial(Adversarial),
}

/// One configuration of all-reduces.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct SumCase {
    pub(crate) world_size: u32,
    pub(crate) dtype: Dtype,
    pub(crate) work: Work,
    /// Rounds of fresh data, each `LAYERS` calls.
    pub(crate) rounds: u32,
}

impl SumCase {
    /// The configurations that share a line in the output.
    pub(super) fn group(&self) -> String {
        let kind = match self.work {
            Work::Uniform { route, .. } => route.name(),
            Work::Adversarial(_) => "adversarial",
        };
        format!("ws{}/{}/{kind}", self.world_size, self.dtype)
    }
}

/// `ws4/bf16/push_one_shot/1040/eager/aligned`, or `ws4/bf16/adversarial/delays`.
impl fmt::Display for SumCase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/", self.group())?;
        match self.work {
            Work::Uniform {
                elements,
                mode,
                variant,
                ..
            } => write!(f, "{elements}/{}/{}", name_of(&mode), name_of(&variant)),
            Work::Adversarial(kind) => f.write_str(&name_of(&kind)),
        }
    }
}
