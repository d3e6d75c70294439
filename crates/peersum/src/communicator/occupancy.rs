//! Seats: how many blocks each rank may launch so that all blocks that wait for each other run.
//!
//! A block that waits for a peer's block keeps its place on a multiprocessor. If such blocks keep a
//! peer's block from running, the ranks deadlock. So a device has a fixed number of seats, each
//! block has one, and the communicators of this process never hold more than there are.
//!
//! A seat is half of each of the four parts of a multiprocessor, in which the registers lie. No
//! block is larger (see [`thread_limits`]), so a multiprocessor with fewer than two blocks has room
//! for any other one, whatever their kernels, in whatever order they come. Half of all registers
//! would not do: the warps of two different kernels may need more than one of the parts has. A
//! larger block would have to wait until a whole multiprocessor is empty, which never happens if
//! another communicator keeps a small block on each.
//!
//! The blocks of a cluster need their seats in one part of the device, a graphics processing
//! cluster. [`Device::clusters`] says how many always find them.

use std::sync::{Mutex, MutexGuard, PoisonError};

use peersum_artifact::{Algorithm, Family};
use peersum_kernels::abi;

use super::modules::Modules;
use crate::device::{Device, DeviceError, DeviceIdentity};
use crate::dispatch::{CLUSTER_SIZES, LaunchLimits};
use crate::error::Error;

/// Blocks of any kernel that fit one multiprocessor.
const SEATS_PER_MULTIPROCESSOR: u32 = 2;

/// Communicators with default settings that each device has room for.
const DEFAULT_COMMUNICATORS: u32 = 2;

/// A device, by its UUID, and a group, by its token.
type OccupancyKey = ([u8; 16], u64);

/// What one group holds on one device. Its ranks of this process hold it together.
#[derive(Debug)]
struct Reservation {
    key: OccupancyKey,
    /// Of each rank on the device, in this process or another.
    blocks: u32,
    ranks: u32,
    /// Ranks of this process.
    holders: u32,
}

impl Reservation {
    fn seats(&self) -> u32 {
        self.blocks.saturating_mul(self.ranks)
    }
}

/// What the groups of this process hold.
static RESERVED: Mutex<Vec<Reservation>> = Mutex::new(Vec::new());

fn reserved() -> MutexGuard<'static, Vec<Reservation>> {
    RESERVED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The seats of a device that are taken.
fn taken(reservations: &[Reservation], uuid: [u8; 16]) -> u32 {
    let on_device = reservations.iter().filter(|own| own.key.0 == uuid);
    on_device.map(Reservation::seats).sum()
}

/// One group on one device.
#[derive(Debug, Clone, Copy)]
pub(super) struct GroupOnDevice<'a> {
    pub(super) device: &'a DeviceIdentity,
    /// Tells the ranks of this group from those of others in the process.
    pub(super) group: u64,
    /// Ranks of this group on the device.
    pub(super) ranks: u32,
}

impl GroupOnDevice<'_> {
    fn capacity(&self) -> u32 {
        let multiprocessors = self.device.multiprocessors;
        multiprocessors.saturating_mul(SEATS_PER_MULTIPROCESSOR)
    }

    /// The most blocks that a rank can have, if this group has the device for itself.
    pub(super) fn most(&self) -> u32 {
        (self.capacity() / self.ranks.max(1)).clamp(1, abi::PEERSUM_MAX_BLOCKS)
    }

    /// The most blocks that a rank has by default. It does not depend on what other groups hold,
    /// which can differ between processes, and between two runs of a program.
    pub(super) fn default_share(&self) -> u32 {
        let share = self.capacity() / DEFAULT_COMMUNICATORS / self.ranks.max(1);
        share.clamp(1, abi::PEERSUM_MAX_BLOCKS)
    }

    /// Takes seats for `blocks` blocks of each rank of the group. All its ranks of this process
    /// call this, and hold what the first of them took.
    pub(super) fn reserve(&self, blocks: u32) -> Result<Occupancy, Error> {
        let key = (self.device.uuid, self.group);
        let mut reservations = reserved();
        if let Some(own) = reservations.iter_mut().find(|own| own.key == key) {
            own.holders += 1;
            own.blocks = own.blocks.min(blocks);
            return Ok(Occupancy(key));
        }
        let own = Reservation {
            key,
            blocks,
            ranks: self.ranks.max(1),
            holders: 1,
        };
        let of_others = taken(&reservations, self.device.uuid);
        if own.seats() > self.capacity().saturating_sub(of_others) {
            return Err(Error::DeviceFull {
                device: self.device.name.clone(),
                capacity: self.capacity(),
                reserved: of_others,
                ranks: own.ranks,
                blocks,
            });
        }
        reservations.push(own);
        Ok(Occupancy(key))
    }
}

/// A rank's part in its group's reservation on one device, given back when dropped.
#[derive(Debug)]
pub(super) struct Occupancy(OccupancyKey);

impl Occupancy {
    /// Gives back what the ranks have not agreed on.
    pub(super) fn shrink_to(&self, blocks: u32) {
        self.change(|own| own.blocks = own.blocks.min(blocks));
    }

    fn change(&self, change: impl FnOnce(&mut Reservation)) {
        let mut reservations = reserved();
        if let Some(own) = reservations.iter_mut().find(|own| own.key == self.0) {
            change(own);
        }
        reservations.retain(|reservation| reservation.holders > 0);
    }
}

impl Drop for Occupancy {
    fn drop(&mut self) {
        self.change(|own| own.holders -= 1);
    }
}

/// The largest block of each kernel that fits a seat, in threads that handle units.
pub(super) fn thread_limits<D: Device>(
    device: &D,
    modules: &Modules<D>,
    blocks: u32,
) -> Result<LaunchLimits, DeviceError> {
    LaunchLimits::try_new(blocks, modules.world_size(), |family, algorithm| {
        let mut least = abi::PEERSUM_MAX_THREADS;
        for module in modules.of_family(family) {
            least = least.min(largest_block(device, module, family, algorithm)?);
        }
        Ok(least)
    })
}

/// With them, how many clusters of each size always find room among the seats.
pub(super) fn cluster_limits<D: Device>(
    device: &D,
    modules: &Modules<D>,
    limits: LaunchLimits,
) -> Result<LaunchLimits, DeviceError> {
    let (family, algorithm) = (Family::Norm, Algorithm::Clustered);
    let threads = limits.threads(family, algorithm);
    let mut clusters = [limits.blocks(); CLUSTER_SIZES.len()];
    for (most, size) in clusters.iter_mut().zip(CLUSTER_SIZES) {
        let threads = threads.min(abi::PEERSUM_MAX_CLUSTER_THREADS / size);
        for module in modules.of_family(family) {
            let seats = limits.blocks();
            *most = (*most).min(device.clusters(module, algorithm, threads, size, seats)?);
        }
    }
    Ok(limits.with_clusters(clusters))
}

fn largest_block<D: Device>(
    device: &D,
    module: &D::Module,
    family: Family,
    algorithm: Algorithm,
) -> Result<u32, DeviceError> {
    let most = match algorithm {
        Algorithm::Clustered => abi::PEERSUM_MAX_CLUSTERED_THREADS,
        _ => abi::PEERSUM_MAX_THREADS,
    };
    let whole_warps = (1..=most / abi::PEERSUM_WARP_THREADS).rev();
    for threads in whole_warps.map(|warps| warps * abi::PEERSUM_WARP_THREADS) {
        if device.fits_seat(module, algorithm, threads)? {
            return Ok(threads);
        }
    }
    let message = format!(
        "a block of the {family} {algorithm} kernel does not fit half a multiprocessor, even with \
         {} threads",
        abi::PEERSUM_WARP_THREADS
    );
    let call = "cuOccupancyMaxActiveBlocksPerMultiprocessor";
    Err(DeviceError::driver(call, message))
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;

    use super::{DeviceIdentity, Error, GroupOnDevice, reserved};

    fn device(number: u8, multiprocessors: u32) -> DeviceIdentity {
        DeviceIdentity {
            name: "gpu".to_owned(),
            uuid: [number; 16],
            arch: Some(peersum_artifact::Arch::new(9, 0)),
            multiprocessors,
        }
    }

    fn group_on(device: &DeviceIdentity, group: u64, ranks: u32) -> GroupOnDevice<'_> {
        GroupOnDevice {
            device,
            group,
            ranks,
        }
    }

    fn taken(device: &DeviceIdentity) -> u32 {
        super::taken(&reserved(), device.uuid)
    }

    #[test]
    fn the_default_share_is_a_constant_and_two_of_them_fill_a_device() {
        let gpu = device(1, 132);
        for ranks in 1..=8 {
            let share = group_on(&gpu, 1, ranks).default_share();
            assert_eq!(share, 132 / ranks);
            let first = group_on(&gpu, 1, ranks).reserve(share).unwrap();
            assert_eq!(group_on(&gpu, 2, ranks).default_share(), share);
            let second = group_on(&gpu, 2, ranks).reserve(share).unwrap();
            let refusal = group_on(&gpu, 3, ranks).reserve(share).unwrap_err();
            let Error::DeviceFull { capacity: 264, .. } = &refusal else {
                panic!("{refusal}");
            };
            assert!(refusal.to_string().contains("max_blocks(n)"), "{refusal}");
            drop((first, second));
            assert_eq!(taken(&gpu), 0);
        }
    }

    #[test]
    fn ranks_of_one_group_hold_one_reservation_until_the_last_is_gone() {
        let gpu = device(2, 132);
        let own = group_on(&gpu, 1, 4);
        let first = own.reserve(66).unwrap();
        let second = own.reserve(50).unwrap();
        assert_eq!(taken(&gpu), 200);
        first.shrink_to(33);
        second.shrink_to(33);
        assert_eq!(taken(&gpu), 132);
        drop(first);
        assert_eq!(taken(&gpu), 132, "one rank is left");
        let other = group_on(&gpu, 2, 1).reserve(132).unwrap();
        drop(second);
        assert_eq!(taken(&gpu), 132);
        drop(other);
        assert_eq!(taken(&gpu), 0);
    }

    #[test]
    fn groups_that_reserve_at_once_never_get_more_seats_than_there_are() {
        let gpu = device(3, 16);
        const GROUPS: u64 = 8;
        for round in 0..200 {
            let start = Barrier::new(GROUPS as usize);
            let all_have_tried = Barrier::new(GROUPS as usize);
            let got: Vec<bool> = std::thread::scope(|scope| {
                let groups: Vec<_> = (0..GROUPS)
                    .map(|group| {
                        let (gpu, start, all_have_tried) = (&gpu, &start, &all_have_tried);
                        scope.spawn(move || {
                            start.wait();
                            let seats = group_on(gpu, group, 1).reserve(10);
                            assert!(taken(gpu) <= 32);
                            all_have_tried.wait();
                            seats.is_ok()
                        })
                    })
                    .collect();
                groups
                    .into_iter()
                    .map(|group| group.join().unwrap())
                    .collect()
            });
            // 32 seats: three groups of ten blocks.
            assert_eq!(got.iter().filter(|got| **got).count(), 3, "round {round}");
            assert_eq!(taken(&gpu), 0);
        }
    }
}
