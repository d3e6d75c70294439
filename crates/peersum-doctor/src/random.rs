//! The system's random bytes, so that what an earlier run left in memory cannot pass for data that
//! arrived.

use std::fs::File;
use std::io::Read;

use peersum::device::DeviceError;

/// As many bytes, different in every run.
pub(crate) fn random_bytes(len: usize) -> Result<Vec<u8>, DeviceError> {
    let mut bytes = vec![0; len];
    File::open("/dev/urandom")
        .and_then(|mut source| source.read_exact(&mut bytes))
        .map_err(|source| DeviceError::System {
            call: "reading /dev/urandom",
            source,
        })?;
    Ok(bytes)
}

/// A number that differs from run to run.
pub(crate) fn random_seed() -> Result<u64, DeviceError> {
    let bytes = random_bytes(size_of::<u64>())?;
    Ok(bytes
        .iter()
        .fold(0, |seed, byte| seed << 8 | u64::from(*byte)))
}
