//! What is the same in all calls of one group.

use peersum::dispatch::Topology;

use super::arguments::BenchArgs;
use crate::bench::build::Build;
use crate::bench::ranks::GroupSettings;
use crate::bench::report::{Call, System};
use crate::bench::timing::Launch;
use crate::data::TestElement;
use crate::operation::Operation;

/// One group.
pub(super) struct Group<'a> {
    pub(super) args: &'a BenchArgs,
    pub(super) build: Build,
    pub(super) settings: &'a GroupSettings,
    pub(super) link: Topology,
}

impl Group<'_> {
    /// A call of which the plan is to be added.
    pub(super) fn call<T: TestElement>(&self, bytes: usize, launch: Launch) -> Call {
        Call {
            system: System::Peersum,
            build: self.build,
            world_size: self.settings.world_size,
            link: self.link,
            operation: Operation::AllReduce,
            dtype: T::DTYPE,
            bytes: bytes as u64,
            launch,
            pdl: self.settings.pdl,
            placement: None,
            plan: None,
            from_table: false,
            norm: None,
        }
    }
}
