//! What connects a rank to its group: modules, its arena, its peers' arenas.

use std::mem::offset_of;
use std::sync::Arc;

use peersum_artifact::Dtype;
use peersum_kernels::abi::{self, PeersumBlockState, PeersumControl, PeersumParams};

use super::layout::{ArenaLayout, RANKS};
use super::lent::LentMemory;
use super::modules::Modules;
use super::occupancy::Occupancy;
use super::processes::PeerProcess;
use super::sharing::SharedMemory;
use super::symmetric::SymmetricRegion;
use crate::call_signature::SymmetricPart;
use crate::device::{Device, MemorySharing, StatusRecord};
use crate::dispatch::{LaunchLimits, Placement, Route};
use crate::loader::LoadReport;

/// A symmetric buffer on every rank.
pub(super) struct SymmetricMapping<D: Device> {
    /// By rank, as this rank maps them.
    pub(super) addresses: [u64; RANKS],
    /// Kept until teardown: a late owner may still write into it.
    pub(super) region: Arc<SymmetricRegion<D>>,
    pub(super) mappings: Vec<D::Mapping>,
    pub(super) bytes: u64,
}

/// A part of a symmetric buffer.
pub(super) struct SymmetricRange {
    /// What the call tells the peers of it, so that ranks that use different ones find out.
    pub(super) part: SymmetricPart,
    /// By rank, as this rank maps them.
    pub(super) addresses: [u64; RANKS],
}

/// What a rank of a group of two or more holds.
pub(super) struct Connected<D: Device> {
    pub(super) modules: Modules<D>,
    pub(super) reports: Vec<LoadReport>,
    pub(super) layout: ArenaLayout,
    /// Everything that does not change from call to call.
    pub(super) params: PeersumParams,
    pub(super) status: StatusRecord,
    /// What any launch of the group keeps to.
    pub(super) limits: LaunchLimits,
    pub(super) sharing: MemorySharing,
    pub(super) symmetric: Vec<SymmetricMapping<D>>,
    /// The peers' that are not threads of this one.
    pub(super) processes: Vec<PeerProcess>,
    /// Every rank's arena. `params` has its addresses.
    pub(super) arena: SharedMemory<D>,
    /// Held so that other communicators of this process leave this one's blocks their seats.
    pub(super) _occupancy: Occupancy,
}

impl<D: Device> Connected<D> {
    /// Unmaps the peers' memory, which ends what keeps them from freeing it.
    pub(super) fn close_mappings(&mut self) {
        self.arena.mappings.clear();
        for buffer in &mut self.symmetric {
            buffer.mappings.clear();
        }
    }

    /// This rank's memory: its arena and its symmetric buffers.
    fn memory(&self) -> impl Iterator<Item = &LentMemory<D>> {
        let symmetric = self.symmetric.iter().map(|buffer| &buffer.region.memory);
        std::iter::once(&self.arena.memory).chain(symmetric)
    }

    /// Whether a peer uses this rank's memory without keeping it alive.
    pub(super) fn lent_by_address(&self) -> bool {
        self.memory().any(|memory| memory.lent_by_address)
    }

    /// No peer uses this rank's memory any more.
    pub(super) fn peers_let_go(&self) {
        self.memory().for_each(LentMemory::peers_let_go);
    }

    /// Gives up all that a kernel of this rank may still use, without freeing or unmapping it.
    pub(super) fn leak(self) {
        let Connected {
            modules,
            status,
            symmetric,
            arena,
            _occupancy: seats,
            ..
        } = self;
        // Its blocks keep their seats as long as it may run.
        std::mem::forget((modules, status, symmetric, arena, seats));
    }

    /// The device memory that this rank holds.
    pub(super) fn memory_bytes(&self) -> u64 {
        let symmetric: u64 = self.symmetric.iter().map(|buffer| buffer.bytes).sum();
        self.layout.total_bytes + symmetric
    }

    /// The part of a symmetric buffer that `bytes` bytes at an address of this rank are. A handful
    /// of buffers at most: a scan will do.
    pub(super) fn find_symmetric(&self, address: u64, bytes: u64) -> Option<SymmetricRange> {
        let own = self.params.rank as usize;
        (0..).zip(&self.symmetric).find_map(|(index, buffer)| {
            let offset = address.checked_sub(buffer.addresses[own])?;
            (offset < buffer.bytes && bytes <= buffer.bytes - offset).then(|| SymmetricRange {
                part: SymmetricPart {
                    buffer: index,
                    offset_bytes: offset,
                },
                addresses: buffer.addresses.map(|base| base.wrapping_add(offset)),
            })
        })
    }

    /// The most elements that one launch of a route reduces.
    pub(super) fn most_elements(&self, route: Route, dtype: Dtype) -> u64 {
        let unit_elements = u64::from(abi::PEERSUM_UNIT_BYTES) / dtype.size_bytes() as u64;
        self.layout.capacity_units(route) * unit_elements
    }

    /// The kind of source and destination of a call whose buffers have `bytes` bytes.
    pub(super) fn placement(&self, input: u64, output: u64, bytes: u64) -> Placement {
        match self.find_symmetric(input, bytes) {
            None => Placement::Ordinary,
            Some(_) if input == output => Placement::SymmetricInPlace,
            Some(_) => Placement::Symmetric,
        }
    }

    /// The addresses of every rank's poison words, one for each block.
    pub(super) fn poison_words(&self) -> impl Iterator<Item = u64> {
        let first = offset_of!(PeersumControl, blocks) + offset_of!(PeersumBlockState, poison);
        let arenas = self.arena.addresses.into_iter();
        let arenas = arenas.take(self.layout.world_size as usize);
        arenas.flat_map(move |arena| {
            (0..abi::PEERSUM_MAX_BLOCKS as usize)
                .map(move |block| arena + (first + block * size_of::<PeersumBlockState>()) as u64)
        })
    }
}
