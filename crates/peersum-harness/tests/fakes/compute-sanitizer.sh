#!/bin/sh
# A compute-sanitizer that runs nothing. $BEHAVIOUR says what it makes up; it notes its process id and that of a child in the file $PIDS.
mark="========="
program=planted
while [ $# -gt 0 ]; do
    case $1 in
    --tool) tool=${tool:-$2} ;;
    --error-exitcode) found=$2 ;;
    --log-file) log=$2 ;;
    grid | sanitize-group) program=grid ;;
    esac
    shift
done
case $tool in
memcheck) kernel=peersum_planted_out_of_bounds ;;
initcheck) kernel=peersum_planted_uninitialised ;;
racecheck) kernel=peersum_planted_race ;;
synccheck) kernel=peersum_planted_divergent_barrier ;;
esac

report() { # errors
    echo "$mark COMPUTE-SANITIZER" > "$log"
    if [ "$1" != 0 ]; then
        echo "$mark Something is wrong" >> "$log"
        echo "$mark     at $kernel+0x90" >> "$log"
    fi
    if [ "$tool" = racecheck ]; then
        echo "$mark RACECHECK SUMMARY: $1 hazards displayed ($1 errors, 0 warnings)" >> "$log"
    else
        echo "$mark ERROR SUMMARY: $1 errors" >> "$log"
    fi
    [ "$1" = 0 ] || exit "$found"
    exit 0
}

echo "the $program says something"
case $BEHAVIOUR-$program in
blind-planted) report 0 ;;
elsewhere-planted) kernel=another_kernel; report 2 ;;
wrong-status-planted) found=0; report 1 ;;
unsound-grid) kernel=peersum_push_one_shot_bf16_ws2; report 3 ;;
failing-grid)
    report 0 &
    wait
    exit 1
    ;;
silent-*)
    echo "$mark Target application terminated before first instrumented API call" > "$log"
    exit 0
    ;;
mute-*) exit 0 ;;
crashing-*) kill -SEGV $$ ;;
hanging-grid)
    sleep 1000 &
    echo "$$ $!" > "$PIDS"
    wait
    ;;
*-planted) report 1 ;;
*-grid) report 0 ;;
esac
