//! What an array may hold after a call that failed.

use peersum_kernels::abi::PEERSUM_UNIT_BYTES;

use super::array::{Array, Role};
use super::rank_call::{CallKind, RankCall};
use crate::collective::Collective;
use crate::memory::elements_of;

/// What became of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// It was refused, and nothing was launched.
    Refused,
    Failed,
    Succeeded,
}

/// What a failed call may do to an array of bf16, or of FP8 and scales.
pub(crate) struct Loss {
    /// Whether an element was written because the call has failed.
    pub(crate) is_lost: fn(&[u8]) -> bool,
    /// From which element on a call in which a rank had no part may leave the right ones.
    pub(crate) right_from: usize,
    /// Whether the call may leave what was there. Then nothing has to be lost.
    pub(crate) may_stay: bool,
}

/// An element that was not reduced.
fn is_nan(element: &[u8]) -> bool {
    element == 0x7FFF_u16.to_ne_bytes()
}

/// An element to which nothing was moved.
fn is_ones(element: &[u8]) -> bool {
    element == [0xFF; 2]
}

/// The FP8 of an element that was not reduced.
fn is_fp8_nan(element: &[u8]) -> bool {
    element == [0x7F]
}

fn is_nan_scale(element: &[u8]) -> bool {
    elements_of::<f32>(element)[0].is_nan()
}

impl Loss {
    /// Nothing: no call writes to it.
    const NONE: Loss = Loss {
        is_lost: |_| false,
        right_from: 0,
        may_stay: false,
    };

    /// Everything.
    const fn all(is_lost: fn(&[u8]) -> bool) -> Loss {
        Loss {
            is_lost,
            right_from: usize::MAX,
            may_stay: false,
        }
    }

    /// Of an array of `rank`'s call.
    pub(crate) fn of(call: &RankCall, array: &Array, rank: u32) -> Loss {
        match (array.role, call.kind) {
            // It keeps what it has.
            (_, CallKind::Other(Collective::Broadcast { root })) if root == rank => Loss::NONE,
            (Role::Output, CallKind::Other(Collective::AllGather)) => Loss::all(is_ones),
            // A rank may have received all but the first unit.
            (Role::Output, CallKind::Other(Collective::Broadcast { .. })) => Loss {
                right_from: PEERSUM_UNIT_BYTES as usize / array.element_bytes,
                ..Loss::all(is_ones)
            },
            (Role::Output, _) => Loss::all(is_nan),
            (Role::Residual, _) => Loss {
                may_stay: true,
                ..Loss::all(is_nan)
            },
            (Role::Fp8Values, _) => Loss::all(is_fp8_nan),
            // A scale that is given stays.
            (Role::Fp8Scales, _) if array.before.is_none() => Loss::all(is_nan_scale),
            (Role::Input | Role::Weight | Role::Fp8Scales, _) => Loss::NONE,
        }
    }
}
