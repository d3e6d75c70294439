// push.cu - the push family: every rank stores its units into slots at every rank and polls its own
// slots. The data is the flag.
//
// After NCCL's LL protocols and Lamport-style all-reduces, which mark an empty slot with a value
// that is never data. Differences: every word is compared as an integer, no finite value is
// changed, exactly the received words are re-armed, and each block has its own epoch, so the grid
// may change from call to call.
#define PEERSUM_MODULE_FAMILY PEERSUM_FAMILY_PUSH
#include "push_call.cuh"
#include "push_rest.cuh"
#include "reduce_scatter.cuh"
#include "sum.cuh"
#include "units.cuh"

namespace {

// Scratch memory for narrow units, used by this rank alone: the staging half that the next pull
// call will write. No peer reads it any more: this rank has passed the opening barrier of the last
// pull call, so every peer has ended the pull call before that.
PEERSUM_DEVICE peersum_u64 scratch(const Call& call) {
    return call.params.arena[0] + call.params.staging_offset +
           (call.pull_epoch & 1) * call.params.staging_half_bytes;
}

PEERSUM_DEVICE Buffer input_of(const Call& call) {
    return buffer_at(call.params.input, scratch(call), call.params.elements);
}

PEERSUM_DEVICE Buffer output_of(const Call& call) {
    return buffer_at(call.params.output, scratch(call), call.params.elements);
}

// Finishes the last two units of a thread, `unit` and the next, which are both sent. They are
// polled together: one after the other, the second would cost another round trip to memory. False
// if a wait was given up.
PEERSUM_DEVICE bool reduce_last_two(const Call& call, peersum_u32 unit, Unit own, Unit second_own,
                                    peersum_u64 first_slot) {
    const PeersumParams& params = call.params;
    const peersum_u32 second = unit + call.unit_stride();
    const peersum_u64 slots = params.push_offset + half_offset(call);
    const peersum_u64 second_slot = receive_address(params, slots + slots_offset(second));
    Unit received[SOURCES], second_received[SOURCES];
    peersum_u32 polls = 0;
    // Not `&&`: the loads of both polls are in flight together.
    while (!(poll(first_slot, received) & poll(second_slot, second_received))) {
        spin_pause();
        if (GUARDED && ++polls == POLLS_BETWEEN_LOOKS) {
            return peersum_push_rest(params, epochs_of(call), unit, second + call.unit_stride());
        }
    }
    if (unit == call.first_unit()) allow_next_kernel();
    st_global_v4(unit_address(params.output, unit), reduce_received(received, own));
    st_global_v4(unit_address(params.output, second), reduce_received(second_received, second_own));
    rearm(first_slot);
    rearm(second_slot);
    return true;
}

// Reduces a thread's units in a one-shot call without narrow units. The first one, `own`, is
// already sent. False if a wait was given up.
PEERSUM_DEVICE bool reduce_wide(const Call& call, Unit own, peersum_u64 to,
                                peersum_u64 first_slot) {
    const PeersumParams& params = call.params;
    const peersum_u64 slots = params.push_offset + half_offset(call);
    const peersum_u32 first = call.first_unit(), stride = call.unit_stride();
    // A thread's units overlap: while it waits for one, the next is on its way to the peers and the
    // one after that is being loaded. So the links always have stores to carry, arriving data is
    // taken while it is still in the cache, and a rank loads its own unit only once.
    Unit ahead = EMPTY_UNIT;
    if (first + stride < call.units)
        ahead = ld_global_v4(unit_address(params.input, first + stride));
#pragma unroll 1
    for (peersum_u32 unit = first; unit < call.units;) {
        const peersum_u32 next = unit + stride;
        const Unit following = sendable(ahead);
        if (next < call.units) {
            send_to_all(params, send_offset(params, slots + slots_offset(next)), following);
            if (next + stride < call.units)
                ahead = ld_global_v4(unit_address(params.input, next + stride));
        }
        // Only for pairs: larger groups do not have enough registers.
        if (KEEPS_OWN && next < call.units && next + stride >= call.units)
            return reduce_last_two(call, unit, own, following, first_slot);
        Unit received[SOURCES];
        peersum_u32 polls = 0;
        while (!poll(first_slot, received)) {
            spin_pause();
            if (GUARDED && ++polls == POLLS_BETWEEN_LOOKS) {
                return peersum_push_rest(params, epochs_of(call), unit, next + stride);
            }
        }
        if (unit == first) allow_next_kernel();
        st_global_v4(reinterpret_cast<void*>(to), reduce_received(received, own));
        rearm(first_slot);
        if (next >= call.units) break;
        unit = next;
        own = following;
        to = reinterpret_cast<peersum_u64>(unit_address(params.output, unit));
        first_slot = receive_address(params, slots + slots_offset(unit));
    }
    return true;
}

PEERSUM_DEVICE void one_shot(const PeersumParams& params) {
    const ThreadPosition position = position_of_thread();
    const peersum_u32 units = units_of(params.elements);
    const peersum_u32 first = position.first_unit();
    const bool is_wide = wide_units(params.input, params.elements) == units &&
                         wide_units(params.output, params.elements) == units;
    const peersum_u64 slot = send_offset(params, params.push_offset + slots_offset(first));
    const peersum_u64 first_slot =
        receive_address(params, params.push_offset + slots_offset(first));
    prepare_first_store(params, slot);

    const Call call = enter(params, position);
    // Loaded together with the block's state. A poisoned call may read its own input; it must not
    // store.
    const bool sends = is_wide && first < units && !position.is_signal_thread();
    Unit own = EMPTY_UNIT;
    if (sends) own = sendable(ld_global_v4(unit_address(params.input, first)));
    // In front of all else, because the peers wait for it.
    if (!STRICT_ORDER && sends && call.poison == 0)
        send_to_all(params, slot + half_offset(call), own);
    if (!position.is_signal_thread()) mark_epoch_read(call);
    const bool lost = is_lost_on_entry(call);
    if (position.is_signal_thread()) return run_signal_thread(call, lost, [] {});
    // Separate exits for lost calls and narrow units, so that the common path keeps no registers
    // for them.
    if (lost || !is_wide) advance_unlaunched_epochs(call);
    if (lost) return peersum_fill_output(params, epochs_of(call));
    if (!is_wide) {
        if (!peersum_push_rest(params, epochs_of(call), first, first))
            peersum_fill_output(params, epochs_of(call));
        return;
    }
    if (STRICT_ORDER && sends) send_to_all(params, slot + half_offset(call), own);
    // Done while the peers' data is on its way.
    advance_unlaunched_epochs(call);
    const peersum_u64 to = reinterpret_cast<peersum_u64>(unit_address(params.output, first));
    if (!reduce_wide(call, own, to, first_slot + half_offset(call)))
        peersum_fill_output(params, epochs_of(call));
}

// Sends place `i` of every chunk to the chunk's owner.
PEERSUM_DEVICE void scatter_unit(const Call& call, const Buffer& input, peersum_u64 scatter,
                                 peersum_u32 chunk, peersum_u32 i) {
    Unit v[WORLD_SIZE];
#pragma unroll
    for (int step = FIRST_STEP; step < WORLD_SIZE; ++step) {
        const peersum_u32 unit = call.peer(step) * chunk + i;
        v[step] = Unit{0, 0, 0, 0};
        if (unit < call.units) v[step] = ld_global_v4(input.at(unit));
    }
    const peersum_u64 slot = send_offset(call.params, scatter + slots_offset(i));
#pragma unroll
    for (int step = FIRST_STEP; step < WORLD_SIZE; ++step)
        send(call.params, slot, step, sendable(v[step]));
}

// Reduces place `i` of this rank's chunk and sends the result to all. False if the wait was given
// up.
PEERSUM_DEVICE bool reduce_unit(const Call& call, const Buffer& input, const Buffer& output,
                                peersum_u64 scatter, peersum_u64 gather, peersum_u32 chunk,
                                peersum_u32 i) {
    const peersum_u32 unit = call.params.rank * chunk + i;
    Unit own{0, 0, 0, 0};
    if (KEEPS_OWN && unit < call.units) own = sendable(ld_global_v4(input.at(unit)));
    Unit received[SOURCES];
    if (!collect(call, receive_address(call.params, scatter + slots_offset(i)), received))
        return false;
    const Unit result = reduce_received(received, own);
    if (i == call.first_unit()) allow_next_kernel();
    // A reduced word never equals the empty mark, because a NaN in it is canonical.
    send_to_all(call.params, send_offset(call.params, gather + slots_offset(i)), result);
    if (KEEPS_OWN && unit < call.units) st_global_v4(output.at(unit), result);
    return true;
}

// Receives place `i` of every owner's reduced chunk and stores it in the output. False if the wait
// was given up.
PEERSUM_DEVICE bool gather_unit(const Call& call, const Buffer& output, peersum_u64 gather,
                                peersum_u32 chunk, peersum_u32 i) {
    Unit v[SOURCES];
    if (!collect(call, receive_address(call.params, gather + slots_offset(i)), v)) return false;
#pragma unroll
    for (int source = 0; source < SOURCES; ++source) {
        const peersum_u32 owner = KEEPS_OWN ? call.params.rank ^ 1 : source;
        const peersum_u32 unit = owner * chunk + i;
        if (unit < call.units) st_global_v4(output.at(unit), v[source]);
    }
    return true;
}

// Chunk c of the array belongs to rank c, which reduces it and sends the result to all. One thread
// handles the same place of every chunk from start to finish: it sends the unit, reduces it if this
// rank is the owner, and stores the result. So no barrier is needed between the steps. All chunks
// have equal length: units past the end of the array are sent as zeros and not stored, so every
// rank waits for the same slots.
PEERSUM_DEVICE void two_shot(const PeersumParams& params) {
    const ThreadPosition position = position_of_thread();
    const peersum_u32 units = units_of(params.elements);
    const peersum_u32 chunk = (units + WORLD_SIZE - 1) / WORLD_SIZE;
    const peersum_u32 stride = position.unit_stride();
    const Share share{chunk, chunk};

    const Call call = enter(params, position);
    if (!position.is_signal_thread()) mark_epoch_read(call);
    bool lost = is_lost_on_entry(call);
    if (position.is_signal_thread()) return run_signal_thread(call, lost, [] {});
    const peersum_u64 scatter = params.push_offset + half_offset(call);
    const peersum_u64 gather = scatter + params.push_half_bytes;
    const Buffer input = input_of(call);
    const Buffer output = output_of(call);
    advance_unlaunched_epochs(call);
    if (!lost) {
        load_narrow_units(call, input, share);
        // The steps of a thread's units overlap: while one unit is on its way to its owner, the
        // unit before it is reduced and the one before that is gathered. So the links always have
        // both kinds to carry, and arriving data is taken while it is still in the cache.
        peersum_u32 scattered = position.first_unit(), reduced = scattered, gathered = scattered;
#pragma unroll 1
        while (gathered < chunk) {
            const bool is_first = scattered == reduced, is_second = reduced == gathered;
            if (scattered < chunk) scatter_unit(call, input, scatter, chunk, scattered);
            scattered += stride;
            if (is_first) continue;
            if (reduced < chunk)
                lost = !reduce_unit(call, input, output, scatter, gather, chunk, reduced);
            reduced += stride;
            if (is_second && !lost) continue;
            if (!lost) lost = !gather_unit(call, output, gather, chunk, gathered);
            if (lost) break;
            gathered += stride;
        }
    }
    store_narrow_units(call, output_of(call), call.units, share, lost);
}

}  // namespace

// So that a pair's largest blocks have seats. ptxas keeps to the register limit that follows,
// without spilling, up to sm_90. (Not if all ranks are one launch, whose entry points have more to
// do.)
#if PEERSUM_WORLD_SIZE == 2 && defined(__CUDA_ARCH__) && __CUDA_ARCH__ <= 900 && \
    !defined(PEERSUM_ONE_LAUNCH)
#define PEERSUM_ONE_SHOT_BLOCKS 2
#else
#define PEERSUM_ONE_SHOT_BLOCKS 1
#endif

PEERSUM_ENTRY(push_one_shot, PEERSUM_MAX_THREADS, PEERSUM_ONE_SHOT_BLOCKS) { one_shot(params); }

PEERSUM_ENTRY(push_two_shot, PEERSUM_MAX_THREADS, 1) { two_shot(params); }

PEERSUM_ENTRY(push_reduce_scatter, PEERSUM_MAX_THREADS, 1) { reduce_scatter(params); }
