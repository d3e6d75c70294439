//! What a rank holds that has no peers, or reaches them by NCCL alone.

use super::modules::Modules;
use crate::device::Device;
use crate::dispatch::LaunchLimits;
use crate::loader::LoadReport;

/// What a rank without peers needs to normalise rows.
pub(super) struct Alone<D: Device> {
    pub(super) modules: Modules<D>,
    pub(super) limits: LaunchLimits,
    pub(super) reports: Vec<LoadReport>,
}
