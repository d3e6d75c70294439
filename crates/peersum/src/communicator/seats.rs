//! Seats: how many blocks each rank may launch so that all that must run together does.
//!
//! A block that waits for a peer's block holds its place on a multiprocessor. Ranks that share a device therefore share its seats: per
//! device, the sum over ranks of the largest grid stays at or below the blocks that fit at once.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use crate::error::Error;

type Uuid = [u8; 16];

/// (group, blocks) for each communicator on a device.
type Reservations = Vec<(u64, u32)>;

/// Blocks that communicators of this process may launch, by device.
static RESERVED: Mutex<Option<HashMap<Uuid, Reservations>>> = Mutex::new(None);

/// A communicator's seats on one device, given back when dropped.
#[derive(Debug)]
pub(crate) struct Seats {
    uuid: Uuid,
    group: u64,
    blocks: u32,
}

/// The largest grid that one of `ranks_on_device` ranks may launch, for a device of `capacity` seats of which other communicators of this process
/// hold some. `group` tells the ranks of one communicator apart from others.
pub(crate) fn largest_grid(
    uuid: Uuid,
    group: u64,
    name: &str,
    capacity: u32,
    ranks_on_device: u32,
) -> Result<u32, Error> {
    let reserved = reserved_by_others(uuid, group);
    let grid = capacity.saturating_sub(reserved) / ranks_on_device.max(1);
    if grid == 0 {
        return Err(Error::DeviceFull {
            device: name.to_owned(),
            capacity,
            reserved,
        });
    }
    Ok(grid)
}

/// Reserves `blocks` seats for one rank.
pub(crate) fn reserve(uuid: Uuid, group: u64, blocks: u32) -> Seats {
    let mut reserved = RESERVED.lock().unwrap_or_else(PoisonError::into_inner);
    reserved
        .get_or_insert_default()
        .entry(uuid)
        .or_default()
        .push((group, blocks));
    Seats {
        uuid,
        group,
        blocks,
    }
}

fn reserved_by_others(uuid: Uuid, group: u64) -> u32 {
    let reserved = RESERVED.lock().unwrap_or_else(PoisonError::into_inner);
    let seats = reserved.as_ref().and_then(|devices| devices.get(&uuid));
    seats.map_or(0, |seats| {
        seats
            .iter()
            .filter(|(other, _)| *other != group)
            .map(|(_, blocks)| blocks)
            .sum()
    })
}

impl Drop for Seats {
    fn drop(&mut self) {
        let mut reserved = RESERVED.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(seats) = reserved
            .as_mut()
            .and_then(|devices| devices.get_mut(&self.uuid))
        else {
            return;
        };
        if let Some(index) = seats
            .iter()
            .position(|seat| *seat == (self.group, self.blocks))
        {
            seats.swap_remove(index);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_of_one_group_share_a_device_and_other_groups_keep_their_seats() {
        let uuid = [7; 16];
        assert_eq!(largest_grid(uuid, 1, "gpu", 132, 4).unwrap(), 33);
        let seats = [reserve(uuid, 1, 33), reserve(uuid, 1, 33)];
        assert_eq!(
            largest_grid(uuid, 1, "gpu", 132, 4).unwrap(),
            33,
            "a group does not compete with itself"
        );
        assert_eq!(largest_grid(uuid, 2, "gpu", 132, 1).unwrap(), 66);
        let others = reserve(uuid, 2, 66);
        let full = largest_grid(uuid, 3, "gpu", 132, 1).unwrap_err();
        assert!(full.to_string().contains("132"), "{full}");
        drop((seats, others));
        assert_eq!(largest_grid(uuid, 3, "gpu", 132, 1).unwrap(), 132);
    }
}
