//! One configuration of the grid: what it is, its name, and what a filter selects.

use std::fmt;

use clap::ValueEnum;
use fastrand::Rng;
use peersum::dispatch::Route;
use peersum_artifact::Dtype;

use crate::names::name_of;
use crate::operation::Operation;

/// How the calls of a round are launched.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, ValueEnum)]
#[value(rename_all = "snake_case")]
pub(crate) enum Mode {
    /// One launch a call.
    Eager,
    /// Captured once, replayed in every round.
    Graph,
}

/// Where the arrays of a call lie and what they hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, ValueEnum)]
#[value(rename_all = "snake_case")]
pub(crate) enum Variant {
    /// Aligned, out of place. The symmetric two-shot is always in place.
    Aligned,
    /// Views that begin at a different element on every rank; in a symmetric buffer, at an odd
    /// element.
    Unaligned,
    /// Aligned, in place.
    InPlace,
    /// In place, at a different element on every rank.
    UnalignedInPlace,
    /// NaN, infinities, zeros of both signs, subnormals and the words that the slots use, aligned.
    Special,
    /// The same, at a different element on every rank.
    SpecialUnaligned,
}

impl Variant {
    /// A random variant that the route supports.
    pub(crate) fn any(route: Route, rng: &mut Rng) -> Variant {
        let all = Variant::value_variants();
        loop {
            let any = all[rng.usize(..all.len())];
            if any.serves(route) {
                return any;
            }
        }
    }

    /// Whether a route supports the variant.
    pub(crate) fn serves(self, route: Route) -> bool {
        !route.is_symmetric() || !matches!(self, Variant::InPlace | Variant::UnalignedInPlace)
    }

    pub(crate) fn is_unaligned(self) -> bool {
        matches!(
            self,
            Variant::Unaligned | Variant::UnalignedInPlace | Variant::SpecialUnaligned
        )
    }

    pub(crate) fn is_in_place(self) -> bool {
        matches!(self, Variant::InPlace | Variant::UnalignedInPlace)
    }

    pub(crate) fn is_special(self) -> bool {
        matches!(self, Variant::Special | Variant::SpecialUnaligned)
    }
}

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

/// One configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Case {
    pub(crate) world_size: u32,
    pub(crate) dtype: Dtype,
    pub(crate) work: Work,
    /// Rounds of fresh data, each `LAYERS` calls.
    pub(crate) rounds: u32,
}

/// A configuration as the runner and the report know it.
#[derive(Debug, Clone)]
pub(crate) struct Listed {
    pub(crate) name: String,
    pub(crate) op: Operation,
    /// The configurations that share a line in the output.
    pub(crate) group: String,
    pub(crate) world_size: u32,
}

impl Case {
    pub(crate) fn listed(&self) -> Listed {
        Listed {
            name: self.to_string(),
            op: Operation::AllReduce,
            group: self.group(),
            world_size: self.world_size,
        }
    }

    /// The group of cases that share a line in the output.
    fn group(&self) -> String {
        let kind = match self.work {
            Work::Uniform { route, .. } => route.name(),
            Work::Adversarial(_) => "adversarial",
        };
        format!("ws{}/{}/{kind}", self.world_size, self.dtype)
    }
}

/// `ws4/bf16/push_one_shot/1040/eager/aligned`, or `ws4/bf16/adversarial/delays`.
impl fmt::Display for Case {
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

/// Whether a filter selects the configuration of this name. A filter has parts between slashes, of
/// which `*` matches any part and missing parts at the end match everything. A single part matches
/// every name that contains that part.
pub(crate) fn is_selected(filter: &str, name: &str) -> bool {
    let wanted: Vec<&str> = filter.trim_end_matches('/').split('/').collect();
    let parts: Vec<&str> = name.split('/').collect();
    match wanted[..] {
        [part] => parts.contains(&part),
        _ => {
            let matches = |(wanted, part): (&&str, &&str)| *wanted == "*" || wanted == part;
            wanted.len() <= parts.len() && wanted.iter().zip(&parts).all(matches)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn case() -> Case {
        Case {
            world_size: 4,
            dtype: Dtype::Bf16,
            work: Work::Uniform {
                route: Route::PushOneShot,
                elements: 1040,
                mode: Mode::Eager,
                variant: Variant::Unaligned,
            },
            rounds: 1,
        }
    }

    #[test]
    fn a_name_selects_exactly_its_configuration() {
        let name = case().to_string();
        assert_eq!(name, "ws4/bf16/push_one_shot/1040/eager/unaligned");
        assert!(is_selected(&name, &name));
        for other in ["1040/eager/unaligned_in_place", "10400/eager/unaligned"] {
            assert!(!is_selected(
                &name,
                &format!("ws4/bf16/push_one_shot/{other}")
            ));
        }
    }

    #[test]
    fn a_filter_may_leave_parts_open() {
        let name = case().to_string();
        let selects = |filter| is_selected(filter, &name);
        assert!(selects("ws4/*/push_one_shot"));
        assert!(selects("ws4/"));
        assert!(selects("1040"));
        assert!(!selects("104"));
        assert!(!selects("ws4/f16"));
        assert!(!selects("*/*/*/*/*/*/*"));
    }
}
