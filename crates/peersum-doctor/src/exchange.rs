//! Two ranks that share memory as a communicator does, and send random bytes both ways.

use std::time::{Duration, Instant};

use peersum::device::{Device, DeviceError, DeviceStream, MemorySharing};
use peersum::rendezvous::Group;
use peersum::{Error, Rendezvous, SharedMemory, share};
use peersum_artifact::Digest;

use crate::ranks::in_threads;

/// Large enough that the time of a copy says something about the link.
const BYTES: usize = 4 << 20;
/// Copies that are timed.
const TIMED_COPIES: u32 = 16;

/// What one rank of an exchange saw.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Exchanged {
    /// Whether the bytes that this rank wrote into the other's memory arrived there.
    pub(crate) wrote: bool,
    /// Whether the bytes that this rank read from the other's memory were those that the other had
    /// written.
    pub(crate) read: bool,
    /// What this rank read from the other's memory in a second while the other did the same, in
    /// units of 10^9 bytes.
    pub(crate) gigabytes_per_second: f64,
}

impl Exchanged {
    pub(crate) fn all_arrived(&self) -> bool {
        self.wrote && self.read
    }
}

/// Shares memory with the other rank of a group of two and sends random bytes both ways.
/// Collective: both ranks call it.
///
/// The memory is shared by the very code that a communicator's set-up runs. Each rank writes into
/// the other's memory, and the other looks there; then each writes into its own, and the other
/// reads it. Copies go through the devices, so that the bytes cross the link.
///
/// # Errors
/// As [`CommunicatorBuilder::build`](peersum::CommunicatorBuilder::build) for the memory and the
/// other rank. The group should then be [abandoned](Group::abandon), so that the other rank need
/// not wait.
pub(crate) fn exchange<D: Device>(
    device: &D,
    group: &mut Group,
    sharing: MemorySharing,
    patience: Duration,
) -> Result<Exchanged, Error> {
    let own = device.allocate_shared(BYTES, sharing)?;
    let staging = device.allocate_shared(BYTES, sharing)?;
    let addresses = [&own, &staging].map(|memory| device.allocation_address(memory));
    let label = "doctor's memory";
    let mut shared = share(device, group, Ok(own), BYTES as u64, label, patience)?;
    let result = both_ways(device, group, addresses, &shared, patience);
    // A copy that could not be waited for may still use all of it.
    if let Err(error) = device.synchronize() {
        std::mem::forget((shared, staging));
        return Err(error.into());
    }
    // Memory that is lent by address or handle must not be freed before the other rank has unmapped
    // it; without this it stays until the process ends.
    shared.mappings.clear();
    let exchanged = result?;
    group.barrier("doctor's unmapping", patience)?;
    shared.memory.peers_let_go();
    Ok(exchanged)
}

/// The data of an exchange. `own`, which the other rank maps, and `staging` are this rank's memory
/// of [`BYTES`] bytes each.
fn both_ways<D: Device>(
    device: &D,
    group: &mut Group,
    [own, staging]: [u64; 2],
    shared: &SharedMemory<D>,
    patience: Duration,
) -> Result<Exchanged, Error> {
    let peer = 1 - group.rank() as usize;
    let theirs = shared.addresses[peer];
    // Gives a word to the other rank and returns its word, once both have come here.
    let tell = |group: &mut Group, label: &str, word: &str| {
        let words = group.all_gather(label, word.as_bytes(), patience)?;
        let theirs = words.get(peer).map_or(&[][..], Vec::as_slice);
        Ok::<_, Error>(String::from_utf8_lossy(theirs).into_owned())
    };
    // Fills `own` or `staging`, waits for it, and returns the digest of what it now holds.
    let write_random = |destination: u64| {
        // Different in every run, so that what an earlier one left in memory cannot pass.
        let mut bytes = vec![0; BYTES];
        fastrand::fill(&mut bytes);
        // SAFETY: the destination is one of this rank's two allocations, of as many bytes.
        unsafe { device.write(destination, &bytes)? };
        // A device's `write` need only have taken the bytes when it returns.
        device.synchronize()?;
        Ok::<_, DeviceError>(Digest::of(&bytes).to_string())
    };
    // The digest of what `own` or `staging` holds.
    let digest = |source: u64| {
        let mut bytes = vec![0; BYTES];
        // SAFETY: the source is one of this rank's two allocations, of as many bytes.
        unsafe { device.read(source, &mut bytes)? };
        Ok::<_, DeviceError>(Digest::of(&bytes).to_string())
    };
    // SAFETY: both ranges are `BYTES` long, this rank's or mapped from the other. A mapping of a
    // descriptor keeps the memory; memory that is lent otherwise is freed by its owner after the
    // last meeting, or never.
    let copy = |destination: u64, source: u64| unsafe { device.copy(destination, source, BYTES) };

    let sent = write_random(staging)?;
    copy(theirs, staging)?;
    device.synchronize()?;
    let expected = tell(group, "doctor's write", &sent)?;
    let arrived = digest(own)? == expected;
    group.barrier("doctor's look", patience)?;

    // Other bytes than before, so that what was not read cannot pass.
    let offered = write_random(own)?;
    let expected = tell(group, "doctor's own write", &offered)?;
    copy(staging, theirs)?;
    device.synchronize()?;
    let read = digest(staging)? == expected;

    group.barrier("doctor's clock", patience)?;
    let began = Instant::now();
    for _ in 0..TIMED_COPIES {
        copy(staging, theirs)?;
    }
    device.synchronize()?;
    let bytes = f64::from(TIMED_COPIES) * BYTES as f64;
    let gigabytes_per_second = bytes / began.elapsed().as_secs_f64() / 1e9;

    let wrote = tell(group, "doctor's results", &arrived.to_string())? == true.to_string();
    Ok(Exchanged {
        wrote,
        read,
        gigabytes_per_second,
    })
}

/// Joins the group and exchanges on the stream that `open` opens.
///
/// # Errors
/// As [`exchange`]. The other rank gets the reason at once, also if the stream does not open.
pub(crate) fn join_and_exchange<S: DeviceStream>(
    rendezvous: Rendezvous,
    sharing: MemorySharing,
    patience: Duration,
    open: impl FnOnce() -> Result<S::Device, DeviceError>,
) -> Result<Exchanged, Error> {
    let mut group = rendezvous.join(patience)?;
    open()
        .map_err(Error::from)
        .and_then(|device| exchange(&device, &mut group, sharing, patience))
        .inspect_err(|error| group.abandon(&error.to_string()))
}

/// [`exchange`] between two threads of this process, each with a stream. What each saw, in the
/// streams' order.
///
/// # Errors
/// The first error that is not merely the consequence of the other rank's, with the number of the
/// stream, 0 or 1.
pub(crate) fn exchange_between<S: DeviceStream + Send + Sync>(
    streams: [&S; 2],
    sharing: MemorySharing,
    patience: Duration,
) -> Result<Vec<Exchanged>, (usize, Error)> {
    in_threads(streams, |stream, rendezvous| {
        join_and_exchange::<S>(rendezvous, sharing, patience, || S::Device::open(stream))
    })
}
