//! A configuration as the grid knows it, whatever its calls do, and what a filter selects.

use std::time::Duration;

use clap::ValueEnum;

use super::settings::Settings;
use crate::call::{RankCall, Role};
use crate::data::case_seed;
use crate::operation::Operation;

/// Calls of a round, back to back. A configuration of RMSNorm has one.
pub(crate) const LAYERS: usize = 4;

/// How the calls of a round are launched.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, ValueEnum)]
#[value(rename_all = "snake_case")]
pub(crate) enum Mode {
    /// One launch a call.
    Eager,
    /// Captured once, replayed in every round.
    Graph,
}

/// The configurations of one kind and world size share communicators and memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum GroupKind {
    /// All-reduces on one communicator.
    Sums,
    /// The same on two communicators.
    SumsOnTwo,
    Norms,
    Moves,
}

impl GroupKind {
    pub(crate) const ALL: [GroupKind; 4] = [
        GroupKind::Sums,
        GroupKind::SumsOnTwo,
        GroupKind::Norms,
        GroupKind::Moves,
    ];

    /// The first of its slots among the groups of a world size. It has one for each communicator.
    pub(crate) fn slot(self) -> usize {
        match self {
            GroupKind::Sums => 0,
            GroupKind::SumsOnTwo => 1,
            GroupKind::Norms => 3,
            GroupKind::Moves => 4,
        }
    }

    /// How many communicators a rank has.
    pub(super) fn lanes(self) -> usize {
        1 + usize::from(self == GroupKind::SumsOnTwo)
    }

    pub(super) fn is_sum(self) -> bool {
        matches!(self, GroupKind::Sums | GroupKind::SumsOnTwo)
    }

    pub(super) fn has_symmetric(self) -> bool {
        self != GroupKind::Moves
    }

    /// Whether any call has an array of this role.
    pub(super) fn has(self, role: Role) -> bool {
        self == GroupKind::Norms || matches!(role, Role::Input | Role::Output)
    }
}

/// What a rank must have for a configuration.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Room {
    /// The slots of all arrays of a round that have the same role.
    pub(super) region_bytes: usize,
    /// Settings of the communicator, so small that split calls are tested too.
    pub(super) max_bytes: usize,
    pub(super) push_half_bytes: Option<usize>,
}

impl Room {
    /// What is enough for both.
    pub(super) fn max(self, other: Room) -> Room {
        Room {
            region_bytes: self.region_bytes.max(other.region_bytes),
            max_bytes: self.max_bytes.max(other.max_bytes),
            push_half_bytes: self.push_half_bytes.max(other.push_half_bytes),
        }
    }
}

/// One configuration.
pub(crate) struct Case {
    pub(crate) name: String,
    pub(super) op: Operation,
    /// The configurations that share a line in the output.
    pub(super) group: String,
    pub(super) world_size: u32,
    pub(super) kind: GroupKind,
    /// Rounds of fresh data.
    pub(super) rounds: u32,
    /// Whether the calls of a round are captured once and replayed in every round.
    pub(super) is_captured: bool,
    pub(super) room: Room,
    pub(super) form: Box<dyn Form>,
}

/// What an operation knows of its configuration.
pub(crate) trait Form: Send + Sync {
    /// The calls of a round as `rank` makes them. `seed` is that of the case.
    fn calls(&self, settings: &Settings, seed: u64, rank: u32, round: u32) -> Vec<RankCall>;

    /// How long a rank sleeps before it joins the group.
    fn late_start(&self, _settings: &Settings, _seed: u64, _rank: u32) -> Duration {
        Duration::ZERO
    }
}

impl Case {
    fn seed(&self, settings: &Settings) -> u64 {
        case_seed(settings.seed, &self.name)
    }

    pub(super) fn calls(&self, settings: &Settings, rank: u32, round: u32) -> Vec<RankCall> {
        let seed = self.seed(settings);
        self.form.calls(settings, seed, rank, round)
    }

    pub(super) fn late_start(&self, settings: &Settings, rank: u32) -> Duration {
        self.form.late_start(settings, self.seed(settings), rank)
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

    const NAME: &str = "ws4/bf16/push_one_shot/1040/eager/unaligned";

    #[test]
    fn a_name_selects_exactly_its_configuration() {
        assert!(is_selected(NAME, NAME));
        for other in ["1040/eager/unaligned_in_place", "10400/eager/unaligned"] {
            assert!(!is_selected(
                NAME,
                &format!("ws4/bf16/push_one_shot/{other}")
            ));
        }
    }

    #[test]
    fn a_filter_may_leave_parts_open() {
        let selects = |filter| is_selected(filter, NAME);
        assert!(selects("ws4/*/push_one_shot"));
        assert!(selects("ws4/"));
        assert!(selects("1040"));
        assert!(!selects("104"));
        assert!(!selects("ws4/f16"));
        assert!(!selects("*/*/*/*/*/*/*"));
    }
}
