//! Emulated devices: what a stream runs on.

use std::time::Duration;

use peersum::device::{DeviceError, DeviceIdentity};

/// What an emulated device is like.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct EmulatorOptions {
    /// Multiprocessors that the device claims to have. All blocks of a launch run at once however
    /// many there are: the number only bounds the grids of the communicators on the device, which
    /// share two blocks a multiprocessor. By default there is room for many communicators with
    /// small grids, so that tests of one process can use the same device at once.
    pub multiprocessors: u32,
    /// Maximum random delay of a block before its first instruction. Zero, the default, delays no
    /// block; otherwise one block in four of each launch waits for a random part of this time.
    pub block_delay: Duration,
    /// The device refuses to map memory of this size of a peer, to test how the ranks handle it.
    pub refused_import_bytes: Option<usize>,
    /// Runs a protocol that is broken on purpose, for tests that must fail.
    #[cfg(feature = "broken-kernels")]
    pub broken: Option<Break>,
}

impl Default for EmulatorOptions {
    fn default() -> Self {
        Self {
            multiprocessors: 256,
            block_delay: Duration::ZERO,
            refused_import_bytes: None,
            #[cfg(feature = "broken-kernels")]
            broken: None,
        }
    }
}

/// What is broken, by its number in `PEERSUM_BREAK` of `kernels/call.cuh`. Compiled for groups
/// of 2 and 3 ranks, bf16 and f32 or calls that move data of any type, and the families in which
/// tests call it; all else is sound.
#[cfg(feature = "broken-kernels")]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Break {
    /// Slots are not emptied after they are read.
    NoRearm = 1,
    /// The second barrier of the pull family is left out.
    NoClosingBarrier = 2,
    /// The last word of a slot is not checked.
    LaneUnchecked = 3,
    /// Calls are not counted.
    EpochNotAdvanced = 4,
    /// The first barrier of the pull family is left out.
    NoOpeningBarrier = 5,
    /// Terms are added in reversed rank order.
    RankOrderReversed = 6,
    /// The warps of a block exchange the sums of a row without a barrier.
    NoRowBarrier = 7,
    /// The sum of a row's squares is another tree for each number of warps.
    TreeOfBlock = 8,
    /// The weight is loaded before the wait for the kernel before.
    WeightBeforeWait = 9,
}

#[cfg(feature = "broken-kernels")]
impl Break {
    /// All of them, in order.
    pub const ALL: [Break; 9] = [
        Break::NoRearm,
        Break::NoClosingBarrier,
        Break::LaneUnchecked,
        Break::EpochNotAdvanced,
        Break::NoOpeningBarrier,
        Break::RankOrderReversed,
        Break::NoRowBarrier,
        Break::TreeOfBlock,
        Break::WeightBeforeWait,
    ];

    /// Whether it changes calls with RMSNorm alone.
    #[must_use]
    pub fn is_of_norm(self) -> bool {
        matches!(
            self,
            Break::NoRowBarrier | Break::TreeOfBlock | Break::WeightBeforeWait
        )
    }
}

/// One emulated device. Ranks that use the same index share a device, across processes too, as
/// ranks can share a GPU.
#[derive(Debug, Clone)]
pub struct EmulatorDevice {
    pub(crate) identity: DeviceIdentity,
    pub(crate) options: EmulatorOptions,
}

impl EmulatorDevice {
    /// Device number `index`.
    #[must_use]
    pub fn new(index: u32) -> Self {
        Self::with_options(index, &EmulatorOptions::default())
    }

    /// Device number `index`, with these options.
    #[must_use]
    pub fn with_options(index: u32, options: &EmulatorOptions) -> Self {
        let mut uuid = *b"peersum emu:\0\0\0\0";
        uuid[12..].copy_from_slice(&index.to_be_bytes());
        Self {
            identity: DeviceIdentity {
                name: format!("emulated device {index}"),
                uuid,
                arch: None,
                multiprocessors: options.multiprocessors,
            },
            options: options.clone(),
        }
    }

    pub(crate) fn check_import(&self, bytes: usize) -> Result<(), DeviceError> {
        if self.options.refused_import_bytes == Some(bytes) {
            return Err(DeviceError::CannotShare {
                reason: format!("this emulated device refuses to map {bytes} bytes"),
            });
        }
        Ok(())
    }

    /// A suffix of the names of this device's entry points; empty for the shipped kernels.
    pub(crate) fn entry_point_suffix(&self) -> String {
        #[cfg(feature = "broken-kernels")]
        if let Some(broken) = self.options.broken {
            return format!("_break_{}", broken as u32);
        }
        String::new()
    }
}
