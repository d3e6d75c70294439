//! The streams that ranks work on.

use anyhow::Result;
use peersum::device::DeviceStream;
use peersum::dispatch::Topology;

use super::kind::DeviceKind;
use crate::grid::device_check::DeviceCheck;

/// Makes the streams of ranks.
pub(crate) trait Machine: Send + Sync + 'static {
    type Stream: DeviceStream + Send + 'static;

    fn kind(&self) -> DeviceKind;

    /// The name of the devices.
    fn device_name(&self) -> &str;

    /// How many devices the ranks are spread over.
    fn devices(&self) -> u32;

    /// A new stream for a rank.
    fn stream(&self, rank: u32) -> Result<Self::Stream>;

    /// Makes data and compares results on a rank's device itself, where it can.
    fn device_check(&self, rank: u32, stream: &Self::Stream) -> Result<Option<DeviceCheck>> {
        let _ = (rank, stream);
        Ok(None)
    }

    /// How the ranks of a group are connected.
    fn link(&self, world_size: u32) -> Topology {
        match self.kind() {
            DeviceKind::Emulator => Topology::Emulator,
            DeviceKind::Cuda if world_size > self.devices() => Topology::Shared,
            DeviceKind::Cuda => Topology::Peer,
        }
    }
}

/// The device of a machine's streams.
pub(crate) type DeviceOf<M> = <<M as Machine>::Stream as DeviceStream>::Device;
