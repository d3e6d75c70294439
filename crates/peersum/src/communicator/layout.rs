//! Where things lie in an arena, and what it holds before the first call. The counterpart of
//! `abi.h`.

use std::mem::offset_of;

use peersum_kernels::abi::{self, PeersumBlockState, PeersumControl};

use crate::dispatch::Route;

/// The most ranks of a group.
pub(super) const RANKS: usize = abi::PEERSUM_MAX_WORLD_SIZE as usize;

/// Offsets and sizes within an arena, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ArenaLayout {
    pub(crate) world_size: u32,
    /// The slots of push calls: two halves.
    pub push_offset: u64,
    /// The bytes of one of them.
    pub push_half_bytes: u64,
    /// The staging area of pull calls: two halves.
    pub staging_offset: u64,
    /// The bytes of one of them.
    pub staging_half_bytes: u64,
    /// Memory of this rank alone: input and output of the co-residency probe. The last part, empty
    /// where no probe is run.
    pub(crate) probe_offset: u64,
    /// All bytes of an arena.
    pub total_bytes: u64,
}

/// The most units of a call: their indices fit 31 bits on the device.
pub(super) const MOST_UNITS: u64 = (1 << 31) - 1;
/// Every part starts at a multiple of a cache line.
const ALIGNMENT: u64 = 128;
/// The smallest push half. It holds two slot groups of the largest group of ranks.
const MIN_PUSH_HALF_BYTES: u64 = 8 << 10;

/// The slots of one group of units for one call, in bytes. The slots of the next call follow them.
pub(crate) fn slot_group_bytes(world_size: u32) -> u64 {
    // A unit has a slot for each rank, but a pair keeps no slots for its own units.
    let slots = if world_size == 2 { 1 } else { world_size };
    u64::from(slots) * u64::from(abi::PEERSUM_SLOT_GROUP * abi::PEERSUM_UNIT_BYTES)
}

impl ArenaLayout {
    /// Lays out an arena. `push_half_bytes` is rounded up to a multiple of two slot groups, one for
    /// each half. A two-shot call has its second memory behind the first `push_half_bytes`; within
    /// a group, its slots would be those of a one-shot call of the other half
    /// (kernels/tests/push_slots.rs). A two-shot call then has at least one group in each of its
    /// memories, so every route can carry a piece of any call.
    pub fn new(
        world_size: u32,
        max_bytes: u64,
        push_half_bytes: u64,
        probe_bytes: u64,
    ) -> ArenaLayout {
        let align = |bytes: u64| bytes.next_multiple_of(ALIGNMENT);
        // A warp's store of one source's slots of a group is 512 bytes: it begins at a multiple of
        // that.
        let push_offset =
            (size_of::<PeersumControl>() as u64).next_multiple_of(slot_group_bytes(2));
        let push_half_bytes = push_half_bytes
            .max(MIN_PUSH_HALF_BYTES)
            .next_multiple_of(2 * slot_group_bytes(world_size));
        let staging_offset = push_offset + 2 * push_half_bytes;
        let staging_half_bytes = align(max_bytes);
        let probe_offset = staging_offset + 2 * staging_half_bytes;
        ArenaLayout {
            world_size,
            push_offset,
            push_half_bytes,
            staging_offset,
            staging_half_bytes,
            probe_offset,
            total_bytes: probe_offset + align(probe_bytes),
        }
    }

    pub(super) fn has_probe(&self) -> bool {
        self.total_bytes > self.probe_offset
    }

    /// The units of a source for which a push call has slots in each of its memories: one, or two
    /// as a two-shot call has.
    pub(super) fn slot_units(&self, memories: u64) -> u64 {
        let groups = self.push_half_bytes / memories / slot_group_bytes(self.world_size);
        (groups * u64::from(abi::PEERSUM_SLOT_GROUP)).min(MOST_UNITS)
    }

    /// The largest call of a route, in units. The counterpart of what the kernels compute from the
    /// same sizes.
    pub(super) fn capacity_units(&self, route: Route) -> u64 {
        let world_size = u64::from(self.world_size);
        let staging = self.staging_half_bytes / u64::from(abi::PEERSUM_UNIT_BYTES);
        let capacity = match route {
            // A push call may keep narrow units in a staging half.
            Route::PushOneShot => self.slot_units(1).min(staging),
            Route::PushTwoShot => (self.slot_units(2) * world_size).min(staging),
            // The other half is scratch for units of the output that are not one aligned access.
            // Only its own rank knows of such an output, and all ranks must cut a call alike.
            Route::PullOneShot | Route::PullTwoShot | Route::SymmetricOneShot => staging,
            Route::SymmetricTwoShot => MOST_UNITS,
        };
        capacity.min(MOST_UNITS)
    }
}

/// The epochs that a communicator starts from. Tests start them near their wrap-around.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StartEpochs {
    /// Of push calls.
    pub push: u32,
    /// Of pull calls. At least 1: a flag that was never written is 0, and is compared with `>=`.
    pub pull: u64,
}

impl Default for StartEpochs {
    fn default() -> Self {
        StartEpochs { push: 0, pull: 1 }
    }
}

/// The place of a call among all calls, as the header carries it.
pub(crate) fn sequence(push_epoch: u32, pull_epoch: u64) -> u16 {
    (pull_epoch.wrapping_add(u64::from(push_epoch)) & 0xFFFF) as u16
}

/// A control block of zeros.
pub(crate) fn zeroed_control() -> Box<PeersumControl> {
    const RING: usize = abi::PEERSUM_HEADER_RING as usize;
    const BLOCKS: usize = abi::PEERSUM_MAX_BLOCKS as usize;
    const NORM_WORDS: usize = abi::PEERSUM_NORM_WORDS as usize;
    Box::new(PeersumControl {
        blocks: [PeersumBlockState::default(); BLOCKS],
        headers: [[0; RANKS]; RING],
        own_headers: [0; RING],
        details: [[0; RANKS]; RING],
        own_details: [0; RING],
        norm_words: [[[0; NORM_WORDS]; RANKS]; RING],
        own_norm_words: [[0; NORM_WORDS]; RING],
        leave_claim: 0,
        reserved: [0; 31],
        pull_flags: [[0; RANKS]; BLOCKS],
    })
}

/// The control block before the first call.
pub fn initial_control(start: StartEpochs) -> Box<PeersumControl> {
    let mut control = zeroed_control();
    control.blocks.fill(PeersumBlockState {
        pull_epoch: start.pull,
        push_epoch: start.push,
        poison: 0,
    });
    for back in 1..=abi::PEERSUM_HEADER_RING as u16 {
        let sequence = sequence(start.push, start.pull).wrapping_sub(back);
        let slot = usize::from(sequence) % control.own_headers.len();
        // Every rank's is the same, so it agrees with itself.
        let header = u64::from(sequence) << abi::PEERSUM_HEADER_SEQUENCE_SHIFT;
        control.headers[slot].fill(header);
        control.own_headers[slot] = header;
    }
    control
}

/// A control block's bytes.
pub fn control_bytes(control: &PeersumControl) -> &[u8] {
    // SAFETY: PeersumControl is a `repr(C)` struct of u32 and u64 whose fields leave no padding
    // (asserted below), so each of its bytes is initialised.
    unsafe { std::slice::from_raw_parts((&raw const *control).cast(), size_of::<PeersumControl>()) }
}

/// The part of a control block that `synchronize` reads back: block states, headers, details.
const HEAD_BYTES: usize = offset_of!(PeersumControl, leave_claim);

/// The bytes of a control block's head, to read them from a device.
pub(crate) fn head_bytes_mut(control: &mut PeersumControl) -> &mut [u8] {
    // SAFETY: as for `control_bytes`, of which these are the first; any bytes are valid fields.
    unsafe { std::slice::from_raw_parts_mut((&raw mut *control).cast(), HEAD_BYTES) }
}

const _: () = {
    let blocks = abi::PEERSUM_MAX_BLOCKS as usize;
    let ring = abi::PEERSUM_HEADER_RING as usize;
    let words = abi::PEERSUM_NORM_WORDS as usize;
    // Blocks of 16 bytes, then headers, details and norm words with a rank's own: the head, without
    // padding.
    assert!(HEAD_BYTES == blocks * 16 + (2 + words) * (ring * RANKS * 8 + ring * 8));
    assert!(offset_of!(PeersumControl, blocks) < HEAD_BYTES);
    assert!(offset_of!(PeersumControl, headers) < HEAD_BYTES);
    assert!(offset_of!(PeersumControl, own_headers) < HEAD_BYTES);
    assert!(offset_of!(PeersumControl, details) < HEAD_BYTES);
    assert!(offset_of!(PeersumControl, own_details) < HEAD_BYTES);
    assert!(offset_of!(PeersumControl, norm_words) < HEAD_BYTES);
    assert!(offset_of!(PeersumControl, own_norm_words) < HEAD_BYTES);
    // Claim and reserved words, flags: no padding either.
    assert!(size_of::<PeersumControl>() == HEAD_BYTES + 32 * 4 + blocks * RANKS * 8);
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ring_starts_with_the_four_calls_before_the_first_also_across_the_wrap() {
        for (push, pull) in [(0, 1), (0, 65535), (u32::MAX, 2), (7, 65533)] {
            let control = initial_control(StartEpochs { push, pull });
            let first = sequence(push, pull);
            for back in 1..=4 {
                let sequence = first.wrapping_sub(back);
                let slot = usize::from(sequence) % 4;
                assert_eq!(control.own_headers[slot], u64::from(sequence) << 48);
                assert!(
                    control.headers[slot]
                        .iter()
                        .all(|&header| header == control.own_headers[slot])
                );
            }
        }
    }

    #[test]
    fn push_slots_are_whole_groups_of_both_halves_whatever_size_is_set() {
        for world_size in 2..=8 {
            for push_half_bytes in (0..40_000).step_by(88).chain([1 << 20, (32 << 20) + 1]) {
                let layout = ArenaLayout::new(world_size, 1 << 20, push_half_bytes, 0);
                let groups = 2 * slot_group_bytes(world_size);
                assert_eq!(
                    layout.push_half_bytes % groups,
                    0,
                    "{world_size} {layout:?}"
                );
                assert!(layout.push_half_bytes >= push_half_bytes.max(MIN_PUSH_HALF_BYTES));
                for route in [Route::PushOneShot, Route::PushTwoShot] {
                    assert!(layout.capacity_units(route) > 0);
                }
            }
        }
    }

    #[test]
    fn the_parts_of_an_arena_do_not_overlap() {
        let layout = ArenaLayout::new(3, 1000, 333, 77);
        assert!(layout.push_offset >= size_of::<PeersumControl>() as u64);
        assert_eq!(
            layout.staging_offset,
            layout.push_offset + 2 * layout.push_half_bytes
        );
        assert_eq!(
            layout.probe_offset,
            layout.staging_offset + 2 * layout.staging_half_bytes
        );
        assert!(layout.total_bytes >= layout.probe_offset + 77);
        assert!(layout.push_half_bytes >= 333 && layout.staging_half_bytes >= 1000);
    }
}
