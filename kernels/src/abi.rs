//! Bindings of `abi.h`.
#![allow(missing_docs, non_snake_case, clippy::unreadable_literal)]

pub const PEERSUM_ABI_VERSION: u32 = 1;
pub const PEERSUM_MAX_WORLD_SIZE: u32 = 8;
pub const PEERSUM_MAX_BLOCKS: u32 = 256;
pub const PEERSUM_MAX_THREADS: u32 = 512;
pub const PEERSUM_MIN_THREADS: u32 = 8;
pub const PEERSUM_UNIT_BYTES: u32 = 16;
pub const PEERSUM_SLOT_EMPTY: u32 = 0xFFFFFFFF;
pub const PEERSUM_SLOT_EMPTY_SUBSTITUTE: u32 = 0x7FFFFFFF;
pub const PEERSUM_HEADER_RING: u32 = 4;
pub const PEERSUM_HEADER_SEQUENCE_SHIFT: u32 = 48;
pub const PEERSUM_HEADER_BUFFER_SHIFT: u32 = 45;
pub const PEERSUM_HEADER_SOURCE_SHIFT: u32 = 44;
pub const PEERSUM_HEADER_FAMILY_SHIFT: u32 = 43;
pub const PEERSUM_HEADER_ALGORITHM_SHIFT: u32 = 42;
pub const PEERSUM_HEADER_DTYPE_SHIFT: u32 = 40;
pub const PEERSUM_HEADER_BYTES_BITS: u32 = 40;
pub const PEERSUM_HEADER_BUFFER_BITS: u32 = 3;
pub const PEERSUM_FAMILY_PUSH: u32 = 0;
pub const PEERSUM_FAMILY_PULL: u32 = 1;
pub const PEERSUM_ALGORITHM_ONE_SHOT: u32 = 0;
pub const PEERSUM_ALGORITHM_TWO_SHOT: u32 = 1;
pub const PEERSUM_DTYPE_F16: u32 = 0;
pub const PEERSUM_DTYPE_BF16: u32 = 1;
pub const PEERSUM_DTYPE_F32: u32 = 2;
pub const PEERSUM_SOURCE_ORDINARY: u32 = 0;
pub const PEERSUM_SOURCE_SYMMETRIC: u32 = 1;
pub const PEERSUM_PULL_PHASES: u32 = 2;
pub const PEERSUM_PULL_PHASE_OPEN: u32 = 0;
pub const PEERSUM_PULL_PHASE_SECOND: u32 = 1;
pub const PEERSUM_CAUSE_NONE: u32 = 0;
pub const PEERSUM_CAUSE_TIMEOUT: u32 = 1;
pub const PEERSUM_CAUSE_ABORT: u32 = 2;
pub const PEERSUM_CAUSE_POISON: u32 = 3;
pub const PEERSUM_CAUSE_DISAGREEMENT: u32 = 4;
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct PeersumBlockState {
    pub pull_epoch: u64,
    pub push_epoch: u32,
    pub poison: u32,
}
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct PeersumControl {
    pub blocks: [PeersumBlockState; 256],
    pub headers: [[u64; 8]; 4],
    pub own_headers: [u64; 4],
    pub leave_claim: u32,
    pub reserved: [u32; 55],
    pub pull_flags: [[u64; 8]; 256],
}
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct PeersumStatus {
    pub abort: u32,
    pub padding: [u32; 31],
    pub valid: u32,
    pub cause: u32,
    pub rank: u32,
    pub peer: u32,
    pub family: u32,
    pub algorithm: u32,
    pub block: u32,
    pub reserved: u32,
    pub epoch: u64,
    pub waited_ns: u64,
    pub own_header: u64,
    pub peer_header: u64,
    pub padding_end: [u32; 16],
}
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct PeersumParams {
    pub arena: [u64; 8],
    pub symmetric: [u64; 8],
    pub input: u64,
    pub output: u64,
    pub elements: u64,
    pub push_offset: u64,
    pub push_half_bytes: u64,
    pub staging_offset: u64,
    pub staging_half_bytes: u64,
    pub status: u64,
    pub timeout_ns: u64,
    pub rank: u32,
    pub source: u32,
    pub buffer: u32,
    pub reserved: u32,
}
