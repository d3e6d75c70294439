/* abi.h - the contract between the host and the kernels: constants, the parameters of a call, and
 * the layout of the memory that ranks share.
 *
 * Plain C without includes. `cargo xtask bindings` generates kernels/src/abi.rs from it.
 *
 * Every rank owns one arena, which every peer maps:
 *
 *   | PeersumControl | push slots, both halves | staging half 0 | staging half 1 |
 *
 * Push slots are 16-byte units, indexed
 * [unit / PEERSUM_SLOT_GROUP][half][source][unit % PEERSUM_SLOT_GROUP].
 * A call uses one half of each group. The slots of one unit lie a constant distance apart. The
 * slots of one source that neighbouring threads use are adjacent. All that a small call touches,
 * control block included, lies in one page.
 * With two ranks there is one source, the peer; larger groups also send to themselves.
 * A two-shot call uses the first half of the push memory in this layout for the units of this
 * rank's chunk, and the second half for the reduced units, with the owner as the source.
 * All-gathers and broadcasts have their overflow slots in the second half.
 * Every word of the push slots is PEERSUM_SLOT_EMPTY between calls.
 *
 * A staging half holds one rank's input as whole units. All-reduces use it as scratch memory
 * for units of the input or output that are not one aligned access. It is at least as large as the
 * largest all-reduce, except a two-shot one from a symmetric source, which needs no scratch.
 */
#ifndef PEERSUM_ABI_H
#define PEERSUM_ABI_H

typedef unsigned int peersum_u32;
typedef unsigned long long peersum_u64;

/* Raised whenever a structure below, or the meaning of a value, changes. */
#define PEERSUM_ABI_VERSION 10

#define PEERSUM_MAX_WORLD_SIZE 8
/* The largest grid. The per-block words below exist for each of these blocks, launched or not. */
#define PEERSUM_MAX_BLOCKS 256
/* The most data threads of a block: threads that handle units. A block is launched with world-size
 * more threads after them, the signal threads: each exchanges headers and flags with one peer. */
#define PEERSUM_MAX_THREADS 512
/* The fewest data threads of a block. */
#define PEERSUM_MIN_THREADS 8
/* On a GPU the number of data threads is a multiple of this. The signal threads then have a warp of
 * their own, as a barrier needs at which only some threads wait. */
#define PEERSUM_WARP_THREADS 32

/* The longest row that is normalised, in elements. */
#define PEERSUM_MAX_HIDDEN 32768
/* The most units of a row that one thread handles. */
#define PEERSUM_MAX_ROW_UNITS_PER_THREAD 64

/* Units of a row that a thread of the fused kernel keeps in registers, in a pair and in a larger
 * group. It handles more of them much more slowly. */
#define PEERSUM_KEPT_ROW_UNITS_OF_PAIR 4
#define PEERSUM_KEPT_ROW_UNITS 2

/* The most blocks that share a row of the fused kernel, and the most data threads that they have
 * together. If several do, the data threads of each are a power of two. */
#define PEERSUM_MAX_CLUSTER_BLOCKS 8
#define PEERSUM_MAX_CLUSTER_THREADS 1024
/* The most data threads of a block of a cluster. */
#define PEERSUM_MAX_CLUSTERED_THREADS 256

/* The unit of work and of every slot, in bytes. */
#define PEERSUM_UNIT_BYTES 16
/* Units whose slots of one source are adjacent: what a warp stores at once. */
#define PEERSUM_SLOT_GROUP 32
/* A slot's word until its data arrives. A NaN in f16, bf16 and f32; never sent. */
#define PEERSUM_SLOT_EMPTY 0xFFFFFFFFu
/* Sent instead of a word that equals PEERSUM_SLOT_EMPTY. Also a NaN, so the sum is the same. */
#define PEERSUM_SLOT_EMPTY_SUBSTITUTE 0x7FFFFFFFu

/* How many of the last calls' headers each (receiver, source) pair keeps. */
#define PEERSUM_HEADER_RING 4

/* A header, from the top: sequence | operation | source | family | algorithm | dtype | root |
 * bytes. A call has fewer than 2^31 units. */
#define PEERSUM_HEADER_SEQUENCE_SHIFT 48
#define PEERSUM_HEADER_OPERATION_SHIFT 45
#define PEERSUM_HEADER_SOURCE_SHIFT 44
#define PEERSUM_HEADER_FAMILY_SHIFT 43
#define PEERSUM_HEADER_ALGORITHM_SHIFT 42
#define PEERSUM_HEADER_DTYPE_SHIFT 38
#define PEERSUM_HEADER_ROOT_SHIFT 35
#define PEERSUM_HEADER_BYTES_BITS 35
#define PEERSUM_HEADER_DTYPE_BITS 4
#define PEERSUM_HEADER_ROOT_BITS 3
/* What the root's bits say of a call that has no root. The grid of a piece depends on the length of
 * the whole call, and the slots on whether RMSNorm is in the same kernel: without these bits ranks
 * that differ in them would have equal headers. Of a broadcast, which has a root and one algorithm,
 * the algorithm's bit says whether more pieces follow. */
#define PEERSUM_ROOT_MORE_PIECES_FOLLOW 1
#define PEERSUM_ROOT_FUSED 2
#define PEERSUM_HEADER_OPERATION_BITS 3

/* A detail: a second word, for what does not fit in a header. Only calls with a symmetric source
 * send one. Never 0. From the top: sequence | 1 + the buffer's index | offset in bytes. */
#define PEERSUM_DETAIL_BUFFER_SHIFT 36
#define PEERSUM_DETAIL_BUFFER_BITS 12
#define PEERSUM_DETAIL_OFFSET_BITS 36

/* The norm words: two more words of a call with PEERSUM_OPERATION_RMS_NORM, which the kernel of
 * norm.cu exchanges and compares within the call. Never 0. From the top: sequence | 1 |
 * hidden size in units, 15 bits | epsilon, the bits of a float32. */
#define PEERSUM_NORM_WORDS 2
#define PEERSUM_NORM_WORD_EPSILON 0
/* sequence | 1 | 12 bits of 0 | kind of output, 2 bits | whether there is a residual |
 * weight offset, a float32's bits. */
#define PEERSUM_NORM_WORD_OFFSET 1
#define PEERSUM_NORM_MARK_SHIFT 47
#define PEERSUM_NORM_OUTPUT_SHIFT 33
#define PEERSUM_NORM_OUTPUT_BITS 2
#define PEERSUM_NORM_VALUE_SHIFT 32

/* The kinds of output: the normalised rows alone; FP8 of them with a given scale; FP8 with a scale
 * for each row. */
#define PEERSUM_NORM_OUTPUT_ROWS 0
#define PEERSUM_NORM_OUTPUT_FP8_STATIC 1
#define PEERSUM_NORM_OUTPUT_FP8_PER_TOKEN 2

#define PEERSUM_OPERATION_ALL_REDUCE 0
/* An all-reduce whose sum is normalised row by row, with or without a residual. */
#define PEERSUM_OPERATION_RMS_NORM 1
/* The rest count as calls of the push family, by the one-shot algorithm. */
#define PEERSUM_OPERATION_ALL_GATHER 2
#define PEERSUM_OPERATION_REDUCE_SCATTER 3
#define PEERSUM_OPERATION_BROADCAST 4
#define PEERSUM_FAMILY_PUSH 0
#define PEERSUM_FAMILY_PULL 1
#define PEERSUM_ALGORITHM_ONE_SHOT 0
#define PEERSUM_ALGORITHM_TWO_SHOT 1
#define PEERSUM_DTYPE_F16 0
#define PEERSUM_DTYPE_BF16 1
#define PEERSUM_DTYPE_F32 2
/* The rest are moved, not reduced. A module of type u8 moves them all. */
#define PEERSUM_DTYPE_U8 3
#define PEERSUM_DTYPE_I8 4
#define PEERSUM_DTYPE_U32 5
#define PEERSUM_DTYPE_I32 6
#define PEERSUM_DTYPE_U64 7
#define PEERSUM_DTYPE_I64 8
/* An ordinary input: sent by a push kernel, or copied by a pull kernel into its staging half. */
#define PEERSUM_SOURCE_ORDINARY 0
/* The input is a symmetric buffer, which every rank maps. Pull only. */
#define PEERSUM_SOURCE_SYMMETRIC 1

/* The phases of one pull call. A flag holds epoch * PEERSUM_PULL_PHASES + phase. */
#define PEERSUM_PULL_PHASES 2
#define PEERSUM_PULL_PHASE_OPEN 0
#define PEERSUM_PULL_PHASE_SECOND 1

/* Why a rank left a call. */
#define PEERSUM_CAUSE_NONE 0
/* A peer did not arrive within PeersumParams::timeout_ns. */
#define PEERSUM_CAUSE_TIMEOUT 1
/* The host set PeersumStatus::abort. */
#define PEERSUM_CAUSE_ABORT 2
/* A peer left and poisoned this rank. */
#define PEERSUM_CAUSE_POISON 3
/* A peer's header differs from this rank's own. */
#define PEERSUM_CAUSE_DISAGREEMENT 4

/* The state that one block keeps from call to call. It is in device memory, so a replayed graph
 * counts as an eager call does. Between calls all blocks hold equal epochs: the launched blocks
 * also advance the words of the blocks that a call did not launch. */
typedef struct PeersumBlockState {
    /* Calls of the pull family so far, plus the start value. 64 bits, as flags are compared by >=.
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
    /* headers[sequence % ring][source]; each source stores its own. README.md, "Headers and
     * details". */
    peersum_u64 headers[PEERSUM_HEADER_RING][PEERSUM_MAX_WORLD_SIZE];
    /* The headers of this rank's own calls. Only this rank reads and writes them. */
    peersum_u64 own_headers[PEERSUM_HEADER_RING];
    /* The details of the same calls. Only a call with a detail stores one; the receiver compares it
     * in the next call and then stores 0. */
    peersum_u64 details[PEERSUM_HEADER_RING][PEERSUM_MAX_WORLD_SIZE];
    peersum_u64 own_details[PEERSUM_HEADER_RING];
    /* norm_words[sequence % ring][source]. The receiver stores 0 over those that it has compared.
     */
    peersum_u64 norm_words[PEERSUM_HEADER_RING][PEERSUM_MAX_WORLD_SIZE][PEERSUM_NORM_WORDS];
    peersum_u64 own_norm_words[PEERSUM_HEADER_RING][PEERSUM_NORM_WORDS];
    /* 0. 1 once a thread of this rank has claimed the task of recording the failure and poisoning
     * all ranks. 2 once it has done so. */
    peersum_u32 leave_claim;
    peersum_u32 reserved[31];
    /* pull_flags[block][source]; each source stores its own. */
    peersum_u64 pull_flags[PEERSUM_MAX_BLOCKS][PEERSUM_MAX_WORLD_SIZE];
} PeersumControl;

/* One rank's failure record, in host memory that its device maps. The host writes `abort`; the
 * device writes the rest, once. */
typedef struct PeersumStatus {
    peersum_u32 abort;
    peersum_u32 padding[31];
    /* Stored as 1, with release, after every field below. */
    peersum_u32 valid;
    peersum_u32 cause;
    peersum_u32 rank;
    /* The rank that this rank waited for; this rank itself if it waited for none. */
    peersum_u32 peer;
    peersum_u32 family;
    peersum_u32 algorithm;
    peersum_u32 block;
    /* The rank that left first. */
    peersum_u32 origin;
    peersum_u64 epoch;
    peersum_u64 waited_ns;
    /* This rank's header and the peer's, as last seen. They belong to the call in which the two
     * differ or the wait ended. */
    peersum_u64 own_header;
    peersum_u64 peer_header;
    /* The details of the same call. 0 if it has none; the peer's is also 0 if it had not arrived.
     */
    peersum_u64 own_detail;
    peersum_u64 peer_detail;
    /* The norm words of the same call, in the same way. */
    peersum_u64 own_norm_words[PEERSUM_NORM_WORDS];
    peersum_u64 peer_norm_words[PEERSUM_NORM_WORDS];
    peersum_u32 padding_end[4];
} PeersumStatus;

/* Every address of a symmetric source is a multiple of PEERSUM_UNIT_BYTES. Unused for an ordinary
 * source. */
#define PEERSUM_FLAG_SOURCE_ALIGNED 1
/* All ranks belong to one process and use one device: device scope suffices to order what they
 * exchange. */
#define PEERSUM_FLAG_ONE_DEVICE 2

/* The only argument of every entry point. All addresses are in this rank's address space. */
typedef struct PeersumParams {
    /* arena[step] is the arena of rank (rank + step) % world size; this rank's own comes first. In
     * this order ranks do not all store to the same peer at once, and a kernel finds its own arena
     * without an indexed read. */
    peersum_u64 arena[PEERSUM_MAX_WORLD_SIZE];
    /* What a pull call reads, by rank: with PEERSUM_SOURCE_SYMMETRIC each rank's buffer,
     * element-aligned; otherwise each rank's arena. */
    peersum_u64 source[PEERSUM_MAX_WORLD_SIZE];
    /* Element-aligned. May equal `output`, or this rank's chunk of `output` and `input` may be the
     * same memory, but they do not overlap otherwise. Unused for a symmetric source. */
    peersum_u64 input;
    /* Element-aligned. Ignored by a symmetric two-shot call, whose result replaces the symmetric
     * buffer. */
    peersum_u64 output;
    /* Elements of the module's type: of the input of an all-gather, of the output of a
     * reduce-scatter, else of both. From 1 to what the call's slots or its staging half hold, and
     * fewer than 2^31 units. */
    peersum_u64 elements;
    /* Offsets and sizes within an arena, in bytes, multiples of 128. The push slots take 2 *
     * push_half_bytes. push_half_bytes is a multiple of both halves of a slot group (2 * sources *
     * PEERSUM_SLOT_GROUP units), because the gather slots of a two-shot call begin there. If they
     * began within a group, they would be one-shot slots of the other half. */
    peersum_u64 push_offset;
    peersum_u64 push_half_bytes;
    peersum_u64 staging_offset;
    peersum_u64 staging_half_bytes;
    /* The PeersumStatus of this rank, at the address that its device uses. */
    peersum_u64 status;
    /* The time limit of a wait for a peer, in nanoseconds. */
    peersum_u64 timeout_ns;
    /* This call's header without the sequence, which the device counts. Its source bit gives the
     * kind of input; family and algorithm must be those of the entry point, and so must be the
     * dtype unless the module moves bytes. */
    peersum_u64 header;
    /* This call's detail without the sequence. Unused for an ordinary source. */
    peersum_u64 detail;
    peersum_u32 rank;
    /* PEERSUM_FLAG_... */
    peersum_u32 flags;
    /* What follows, up to fp8_row_scales, is for the entry points of norm.cu alone. It stands
     * behind, so that what the other kernels load lies in as few cache lines as possible. It needs
     * `elements` to be a multiple of `hidden`, `hidden` to be a multiple of a unit, and every
     * address to be a multiple of PEERSUM_UNIT_BYTES. This call's norm words without the sequence.
     */
    peersum_u64 norm_words[PEERSUM_NORM_WORDS];
    /* Read and written in place; 0 if there is none. It overlaps no other buffer. */
    peersum_u64 residual;
    /* `hidden` elements. */
    peersum_u64 weight;
    /* The length of a row, from one unit to PEERSUM_MAX_HIDDEN elements. */
    peersum_u32 hidden;
    float epsilon;
    float weight_offset;
    /* `elements` / `hidden`. */
    peersum_u32 rows;
    /* FP8 (E4M3) of the output, one byte an element; 0 if there is none. Otherwise one of the next
     * two is not 0. */
    peersum_u64 fp8_values;
    /* One float32 by which every element is multiplied; a multiple of its size, as the next. */
    peersum_u64 fp8_inverse_scale;
    /* One float32 a row, which the call writes: the scale by which the row was divided. */
    peersum_u64 fp8_row_scales;
    /* Bytes from one rank's chunk to the next: whole elements, 0 in an all-reduce (README.md). */
    peersum_u64 chunk_stride;
} PeersumParams;

#endif
