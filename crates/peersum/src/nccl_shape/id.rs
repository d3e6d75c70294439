//! What a rank passes to the others so that they meet: 128 bytes, as NCCL's.

use core::ffi::c_char;
use std::io;

use super::result::NcclError;
use crate::device::DeviceError;
use crate::error::Error;

/// Tells this module's ids from NCCL's, and one layout of them from the next.
const MAGIC: [u8; 16] = *b"peersum group 1\0";
/// Random bytes behind the magic ones: enough that no two groups have the same.
const NAME_BYTES: usize = 16;

/// The name of a group of ranks, in the shape of `cudarc::nccl::Id`. One rank makes it, and the
/// engine passes it to the others by its own means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Id {
    internal: [c_char; 128],
}

impl Id {
    /// An id like no other.
    ///
    /// # Errors
    /// [`NcclError::Communicator`] if the system gives no random bytes.
    pub fn new() -> Result<Self, NcclError> {
        let mut name = [0; NAME_BYTES];
        // So few bytes are given whole or not at all.
        rustix::rand::getrandom(&mut name, rustix::rand::GetRandomFlags::empty()).map_err(
            |error| {
                Error::from(DeviceError::System {
                    call: "getrandom",
                    source: io::Error::from(error),
                })
            },
        )?;
        let mut internal = [0; 128];
        for (place, byte) in internal.iter_mut().zip(MAGIC.into_iter().chain(name)) {
            *place = byte as c_char;
        }
        Ok(Id { internal })
    }

    /// The id whose [`Id::internal`] these bytes are. (The name is cudarc's.)
    pub fn uninit(internal: [c_char; 128]) -> Self {
        Id { internal }
    }

    /// The bytes to pass on.
    pub fn internal(&self) -> &[c_char; 128] {
        &self.internal
    }

    /// The group's name for a [`Rendezvous`](crate::Rendezvous).
    pub(super) fn group(&self) -> Result<String, NcclError> {
        let bytes = self.internal.map(|byte| byte as u8);
        let (magic, rest) = bytes.split_at(MAGIC.len());
        let (name, padding) = rest.split_at(NAME_BYTES);
        if magic != MAGIC || padding.iter().any(|&byte| byte != 0) {
            return Err(NcclError::ForeignId);
        }
        let hexadecimal: String = name.iter().map(|byte| format!("{byte:02x}")).collect();
        Ok(format!("id-{hexadecimal}"))
    }
}
