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
    /// Its name in modules, headers and manifests.
    const DTYPE: Dtype;
}

macro_rules! scalars {
    ($($number:ty => $dtype:ident),*) => {$(
        impl sealed::Sealed for $number {}
        impl Scalar for $number {
            const DTYPE: Dtype = Dtype::$dtype;
        }
    )*};
}

scalars!(
    f16 => F16, bf16 => Bf16, f32 => F32, u8 => U8, i8 => I8, u32 => U32, i32 => I32, u64 => U64,
    i64 => I64
);

/// An element type of a call that sums: [`struct@f16`], [`bf16`] or `f32`. Sealed.
pub trait Element: Scalar + ReferenceElement {}

impl Element for f16 {}
impl Element for bf16 {}
impl Element for f32 {}
