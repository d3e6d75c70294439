//! The types of a buffer's elements.

use cudarc::driver::{DeviceRepr, ValidAsZeroBits};
use half::{bf16, f16};
use peersum_artifact::Dtype;

use crate::reference::ReferenceElement;

mod sealed {
    pub trait Sealed {}
}

/// What a buffer of a call can hold: a plain number. Sealed.
pub trait Scalar:
    sealed::Sealed + DeviceRepr + ValidAsZeroBits + Copy + Send + Sync + Unpin + 'static
{
}

macro_rules! scalars {
    ($($number:ty),*) => {$(
        impl sealed::Sealed for $number {}
        impl Scalar for $number {}
    )*};
}

scalars!(f16, bf16, f32, u8);

/// An element type of an all-reduce: [`struct@f16`], [`bf16`] or `f32`. Sealed.
pub trait Element: Scalar + ReferenceElement {
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
