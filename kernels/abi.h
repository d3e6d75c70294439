/* abi.h - what the host and the kernels agree on: constants, the call's parameters, the memory that
 * ranks share.
 *
 * Plain C without includes. `cargo xtask bindings` makes kernels/src/abi.rs from it.
 *
 * Every rank owns one arena, which every peer maps:
 *
 *   | PeersumControl | push slots, both halves | staging half 0 | staging half 1 |
 *
 * The push slots are 16-byte units, [unit / PEERSUM_SLOT_GROUP][half][source][unit %
 * PEERSUM_SLOT_GROUP]: a call uses one half of each group; the slots of one unit lie a constant
 * distance apart, neighbouring threads' slots of one source lie side by side, and all that a small
 * call touches, control block included, lies in one page. A pair has one source, the peer; larger
 * groups send to themselves too. A two-shot call uses the first half of the memory so for the units
 * of this rank's chunk, and the second for the reduced units, with the owner as the source. Every
 * word of it is PEERSUM_SLOT_EMPTY between calls. A staging half holds one rank's input as whole
 * units, and for a push call units of the input or output that are not one aligned access: it is at
 * least as large as the largest call of either family.
 */
#ifndef PEERSUM_ABI_H
#define PEERSUM_ABI_H

typedef unsigned int peersum_u32;
typedef unsigned long long peersum_u64;

/* Raised whenever a structure or a meaning below changes. */
#define PEERSUM_ABI_VERSION 5

#define PEERSUM_MAX_WORLD_SIZE 8
/* The largest grid. The per-block words below exist for each of these, launched or not. */
#define PEERSUM_MAX_BLOCKS 256
/* The most threads of a block that handle units. A block is launched with world-size more, behind
 * these: they exchange headers and flags, one with each peer. */
#define PEERSUM_MAX_THREADS 512
/* The fewest. */
#define PEERSUM_MIN_THREADS 8
/* On a GPU they are a multiple of this: those that signal have a warp of their own, as a barrier
 * needs it that only some threads wait at. */
#define PEERSUM_WARP_THREADS 32

/* The unit of work and of every slot, in bytes. */
#define PEERSUM_UNIT_BYTES 16
/* Units whose slots of one source lie side by side: what a warp stores at once. */
#define PEERSUM_SLOT_GROUP 32
/* A slot's word while its data has not arrived. A NaN in f16, bf16 and f32; never sent. */
#define PEERSUM_SLOT_EMPTY 0xFFFFFFFFu
/* What a producer sends for a word that holds exactly PEERSUM_SLOT_EMPTY: NaN as well, so the sum
 * is the same. */
#define PEERSUM_SLOT_EMPTY_SUBSTITUTE 0x7FFFFFFFu

/* Headers of the last calls that a (receiver, source) pair keeps. */
#define PEERSUM_HEADER_RING 4

/* A header: sequence | operation | source | family | algorithm | dtype | bytes, from the top. */
#define PEERSUM_HEADER_SEQUENCE_SHIFT 48
#define PEERSUM_HEADER_OPERATION_SHIFT 45
#define PEERSUM_HEADER_SOURCE_SHIFT 44
#define PEERSUM_HEADER_FAMILY_SHIFT 43
#define PEERSUM_HEADER_ALGORITHM_SHIFT 42
#define PEERSUM_HEADER_DTYPE_SHIFT 40
#define PEERSUM_HEADER_BYTES_BITS 40
#define PEERSUM_HEADER_OPERATION_BITS 3

/* A detail: a second word, with what a header has no room for. Only calls with a symmetric source
 * send one. Never 0.
 * sequence | 1 + the buffer's index | offset in bytes, from the top. */
#define PEERSUM_DETAIL_BUFFER_SHIFT 36
#define PEERSUM_DETAIL_BUFFER_BITS 12
#define PEERSUM_DETAIL_OFFSET_BITS 36

#define PEERSUM_OPERATION_ALL_REDUCE 0
#define PEERSUM_FAMILY_PUSH 0
#define PEERSUM_FAMILY_PULL 1
#define PEERSUM_ALGORITHM_ONE_SHOT 0
#define PEERSUM_ALGORITHM_TWO_SHOT 1
#define PEERSUM_DTYPE_F16 0
#define PEERSUM_DTYPE_BF16 1
#define PEERSUM_DTYPE_F32 2
/* An ordinary input: pushed, or copied by the pull kernel into its staging half. */
#define PEERSUM_SOURCE_ORDINARY 0
/* The input is a symmetric buffer that every rank maps: pull only. */
#define PEERSUM_SOURCE_SYMMETRIC 1

/* The phases of one pull call; a flag holds epoch * PEERSUM_PULL_PHASES + phase. */
#define PEERSUM_PULL_PHASES 2
#define PEERSUM_PULL_PHASE_OPEN 0
#define PEERSUM_PULL_PHASE_SECOND 1

/* Why a rank left a call. */
#define PEERSUM_CAUSE_NONE 0
/* A peer did not come within PeersumParams::timeout_ns. */
#define PEERSUM_CAUSE_TIMEOUT 1
/* The host set PeersumStatus::abort. */
#define PEERSUM_CAUSE_ABORT 2
/* A peer left and poisoned this rank. */
#define PEERSUM_CAUSE_POISON 3
/* A peer's header differs from this rank's own. */
#define PEERSUM_CAUSE_DISAGREEMENT 4

/* What one block keeps from call to call, in device memory, so that a replayed graph counts as an
 * eager call does. All blocks hold equal epochs between calls: a block also advances the words of
 * blocks that a call did not launch. */
typedef struct PeersumBlockState {
    /* Calls of the pull family so far, plus the start value. 64 bits: a flag is compared with >=.
     */
    peersum_u64 pull_epoch;
    /* Calls of the push family so far, plus the start value. Its lowest bit selects the half. */
    peersum_u32 push_epoch;
    /* 0, or 1 + the rank that left first. Written by this rank and by every peer that leaves; never
     * reset. */
    peersum_u32 poison;
} PeersumBlockState;

/* The head of every arena. */
typedef struct PeersumControl {
    PeersumBlockState blocks[PEERSUM_MAX_BLOCKS];
    /* headers[sequence % ring][source], stored by each source. README.md, "Headers and details". */
    peersum_u64 headers[PEERSUM_HEADER_RING][PEERSUM_MAX_WORLD_SIZE];
    /* What this rank itself called; read and written by this rank alone. */
    peersum_u64 own_headers[PEERSUM_HEADER_RING];
    /* The details of the same calls. A call with a detail stores one; the receiver compares it in
     * the next call and stores 0. */
    peersum_u64 details[PEERSUM_HEADER_RING][PEERSUM_MAX_WORLD_SIZE];
    peersum_u64 own_details[PEERSUM_HEADER_RING];
    /* 0; 1 once a thread of this rank has undertaken to record the failure and to poison all; 2
     * once it has. */
    peersum_u32 leave_claim;
    peersum_u32 reserved[47];
    /* pull_flags[block][source], stored by each source. */
    peersum_u64 pull_flags[PEERSUM_MAX_BLOCKS][PEERSUM_MAX_WORLD_SIZE];
} PeersumControl;

/* One rank's record in host memory that its device maps. The host writes `abort`; the device writes
 * the rest once. */
typedef struct PeersumStatus {
    peersum_u32 abort;
    peersum_u32 padding[31];
    /* Released as 1 after every field below. */
    peersum_u32 valid;
    peersum_u32 cause;
    peersum_u32 rank;
    /* Whom this rank waited for; itself if it waited for nobody. */
    peersum_u32 peer;
    peersum_u32 family;
    peersum_u32 algorithm;
    peersum_u32 block;
    /* The rank that left first. */
    peersum_u32 origin;
    peersum_u64 epoch;
    peersum_u64 waited_ns;
    /* This rank's header and the peer's, as last seen, of the call in which the two differ or the
     * wait ended. */
    peersum_u64 own_header;
    peersum_u64 peer_header;
    /* The details of the same call; 0 if it has none, or if the peer's had not come. */
    peersum_u64 own_detail;
    peersum_u64 peer_detail;
    peersum_u32 padding_end[12];
} PeersumStatus;

/* Every address of a symmetric source is a multiple of PEERSUM_UNIT_BYTES. Unused for an ordinary
 * one. */
#define PEERSUM_FLAG_SOURCE_ALIGNED 1
/* All ranks are of one process and on one device, so that its scope orders what they exchange. */
#define PEERSUM_FLAG_ONE_DEVICE 2

/* The one argument of every entry point. Addresses are those of this rank's address space. */
typedef struct PeersumParams {
    /* The arena of rank (rank + step) % world size, by step: this rank's own first. In this order
     * ranks do not all store to the same peer at once, and a kernel knows its own without an
     * indexed read. */
    peersum_u64 arena[PEERSUM_MAX_WORLD_SIZE];
    /* What a pull call reads, by rank. PEERSUM_SOURCE_SYMMETRIC: each rank's buffer,
     * element-aligned. Otherwise each rank's arena. */
    peersum_u64 source[PEERSUM_MAX_WORLD_SIZE];
    /* Element-aligned; may equal `output`, may not overlap it otherwise. Unused for a symmetric
     * source. */
    peersum_u64 input;
    /* Element-aligned. A symmetric two-shot call ignores it: its result replaces the symmetric
     * buffer. */
    peersum_u64 output;
    /* From 1 up to what the call's slots or its staging half hold, and fewer than 2^31 units. */
    peersum_u64 elements;
    /* Offsets and sizes within an arena, in bytes, multiples of 128. The push slots take
     * 2 push_half_bytes. push_half_bytes is a multiple of both halves of a slot group (2 x sources
     * x PEERSUM_SLOT_GROUP units): the second memory of a two-shot call begins there, and within a
     * group its slots would be those of a one-shot call of the other half. */
    peersum_u64 push_offset;
    peersum_u64 push_half_bytes;
    peersum_u64 staging_offset;
    peersum_u64 staging_half_bytes;
    /* The PeersumStatus of this rank, as its device addresses it. */
    peersum_u64 status;
    /* How long a wait for a peer may take, in nanoseconds. */
    peersum_u64 timeout_ns;
    /* This call's header but for the sequence, which the device counts. Its source bit says what
     * kind of input this is; family, algorithm and type must be those of the entry point. */
    peersum_u64 header;
    /* This call's detail but for the sequence; unused for an ordinary source. */
    peersum_u64 detail;
    peersum_u32 rank;
    /* PEERSUM_FLAG_... */
    peersum_u32 flags;
} PeersumParams;

#endif
