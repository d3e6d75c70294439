//! What the host and the kernels agree on. Its documentation is `kernels/abi.h`.
//!
//! Generated from that file by `cargo xtask bindings`; do not edit.
#![allow(missing_docs, non_camel_case_types)]

pub const PEERSUM_ABI_VERSION: u32 = 10;
pub const PEERSUM_MAX_WORLD_SIZE: u32 = 8;
pub const PEERSUM_MAX_BLOCKS: u32 = 256;
pub const PEERSUM_MAX_THREADS: u32 = 512;
pub const PEERSUM_MIN_THREADS: u32 = 8;
pub const PEERSUM_WARP_THREADS: u32 = 32;
pub const PEERSUM_MAX_HIDDEN: u32 = 32768;
pub const PEERSUM_MAX_ROW_UNITS_PER_THREAD: u32 = 64;
pub const PEERSUM_KEPT_ROW_UNITS_OF_PAIR: u32 = 4;
pub const PEERSUM_KEPT_ROW_UNITS: u32 = 2;
pub const PEERSUM_MAX_CLUSTER_BLOCKS: u32 = 8;
pub const PEERSUM_MAX_CLUSTER_THREADS: u32 = 1024;
pub const PEERSUM_MAX_CLUSTERED_THREADS: u32 = 256;
pub const PEERSUM_UNIT_BYTES: u32 = 16;
pub const PEERSUM_SLOT_GROUP: u32 = 32;
pub const PEERSUM_SLOT_EMPTY: u32 = 4294967295;
pub const PEERSUM_SLOT_EMPTY_SUBSTITUTE: u32 = 2147483647;
pub const PEERSUM_HEADER_RING: u32 = 4;
pub const PEERSUM_HEADER_SEQUENCE_SHIFT: u32 = 48;
pub const PEERSUM_HEADER_OPERATION_SHIFT: u32 = 45;
pub const PEERSUM_HEADER_SOURCE_SHIFT: u32 = 44;
pub const PEERSUM_HEADER_FAMILY_SHIFT: u32 = 43;
pub const PEERSUM_HEADER_ALGORITHM_SHIFT: u32 = 42;
pub const PEERSUM_HEADER_DTYPE_SHIFT: u32 = 38;
pub const PEERSUM_HEADER_ROOT_SHIFT: u32 = 35;
pub const PEERSUM_HEADER_BYTES_BITS: u32 = 35;
pub const PEERSUM_HEADER_DTYPE_BITS: u32 = 4;
pub const PEERSUM_HEADER_ROOT_BITS: u32 = 3;
pub const PEERSUM_ROOT_MORE_PIECES_FOLLOW: u32 = 1;
pub const PEERSUM_ROOT_FUSED: u32 = 2;
pub const PEERSUM_HEADER_OPERATION_BITS: u32 = 3;
pub const PEERSUM_DETAIL_BUFFER_SHIFT: u32 = 36;
pub const PEERSUM_DETAIL_BUFFER_BITS: u32 = 12;
pub const PEERSUM_DETAIL_OFFSET_BITS: u32 = 36;
pub const PEERSUM_NORM_WORDS: u32 = 2;
pub const PEERSUM_NORM_WORD_EPSILON: u32 = 0;
pub const PEERSUM_NORM_WORD_OFFSET: u32 = 1;
pub const PEERSUM_NORM_MARK_SHIFT: u32 = 47;
pub const PEERSUM_NORM_OUTPUT_SHIFT: u32 = 33;
pub const PEERSUM_NORM_OUTPUT_BITS: u32 = 2;
pub const PEERSUM_NORM_VALUE_SHIFT: u32 = 32;
pub const PEERSUM_NORM_OUTPUT_ROWS: u32 = 0;
pub const PEERSUM_NORM_OUTPUT_FP8_STATIC: u32 = 1;
pub const PEERSUM_NORM_OUTPUT_FP8_PER_TOKEN: u32 = 2;
pub const PEERSUM_OPERATION_ALL_REDUCE: u32 = 0;
pub const PEERSUM_OPERATION_RMS_NORM: u32 = 1;
pub const PEERSUM_OPERATION_ALL_GATHER: u32 = 2;
pub const PEERSUM_OPERATION_REDUCE_SCATTER: u32 = 3;
pub const PEERSUM_OPERATION_BROADCAST: u32 = 4;
pub const PEERSUM_FAMILY_PUSH: u32 = 0;
pub const PEERSUM_FAMILY_PULL: u32 = 1;
pub const PEERSUM_ALGORITHM_ONE_SHOT: u32 = 0;
pub const PEERSUM_ALGORITHM_TWO_SHOT: u32 = 1;
pub const PEERSUM_DTYPE_F16: u32 = 0;
pub const PEERSUM_DTYPE_BF16: u32 = 1;
pub const PEERSUM_DTYPE_F32: u32 = 2;
pub const PEERSUM_DTYPE_U8: u32 = 3;
pub const PEERSUM_DTYPE_I8: u32 = 4;
pub const PEERSUM_DTYPE_U32: u32 = 5;
pub const PEERSUM_DTYPE_I32: u32 = 6;
pub const PEERSUM_DTYPE_U64: u32 = 7;
pub const PEERSUM_DTYPE_I64: u32 = 8;
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
pub const PEERSUM_FLAG_SOURCE_ALIGNED: u32 = 1;
pub const PEERSUM_FLAG_ONE_DEVICE: u32 = 2;
pub type peersum_u32 = ::core::ffi::c_uint;
pub type peersum_u64 = ::core::ffi::c_ulonglong;
/// The state that one block keeps from call to call. It is in device memory, so a replayed graph counts as an eager call does. Between calls all blocks hold equal epochs: the launched blocks also advance the words of the blocks that a call did not launch.
#[repr(C)]
#[derive(Debug, Default, Copy, Clone)]
pub struct PeersumBlockState {
    /// Calls of the pull family so far, plus the start value. 64 bits, as flags are compared by >=.
    pub pull_epoch: peersum_u64,
    /// Calls of the push family so far, plus the start value. Its lowest bit selects the half.
    pub push_epoch: peersum_u32,
    /// 0, or 1 + the rank that left first. Written by this rank and by every peer that leaves; never reset.
    pub poison: peersum_u32,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of PeersumBlockState"][::core::mem::size_of::<PeersumBlockState>() - 16usize];
    [
        "Alignment of PeersumBlockState",
    ][::core::mem::align_of::<PeersumBlockState>() - 8usize];
    [
        "Offset of field: PeersumBlockState::pull_epoch",
    ][::core::mem::offset_of!(PeersumBlockState, pull_epoch) - 0usize];
    [
        "Offset of field: PeersumBlockState::push_epoch",
    ][::core::mem::offset_of!(PeersumBlockState, push_epoch) - 8usize];
    [
        "Offset of field: PeersumBlockState::poison",
    ][::core::mem::offset_of!(PeersumBlockState, poison) - 12usize];
};
/// The head of every arena.
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct PeersumControl {
    pub blocks: [PeersumBlockState; 256usize],
    /// headers\[sequence % ring\]\[source\]; each source stores its own. README.md, "Headers and details".
    pub headers: [[peersum_u64; 8usize]; 4usize],
    /// The headers of this rank's own calls. Only this rank reads and writes them.
    pub own_headers: [peersum_u64; 4usize],
    /// The details of the same calls. Only a call with a detail stores one; the receiver compares it in the next call and then stores 0.
    pub details: [[peersum_u64; 8usize]; 4usize],
    pub own_details: [peersum_u64; 4usize],
    /// norm_words\[sequence % ring\]\[source\]. The receiver stores 0 over those that it has compared.
    pub norm_words: [[[peersum_u64; 2usize]; 8usize]; 4usize],
    pub own_norm_words: [[peersum_u64; 2usize]; 4usize],
    /// 0. 1 once a thread of this rank has claimed the task of recording the failure and poisoning all ranks. 2 once it has done so.
    pub leave_claim: peersum_u32,
    pub reserved: [peersum_u32; 31usize],
    /// pull_flags\[block\]\[source\]; each source stores its own.
    pub pull_flags: [[peersum_u64; 8usize]; 256usize],
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of PeersumControl"][::core::mem::size_of::<PeersumControl>() - 21760usize];
    ["Alignment of PeersumControl"][::core::mem::align_of::<PeersumControl>() - 8usize];
    [
        "Offset of field: PeersumControl::blocks",
    ][::core::mem::offset_of!(PeersumControl, blocks) - 0usize];
    [
        "Offset of field: PeersumControl::headers",
    ][::core::mem::offset_of!(PeersumControl, headers) - 4096usize];
    [
        "Offset of field: PeersumControl::own_headers",
    ][::core::mem::offset_of!(PeersumControl, own_headers) - 4352usize];
    [
        "Offset of field: PeersumControl::details",
    ][::core::mem::offset_of!(PeersumControl, details) - 4384usize];
    [
        "Offset of field: PeersumControl::own_details",
    ][::core::mem::offset_of!(PeersumControl, own_details) - 4640usize];
    [
        "Offset of field: PeersumControl::norm_words",
    ][::core::mem::offset_of!(PeersumControl, norm_words) - 4672usize];
    [
        "Offset of field: PeersumControl::own_norm_words",
    ][::core::mem::offset_of!(PeersumControl, own_norm_words) - 5184usize];
    [
        "Offset of field: PeersumControl::leave_claim",
    ][::core::mem::offset_of!(PeersumControl, leave_claim) - 5248usize];
    [
        "Offset of field: PeersumControl::reserved",
    ][::core::mem::offset_of!(PeersumControl, reserved) - 5252usize];
    [
        "Offset of field: PeersumControl::pull_flags",
    ][::core::mem::offset_of!(PeersumControl, pull_flags) - 5376usize];
};
/// One rank's failure record, in host memory that its device maps. The host writes `abort`; the device writes the rest, once.
#[repr(C)]
#[derive(Debug, Default, Copy, Clone)]
pub struct PeersumStatus {
    pub abort: peersum_u32,
    pub padding: [peersum_u32; 31usize],
    /// Stored as 1, with release, after every field below.
    pub valid: peersum_u32,
    pub cause: peersum_u32,
    pub rank: peersum_u32,
    /// The rank that this rank waited for; this rank itself if it waited for none.
    pub peer: peersum_u32,
    pub family: peersum_u32,
    pub algorithm: peersum_u32,
    pub block: peersum_u32,
    /// The rank that left first.
    pub origin: peersum_u32,
    pub epoch: peersum_u64,
    pub waited_ns: peersum_u64,
    /// This rank's header and the peer's, as last seen. They belong to the call in which the two differ or the wait ended.
    pub own_header: peersum_u64,
    pub peer_header: peersum_u64,
    /// The details of the same call. 0 if it has none; the peer's is also 0 if it had not arrived.
    pub own_detail: peersum_u64,
    pub peer_detail: peersum_u64,
    /// The norm words of the same call, in the same way.
    pub own_norm_words: [peersum_u64; 2usize],
    pub peer_norm_words: [peersum_u64; 2usize],
    pub padding_end: [peersum_u32; 4usize],
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of PeersumStatus"][::core::mem::size_of::<PeersumStatus>() - 256usize];
    ["Alignment of PeersumStatus"][::core::mem::align_of::<PeersumStatus>() - 8usize];
    [
        "Offset of field: PeersumStatus::abort",
    ][::core::mem::offset_of!(PeersumStatus, abort) - 0usize];
    [
        "Offset of field: PeersumStatus::padding",
    ][::core::mem::offset_of!(PeersumStatus, padding) - 4usize];
    [
        "Offset of field: PeersumStatus::valid",
    ][::core::mem::offset_of!(PeersumStatus, valid) - 128usize];
    [
        "Offset of field: PeersumStatus::cause",
    ][::core::mem::offset_of!(PeersumStatus, cause) - 132usize];
    [
        "Offset of field: PeersumStatus::rank",
    ][::core::mem::offset_of!(PeersumStatus, rank) - 136usize];
    [
        "Offset of field: PeersumStatus::peer",
    ][::core::mem::offset_of!(PeersumStatus, peer) - 140usize];
    [
        "Offset of field: PeersumStatus::family",
    ][::core::mem::offset_of!(PeersumStatus, family) - 144usize];
    [
        "Offset of field: PeersumStatus::algorithm",
    ][::core::mem::offset_of!(PeersumStatus, algorithm) - 148usize];
    [
        "Offset of field: PeersumStatus::block",
    ][::core::mem::offset_of!(PeersumStatus, block) - 152usize];
    [
        "Offset of field: PeersumStatus::origin",
    ][::core::mem::offset_of!(PeersumStatus, origin) - 156usize];
    [
        "Offset of field: PeersumStatus::epoch",
    ][::core::mem::offset_of!(PeersumStatus, epoch) - 160usize];
    [
        "Offset of field: PeersumStatus::waited_ns",
    ][::core::mem::offset_of!(PeersumStatus, waited_ns) - 168usize];
    [
        "Offset of field: PeersumStatus::own_header",
    ][::core::mem::offset_of!(PeersumStatus, own_header) - 176usize];
    [
        "Offset of field: PeersumStatus::peer_header",
    ][::core::mem::offset_of!(PeersumStatus, peer_header) - 184usize];
    [
        "Offset of field: PeersumStatus::own_detail",
    ][::core::mem::offset_of!(PeersumStatus, own_detail) - 192usize];
    [
        "Offset of field: PeersumStatus::peer_detail",
    ][::core::mem::offset_of!(PeersumStatus, peer_detail) - 200usize];
    [
        "Offset of field: PeersumStatus::own_norm_words",
    ][::core::mem::offset_of!(PeersumStatus, own_norm_words) - 208usize];
    [
        "Offset of field: PeersumStatus::peer_norm_words",
    ][::core::mem::offset_of!(PeersumStatus, peer_norm_words) - 224usize];
    [
        "Offset of field: PeersumStatus::padding_end",
    ][::core::mem::offset_of!(PeersumStatus, padding_end) - 240usize];
};
/// The only argument of every entry point. All addresses are in this rank's address space.
#[repr(C)]
#[derive(Debug, Default, Copy, Clone)]
pub struct PeersumParams {
    /// arena\[step\] is the arena of rank (rank + step) % world size; this rank's own comes first. In this order ranks do not all store to the same peer at once, and a kernel finds its own arena without an indexed read.
    pub arena: [peersum_u64; 8usize],
    /// What a pull call reads, by rank: with PEERSUM_SOURCE_SYMMETRIC each rank's buffer, element-aligned; otherwise each rank's arena.
    pub source: [peersum_u64; 8usize],
    /// Element-aligned. May equal `output`, or this rank's chunk of `output` and `input` may be the same memory, but they do not overlap otherwise. Unused for a symmetric source.
    pub input: peersum_u64,
    /// Element-aligned. Ignored by a symmetric two-shot call, whose result replaces the symmetric buffer.
    pub output: peersum_u64,
    /// Elements of the module's type: of the input of an all-gather, of the output of a reduce-scatter, else of both. From 1 to what the call's slots or its staging half hold, and fewer than 2^31 units.
    pub elements: peersum_u64,
    /// Offsets and sizes within an arena, in bytes, multiples of 128. The push slots take 2 * push_half_bytes. push_half_bytes is a multiple of both halves of a slot group (2 * sources * PEERSUM_SLOT_GROUP units), because the gather slots of a two-shot call begin there. If they began within a group, they would be one-shot slots of the other half.
    pub push_offset: peersum_u64,
    pub push_half_bytes: peersum_u64,
    pub staging_offset: peersum_u64,
    pub staging_half_bytes: peersum_u64,
    /// The PeersumStatus of this rank, at the address that its device uses.
    pub status: peersum_u64,
    /// The time limit of a wait for a peer, in nanoseconds.
    pub timeout_ns: peersum_u64,
    /// This call's header without the sequence, which the device counts. Its source bit gives the kind of input; family and algorithm must be those of the entry point, and so must be the dtype unless the module moves bytes.
    pub header: peersum_u64,
    /// This call's detail without the sequence. Unused for an ordinary source.
    pub detail: peersum_u64,
    pub rank: peersum_u32,
    /// PEERSUM_FLAG_...
    pub flags: peersum_u32,
    /// What follows, up to fp8_row_scales, is for the entry points of norm.cu alone. It stands behind, so that what the other kernels load lies in as few cache lines as possible. It needs `elements` to be a multiple of `hidden`, `hidden` to be a multiple of a unit, and every address to be a multiple of PEERSUM_UNIT_BYTES. This call's norm words without the sequence.
    pub norm_words: [peersum_u64; 2usize],
    /// Read and written in place; 0 if there is none. It overlaps no other buffer.
    pub residual: peersum_u64,
    /// `hidden` elements.
    pub weight: peersum_u64,
    /// The length of a row, from one unit to PEERSUM_MAX_HIDDEN elements.
    pub hidden: peersum_u32,
    pub epsilon: f32,
    pub weight_offset: f32,
    /// `elements` / `hidden`.
    pub rows: peersum_u32,
    /// FP8 (E4M3) of the output, one byte an element; 0 if there is none. Otherwise one of the next two is not 0.
    pub fp8_values: peersum_u64,
    /// One float32 by which every element is multiplied; a multiple of its size, as the next.
    pub fp8_inverse_scale: peersum_u64,
    /// One float32 a row, which the call writes: the scale by which the row was divided.
    pub fp8_row_scales: peersum_u64,
    /// Bytes from one rank's chunk to the next: whole elements, 0 in an all-reduce (README.md).
    pub chunk_stride: peersum_u64,
}
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of PeersumParams"][::core::mem::size_of::<PeersumParams>() - 304usize];
    ["Alignment of PeersumParams"][::core::mem::align_of::<PeersumParams>() - 8usize];
    [
        "Offset of field: PeersumParams::arena",
    ][::core::mem::offset_of!(PeersumParams, arena) - 0usize];
    [
        "Offset of field: PeersumParams::source",
    ][::core::mem::offset_of!(PeersumParams, source) - 64usize];
    [
        "Offset of field: PeersumParams::input",
    ][::core::mem::offset_of!(PeersumParams, input) - 128usize];
    [
        "Offset of field: PeersumParams::output",
    ][::core::mem::offset_of!(PeersumParams, output) - 136usize];
    [
        "Offset of field: PeersumParams::elements",
    ][::core::mem::offset_of!(PeersumParams, elements) - 144usize];
    [
        "Offset of field: PeersumParams::push_offset",
    ][::core::mem::offset_of!(PeersumParams, push_offset) - 152usize];
    [
        "Offset of field: PeersumParams::push_half_bytes",
    ][::core::mem::offset_of!(PeersumParams, push_half_bytes) - 160usize];
    [
        "Offset of field: PeersumParams::staging_offset",
    ][::core::mem::offset_of!(PeersumParams, staging_offset) - 168usize];
    [
        "Offset of field: PeersumParams::staging_half_bytes",
    ][::core::mem::offset_of!(PeersumParams, staging_half_bytes) - 176usize];
    [
        "Offset of field: PeersumParams::status",
    ][::core::mem::offset_of!(PeersumParams, status) - 184usize];
    [
        "Offset of field: PeersumParams::timeout_ns",
    ][::core::mem::offset_of!(PeersumParams, timeout_ns) - 192usize];
    [
        "Offset of field: PeersumParams::header",
    ][::core::mem::offset_of!(PeersumParams, header) - 200usize];
    [
        "Offset of field: PeersumParams::detail",
    ][::core::mem::offset_of!(PeersumParams, detail) - 208usize];
    [
        "Offset of field: PeersumParams::rank",
    ][::core::mem::offset_of!(PeersumParams, rank) - 216usize];
    [
        "Offset of field: PeersumParams::flags",
    ][::core::mem::offset_of!(PeersumParams, flags) - 220usize];
    [
        "Offset of field: PeersumParams::norm_words",
    ][::core::mem::offset_of!(PeersumParams, norm_words) - 224usize];
    [
        "Offset of field: PeersumParams::residual",
    ][::core::mem::offset_of!(PeersumParams, residual) - 240usize];
    [
        "Offset of field: PeersumParams::weight",
    ][::core::mem::offset_of!(PeersumParams, weight) - 248usize];
    [
        "Offset of field: PeersumParams::hidden",
    ][::core::mem::offset_of!(PeersumParams, hidden) - 256usize];
    [
        "Offset of field: PeersumParams::epsilon",
    ][::core::mem::offset_of!(PeersumParams, epsilon) - 260usize];
    [
        "Offset of field: PeersumParams::weight_offset",
    ][::core::mem::offset_of!(PeersumParams, weight_offset) - 264usize];
    [
        "Offset of field: PeersumParams::rows",
    ][::core::mem::offset_of!(PeersumParams, rows) - 268usize];
    [
        "Offset of field: PeersumParams::fp8_values",
    ][::core::mem::offset_of!(PeersumParams, fp8_values) - 272usize];
    [
        "Offset of field: PeersumParams::fp8_inverse_scale",
    ][::core::mem::offset_of!(PeersumParams, fp8_inverse_scale) - 280usize];
    [
        "Offset of field: PeersumParams::fp8_row_scales",
    ][::core::mem::offset_of!(PeersumParams, fp8_row_scales) - 288usize];
    [
        "Offset of field: PeersumParams::chunk_stride",
    ][::core::mem::offset_of!(PeersumParams, chunk_stride) - 296usize];
};
