//! The kinds of devices.

use serde::{Deserialize, Serialize};

/// What ranks run on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum DeviceKind {
    Cuda,
    Emulator,
}

impl DeviceKind {
    /// Its value of `--device`.
    pub(crate) fn name(self) -> &'static str {
        match self {
            DeviceKind::Cuda => "cuda",
            DeviceKind::Emulator => "emulator",
        }
    }
}
