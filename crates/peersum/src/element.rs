//! The element types of an all-reduce.

use cudarc::driver::{DeviceRepr, ValidAsZeroBits};
use half::{bf16, f16};
use peersum_artifact::Dtype;

use crate::reference::ReferenceElement;

/// An element type: [`struct@f16`], [`bf16`] or `f32`. Sealed.
pub trait Element: ReferenceElement + DeviceRepr + ValidAsZeroBits + Unpin + 'static {
    /// Its name in modules, headers and manifests.
    const DTYPE: Dtype;
}

impl Element for f16 {
    const DTYPE: Dtype = Dtype::F16;
}

impl Element for bf16 {
    const DTYPE: Dtype = Dtype::Bf16;
}

impl Element for f32 {
    const DTYPE: Dtype = Dtype::F32;
}
