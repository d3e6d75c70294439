// move.cu - calls that move data and compute nothing: all-gather and broadcast. Every bit arrives
// as it was sent, so one module serves all element types.
//
// Data travels through push slots, as in push.cu. There a word that equals the empty mark may be
// replaced, because it is a NaN. Here it may not, so a unit that contains such a word is escaped:
// it takes a second slot as well (README.md, "Move").
#define PEERSUM_MODULE_FAMILY PEERSUM_FAMILY_PUSH
#include "narrow.cuh"
#include "push_call.cuh"

namespace {

// The first word of an escaped unit. A NaN in f16, bf16 and f32, so it is rare.
constexpr peersum_u32 ESCAPE = 0x7FB5FFA3u;
// All bits but the highest: a word of an escaped unit never equals the empty mark.
constexpr peersum_u32 LOW_BITS = 0x7FFFFFFFu;

PEERSUM_DEVICE bool needs_escape(Unit v) {
    return v.x == ESCAPE || v.x == PEERSUM_SLOT_EMPTY || v.y == PEERSUM_SLOT_EMPTY ||
           v.z == PEERSUM_SLOT_EMPTY || v.w == PEERSUM_SLOT_EMPTY;
}

// The unit in the first slot of an escaped unit, and the unit in its second.
PEERSUM_DEVICE Unit first_part(Unit v) {
    return Unit{ESCAPE, v.x & LOW_BITS, v.y & LOW_BITS, v.z & LOW_BITS};
}

PEERSUM_DEVICE Unit second_part(Unit v) {
    return Unit{v.w & LOW_BITS, v.x >> 31 | v.y >> 31 << 1 | v.z >> 31 << 2 | v.w >> 31 << 3, 0, 0};
}

PEERSUM_DEVICE Unit join_parts(Unit first, Unit second) {
    const peersum_u32 high = second.y;
    return Unit{first.y | high << 31, first.z | high >> 1 << 31, first.w | high >> 2 << 31,
                second.x | high >> 3 << 31};
}

PEERSUM_DEVICE peersum_u32 root_of(const PeersumParams& params) {
    return static_cast<peersum_u32>(params.header >> PEERSUM_HEADER_ROOT_SHIFT) &
           ((1u << PEERSUM_HEADER_ROOT_BITS) - 1);
}

// The rank that stores into the `source`-th slot of a unit.
PEERSUM_DEVICE peersum_u32 rank_of_source(const PeersumParams& params, peersum_u32 source) {
    return KEEPS_OWN ? params.rank ^ 1 : source;
}

// The slots of a unit in the first memory. Those in the second are push_half_bytes behind them, as
// those of a two-shot call are.
PEERSUM_DEVICE peersum_u64 first_slots(const Call& call, peersum_u32 unit) {
    return call.params.push_offset + half_offset(call) + slots_offset(unit);
}

// A rank's part of the output of an all-gather.
PEERSUM_DEVICE Units chunk_of(const PeersumParams& params, peersum_u32 rank) {
    return Units{params.output + rank * params.chunk_stride, params.elements};
}

}  // namespace

// Sends an escaped unit to the ranks from the `from_step`-th on, given the offset of this rank's
// first slot for it. Not inlined, so that other units need no registers for it.
extern "C" __device__ __noinline__ void peersum_send_escaped(const PeersumParams& params,
                                                             peersum_u64 slot, Unit v,
                                                             int from_step) {
#pragma unroll 1
    for (int step = from_step; step < WORLD_SIZE; ++step) {
        send(params, slot, step, first_part(v));
        send(params, slot + params.push_half_bytes, step, second_part(v));
    }
}

namespace {

// Sends a unit to the ranks from the FROM_STEP-th on, given the offset of its slots.
template <int FROM_STEP = FIRST_STEP>
PEERSUM_DEVICE void send_unit(const PeersumParams& params, peersum_u64 slots, Unit v) {
    const peersum_u64 slot = send_offset(params, slots);
    if (needs_escape(v)) return peersum_send_escaped(params, slot, v, FROM_STEP);
#pragma unroll
    for (int step = FROM_STEP; step < WORLD_SIZE; ++step) send(params, slot, step, v);
}

// Polls one slot until its data has arrived, then re-arms it. False if the wait for `peer` was
// given up.
PEERSUM_DEVICE bool take_slot(const Call& call, peersum_u64 slot, peersum_u32 peer, Unit& v) {
    void* address = reinterpret_cast<void*>(slot);
    Wait wait;
    while (largest_word(v = ld_relaxed_sys_v4(address)) == PEERSUM_SLOT_EMPTY) {
        spin_pause();
        if (is_time_to_look(wait) &&
            gives_up(call, wait, peer, describe_call(call.params, call.header)))
            return false;
    }
    if (PEERSUM_BREAK != PEERSUM_BREAK_NO_REARM) st_relaxed_sys_v4(address, EMPTY_UNIT);
    return true;
}

// Turns what came in the first slot of a unit into what was sent. False if the wait for the second
// slot was given up.
PEERSUM_DEVICE bool complete_unit(const Call& call, peersum_u64 first_slot, peersum_u32 source,
                                  Unit& v) {
    if (v.x != ESCAPE) return true;
    const peersum_u64 slot = reinterpret_cast<peersum_u64>(
        slot_address(first_slot + call.params.push_half_bytes, source));
    Unit second;
    if (!take_slot(call, slot, rank_of_source(call.params, source), second)) return false;
    v = join_parts(v, second);
    return true;
}

// Receives a unit of every source. False if a wait was given up.
PEERSUM_DEVICE bool receive_from_all(const Call& call, peersum_u32 unit, Unit (&v)[SOURCES]) {
    const peersum_u64 slots = receive_address(call.params, first_slots(call, unit));
    if (!collect(call, slots, v)) return false;
    bool is_whole = true;
#pragma unroll
    for (int source = 0; source < SOURCES; ++source)
        is_whole &= complete_unit(call, slots, source, v[source]);
    return is_whole;
}

PEERSUM_DEVICE void fill_units(const Call& call, const Units& output) {
    constexpr peersum_u32 ONES = 0xFFFFFFFFu;
#pragma unroll 1
    for (peersum_u32 unit = call.first_unit(); unit < call.units; unit += call.unit_stride())
        output.store(unit, Unit{ONES, ONES, ONES, ONES});
}

}  // namespace

// Fills this thread's part of an output of an all-gather with ones.
extern "C" __device__ __noinline__ void peersum_fill_chunks(const PeersumParams& params,
                                                            peersum_u32 epochs) {
    const Call call = rebuild_call(params, position_of_thread(), epochs);
#pragma unroll 1
    for (peersum_u32 rank = 0; rank < WORLD_SIZE; ++rank) fill_units(call, chunk_of(params, rank));
}

// Finishes this thread's part of an all-gather, from unit `awaited` on; the units below `unsent`
// are already sent. For all that the short way in `gather_wide` does not serve: narrow units,
// escaped units, and threads that have polled for long without success. False if a wait was given
// up.
extern "C" __device__ __noinline__ bool peersum_gather_rest(const PeersumParams& params,
                                                            peersum_u32 epochs, peersum_u32 awaited,
                                                            peersum_u32 unsent) {
    const Call call = rebuild_call(params, position_of_thread(), epochs);
    const Units input{params.input, params.elements};
    const peersum_u32 stride = call.unit_stride();
#pragma unroll 1
    for (; awaited < call.units; awaited += stride) {
        // While this thread waits for one unit, the next is on its way to the peers.
#pragma unroll 1
        for (; unsent <= awaited + stride && unsent < call.units; unsent += stride)
            send_unit(params, first_slots(call, unsent), input.load(unsent));
        Unit received[SOURCES];
        if (!receive_from_all(call, awaited, received)) return false;
        if (awaited == call.first_unit()) allow_next_kernel();
#pragma unroll
        for (int source = 0; source < SOURCES; ++source)
            chunk_of(params, rank_of_source(params, source)).store(awaited, received[source]);
        if (KEEPS_OWN) chunk_of(params, params.rank).store(awaited, input.load(awaited));
    }
    return true;
}

namespace {

// Stores a whole unit of every source, and in a pair this rank's own.
PEERSUM_DEVICE void store_wide(const PeersumParams& params, peersum_u32 unit,
                               const Unit (&received)[SOURCES], Unit own) {
    const auto at = [&](peersum_u32 rank) {
        return unit_address(params.output + rank * params.chunk_stride, unit);
    };
#pragma unroll
    for (int source = 0; source < SOURCES; ++source)
        st_global_v4(at(rank_of_source(params, source)), received[source]);
    if (KEEPS_OWN) st_global_v4(at(params.rank), own);
}

PEERSUM_DEVICE bool is_any_escaped(const Unit (&received)[SOURCES]) {
    bool any = false;
#pragma unroll
    for (int source = 0; source < SOURCES; ++source) any |= received[source].x == ESCAPE;
    return any;
}

// Handles a thread's units in an all-gather without narrow units. The first one, `own`, is already
// sent. A thread's units overlap as in a one-shot push. False if a wait was given up.
PEERSUM_DEVICE bool gather_wide(const Call& call, Unit own) {
    const PeersumParams& params = call.params;
    const peersum_u32 first = call.first_unit(), stride = call.unit_stride();
    Unit ahead = EMPTY_UNIT;
    if (first + stride < call.units)
        ahead = ld_global_v4(unit_address(params.input, first + stride));
#pragma unroll 1
    for (peersum_u32 unit = first; unit < call.units; unit += stride) {
        const peersum_u32 next = unit + stride;
        const Unit following = ahead;
        if (next < call.units) {
            send_unit(params, first_slots(call, next), following);
            if (next + stride < call.units)
                ahead = ld_global_v4(unit_address(params.input, next + stride));
        }
        const peersum_u64 slots = receive_address(params, first_slots(call, unit));
        Unit received[SOURCES];
        peersum_u32 polls = 0;
        while (!poll(slots, received)) {
            spin_pause();
            if (GUARDED && ++polls == POLLS_BETWEEN_LOOKS)
                return peersum_gather_rest(params, epochs_of(call), unit, next + stride);
        }
        // Nothing is taken yet: the other way receives the unit again.
        if (is_any_escaped(received))
            return peersum_gather_rest(params, epochs_of(call), unit, next + stride);
        // Where a thread has many units, larger groups lose by the order of a pair.
        if (!KEEPS_OWN) rearm(slots);
        if (unit == first) allow_next_kernel();
        store_wide(params, unit, received, own);
        if (KEEPS_OWN) rearm(slots);
        own = following;
    }
    return true;
}

PEERSUM_DEVICE void all_gather(const PeersumParams& params) {
    const ThreadPosition position = position_of_thread();
    const peersum_u32 units = units_of(params.elements);
    const peersum_u32 first = position.first_unit();
    const bool is_wide =
        (params.input | params.output | params.chunk_stride | params.elements) %
            PEERSUM_UNIT_BYTES ==
        0;
    const peersum_u64 slots = params.push_offset + slots_offset(first);
    prepare_first_store(params, slots);

    const Call call = enter(params, position);
    // Loaded together with the block's state. A poisoned call may read its own input; it must not
    // store.
    const bool sends = is_wide && first < units && !position.is_signal_thread();
    Unit own = EMPTY_UNIT;
    if (sends) own = ld_global_v4(unit_address(params.input, first));
    // In front of all else, because the peers wait for it.
    if (!STRICT_ORDER && sends && call.poison == 0)
        send_unit(params, slots + half_offset(call), own);
    if (!position.is_signal_thread()) mark_epoch_read(call);
    const bool lost = is_lost_on_entry(call);
    if (position.is_signal_thread()) return run_signal_thread(call, lost, [] {});
    if (STRICT_ORDER && sends && !lost) send_unit(params, slots + half_offset(call), own);
    // Done while the peers' data is on its way.
    advance_unlaunched_epochs(call);
    bool is_whole = false;
    if (!lost) {
        is_whole = is_wide ? gather_wide(call, own)
                           : peersum_gather_rest(params, epochs_of(call), first, first);
    }
    if (!is_whole) peersum_fill_chunks(params, epochs_of(call));
}

// The first data thread of a block meets the same thread of every rank, at the block's first unit:
// a rank that has no data for the others sends them a token. Without it the root would wait for
// nobody and could run calls ahead, and so could a rank that has the root's data.
PEERSUM_DEVICE bool is_leader(const Call& call) { return call.thread == 0; }

// Any unit that needs no escape.
constexpr Unit TOKEN{0, 0, 0, 0};

// Receives a unit of the root. False if the wait was given up.
PEERSUM_DEVICE bool receive_from_root(const Call& call, peersum_u32 unit, Unit& v) {
    const peersum_u32 root = root_of(call.params);
    const peersum_u32 source = KEEPS_OWN ? 0 : root;
    const peersum_u64 slots = receive_address(call.params, first_slots(call, unit));
    const peersum_u64 slot = reinterpret_cast<peersum_u64>(slot_address(slots, source));
    return take_slot(call, slot, root, v) && complete_unit(call, slots, source, v);
}

// The root's part: sends this thread's units to all peers, and a leader's first unit to this rank
// as well, which receives it with the tokens.
PEERSUM_DEVICE void send_buffer(const Call& call) {
    const PeersumParams& params = call.params;
    const Units input{params.input, params.elements}, output{params.output, params.elements};
    const peersum_u32 first = call.first_unit(), stride = call.unit_stride();
    Unit ahead = EMPTY_UNIT;
    if (first < call.units) ahead = input.load(first);
#pragma unroll 1
    for (peersum_u32 unit = first; unit < call.units; unit += stride) {
        const Unit v = ahead;
        if (unit + stride < call.units) ahead = input.load(unit + stride);
        if (unit == first && is_leader(call)) {
            send_unit(params, first_slots(call, unit), v);
        } else {
            send_unit<1>(params, first_slots(call, unit), v);
        }
        if (params.output != params.input) output.store(unit, v);
    }
}

// The unit that the root has sent. Chosen word by word: a choice between whole units would put them
// in memory.
PEERSUM_DEVICE Unit of_root(const Unit (&received)[SOURCES], peersum_u32 root) {
    Unit v = received[0];
#pragma unroll
    for (int source = 1; source < SOURCES; ++source) {
        const bool is_its = source == root;
        v = Unit{is_its ? received[source].x : v.x, is_its ? received[source].y : v.y,
                 is_its ? received[source].z : v.z, is_its ? received[source].w : v.w};
    }
    return v;
}

// A data thread's part in a broadcast. False if a wait was given up.
PEERSUM_DEVICE bool broadcast_units(const Call& call, bool is_root) {
    const PeersumParams& params = call.params;
    const Units output{params.output, params.elements};
    peersum_u32 unit = call.first_unit();
    if (is_root) send_buffer(call);
    if (is_leader(call) && unit < call.units) {
        if (!is_root) send_unit(params, first_slots(call, unit), TOKEN);
        Unit received[SOURCES];
        if (!receive_from_all(call, unit, received)) return false;
        allow_next_kernel();
        if (!is_root) output.store(unit, of_root(received, root_of(params)));
        unit += call.unit_stride();
    }
    if (is_root) return true;
#pragma unroll 1
    for (; unit < call.units; unit += call.unit_stride()) {
        Unit v;
        if (!receive_from_root(call, unit, v)) return false;
        output.store(unit, v);
    }
    return true;
}

PEERSUM_DEVICE void broadcast(const PeersumParams& params) {
    const ThreadPosition position = position_of_thread();
    const bool is_root = root_of(params) == params.rank;
    const Call call = enter(params, position);
    if (!position.is_signal_thread()) mark_epoch_read(call);
    const bool lost = is_lost_on_entry(call);
    if (position.is_signal_thread()) return run_signal_thread(call, lost, [] {});
    advance_unlaunched_epochs(call);
    const bool is_whole = !lost && broadcast_units(call, is_root);
    // A root has its data: in place, or because it has copied it.
    const bool has_data = is_root && (!lost || params.output == params.input);
    if (!is_whole && !has_data) fill_units(call, Units{params.output, params.elements});
}

}  // namespace

PEERSUM_ENTRY(move_all_gather, PEERSUM_MAX_THREADS, 1) { all_gather(params); }

PEERSUM_ENTRY(move_broadcast, PEERSUM_MAX_THREADS, 1) { broadcast(params); }
