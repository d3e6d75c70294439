//! The kinds of devices.

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

/// What ranks run on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum DeviceKind {
    Cuda,
    Emulator,
}
