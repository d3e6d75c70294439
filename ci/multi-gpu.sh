#!/usr/bin/env bash
# Everything that needs real GPUs, in one go and within nine minutes: ci/multi-gpu.sh [--out DIR] [--world-size LIST] [--tune SECONDS]
#
# Works for any number of GPUs, one rank a GPU; on a machine with one GPU the ranks share it. Each step is a process of its own with a time
# limit of its own, so that one that hangs costs its limit and no more. Left in --out (target/multi-gpu): a JSON report of each step that
# writes one, tables.json as measured here, logs/, and summary.txt with summary.json, which say how each step went. Exit status 1 if one failed.
#
# On a machine without a compiler, bring what `cargo xtask bench allreduce --compile-for sm_90 --unsafe-baseline` and `cargo xtask
# test-allreduce --compile-for sm_90` build, and name it: HARNESS (the program peersum-harness), CUBINS, LIMITS, UNSAFE and CHECK (directories). cuBLAS and NCCL
# are looked for in LD_LIBRARY_PATH and then in Python's packages.
set -uo pipefail
cd "$(dirname "$0")/.."

OUT=target/multi-gpu
WORLD_SIZES=
TUNE_SECONDS=60
BYTES=4K,16K,64K,256K,1M,4M,16M,64M
BUDGET_SECONDS=530
while (($#)); do
    case $1 in
        --out) OUT=$2 ;;
        --world-size) WORLD_SIZES=$2 ;;
        --tune) TUNE_SECONDS=$2 ;;
        *) sed -n '2,10s/^# \{0,1\}//p' "$0" && exit 2 ;;
    esac
    shift 2 || exit 2
done

gpus=$(nvidia-smi -L | wc -l)
((gpus > 0)) || { echo "error: there is no GPU here" >&2; exit 1; }
if [[ -z $WORLD_SIZES ]]; then
    # With one GPU its ranks share it; with more than eight a group takes eight.
    ((gpus == 1)) && WORLD_SIZES=2,4,8 || WORLD_SIZES=$(seq -s , 2 $((gpus < 8 ? gpus : 8)))
fi
if [[ -z ${HARNESS:-} ]]; then
    arch=sm_$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader | head -n 1 | tr -d .)
    cargo xtask bench allreduce --compile-for "$arch" --unsafe-baseline >/dev/null || exit 1
    cargo xtask test-allreduce --compile-for "$arch" >/dev/null || exit 1
    HARNESS=target/release/peersum-harness CUBINS=target/bench/cubins LIMITS=target/bench/limits
    UNSAFE=target/bench/cubins-unsafe-baseline CHECK=target/test-allreduce
fi
packages=$(python3 -c 'import nvidia; print(list(nvidia.__path__)[0])' 2>/dev/null)
if [[ -n $packages ]]; then
    libraries=$(find "$packages" \( -name 'libcublas.so*' -o -name 'libnccl.so*' \) -printf '%h:' 2>/dev/null)
    export LD_LIBRARY_PATH=${LD_LIBRARY_PATH:+$LD_LIBRARY_PATH:}${libraries%:}
fi
# Ranks that share a card need a hardware queue each. What NCCL's variables are stays as it is.
export CUDA_DEVICE_MAX_CONNECTIONS=32 PEERSUM_CUBIN_DIR=$CUBINS PEERSUM_JIT=deny
# Without it the grid compares on the host; an empty name would be that of a directory.
[[ -n ${CHECK:-} ]] && export PEERSUM_GRID_CHECK_DIR=$CHECK

mkdir -p "$OUT/logs"
: >"$OUT/summary.txt"
started=$SECONDS
failed=0
results=()
# step NAME LIMIT_SECONDS HARNESS_FLAGS...
step() {
    local name=$1 limit=$2 left=$((BUDGET_SECONDS - SECONDS + started)) began status outcome
    shift 2
    if ((left < 5)); then
        status=not_run outcome="not run: no time left"
    else
        began=$EPOCHREALTIME
        timeout -s KILL "$((limit < left ? limit : left))" "$HARNESS" "$@" >"$OUT/logs/$name.txt" 2>&1
        status=$?
        outcome="$(awk -v a="$began" -v b="$EPOCHREALTIME" 'BEGIN { printf "%6.1f s", b - a }')"
        [[ $status == 0 ]] && status=passed || status="failed_$status"
    fi
    [[ $status == passed ]] || failed=1
    printf '%-24s %-12s %s\n' "$name" "$status" "$outcome" | tee -a "$OUT/summary.txt"
    results+=("{\"step\": \"$name\", \"status\": \"$status\"}")
}

largest=${WORLD_SIZES##*,}
nvidia-smi topo -m >"$OUT/logs/topology.txt" 2>&1
step doctor 30 doctor
if ((failed)); then
    # Cubins of other sources than the program's, say: no step behind it would do better.
    cat "$OUT/logs/doctor.txt"
    echo "error: the machine or what was brought to it is not as it must be, so nothing else was run" >&2
    exit 1
fi
step doctor-json 30 doctor --json && cp "$OUT/logs/doctor-json.txt" "$OUT/doctor.json"

# First what is measured, while the cards are cool and nothing has failed on them yet.
step tune $((TUNE_SECONDS + 30)) tune --cubins "$CUBINS" --world-size "$WORLD_SIZES" --bytes "$BYTES" \
    --seconds "$TUNE_SECONDS" --out "$OUT/tables.json"
tables=(--tables "$OUT/tables.json")
[[ -f $OUT/tables.json ]] || tables=()
bench=(bench-allreduce --cubins "$CUBINS" --limits "$LIMITS" --world-size "$WORLD_SIZES")
step bench-bf16 100 "${bench[@]}" "${tables[@]}" --bytes "$BYTES" --pdl both --json "$OUT/bench-bf16.json"
step bench-f16-f32 80 "${bench[@]}" "${tables[@]}" --bytes "$BYTES" --dtype f16,f32 --json "$OUT/bench-f16-f32.json"
step bench-eager 60 "${bench[@]}" "${tables[@]}" --bytes 4K,64K,1M,16M --method eager --json "$OUT/bench-eager.json"
if [[ -n ${UNSAFE:-} ]]; then
    step bench-safety 60 "${bench[@]}" "${tables[@]}" --nccl off --bytes 4K,256K,1M --unsafe-baseline "$UNSAFE" \
        --json "$OUT/bench-safety.json"
fi
step bench-rms-norm 40 "${bench[@]}" --nccl off --op rms-norm --json "$OUT/bench-rms-norm.json"
for op in all-gather reduce-scatter broadcast; do
    step "bench-$op" 30 "${bench[@]}" --op "$op" --bytes "$BYTES" --json "$OUT/bench-$op.json"
done
# A Llama divides into 2, 4 or 8 ranks.
divides=2
for size in 4 8; do ((size <= largest)) && divides=$size; done
step bench-layer 30 bench-layer --cubins "$CUBINS" --world-size "$divides" --json "$OUT/bench-layer.json"

# Then what must hold.
grid=(grid --device cuda --op all_reduce --world-size "$WORLD_SIZES")
# Processes on one GPU take turns by time slices: the full grid takes far longer than this limit.
((gpus == 1)) && of_processes=(smoke 150 2) || of_processes=(full 120 "$WORLD_SIZES")
step grid-threads 120 "${grid[@]}" --grid full --ranks threads --report "$OUT/grid-threads.json"
step grid-processes "${of_processes[1]}" "${grid[@]}" --grid "${of_processes[0]}" --ranks processes \
    --sharing file-descriptor --report "$OUT/grid-processes.json"
step grid-legacy-ipc 60 grid --device cuda --op all_reduce --grid smoke --world-size "${of_processes[2]}" --ranks processes \
    --sharing legacy-ipc \
    --report "$OUT/grid-legacy-ipc.json"
# The reference is computed on the host, so groups that share one GPU take the small grid.
((gpus == 1)) && norms=smoke || norms=full
step grid-rms-norm 120 grid --op rms_norm --device cuda --grid "$norms" --world-size "1,$WORLD_SIZES" \
    --report "$OUT/grid-rms-norm.json"
step grid-rms-norm-processes 60 grid --op rms_norm --device cuda --grid smoke --world-size "${of_processes[2]}" \
    --ranks processes --report "$OUT/grid-rms-norm-processes.json"
moves=(grid --op all_gather,reduce_scatter,broadcast --device cuda)
step grid-moves 60 "${moves[@]}" --grid "$norms" --world-size "$WORLD_SIZES" --report "$OUT/grid-moves.json"
step grid-moves-processes 60 "${moves[@]}" --grid smoke --world-size "${of_processes[2]}" --ranks processes \
    --report "$OUT/grid-moves-processes.json"
# Two communicators a rank with opposite enqueue orders are one of its cases: `--case two-communicators`.
step faults 90 faults --device cuda
((gpus > 1)) && step above-range 60 above-range --world-size "$largest"
for phase in rendezvous set-up before-first-call inside-call graph-replay teardown; do
    for signal in kill stop; do
        step "$signal-$phase" 30 kill --device cuda --runs 1 --world-size "$largest" --phase "$phase" --signal "$signal" \
            --seed 7 --report "$OUT/kill-$phase-$signal.json"
    done
done
step soak 60 soak --device cuda --world-size "$largest" --seconds 20

(IFS=,; echo "[${results[*]}]") >"$OUT/summary.json"
measured=(tune bench-bf16 bench-f16-f32 bench-eager bench-safety)
measured+=(bench-rms-norm bench-all-gather bench-reduce-scatter bench-broadcast bench-layer)
for table in "${measured[@]}"; do
    [[ -f $OUT/logs/$table.txt ]] && printf '\n== %s\n' "$table" && cat "$OUT/logs/$table.txt"
done >>"$OUT/summary.txt"
echo "the tables are in $OUT/summary.txt"
exit $failed
