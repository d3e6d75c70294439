#!/bin/sh
# The nvcc $REAL_NVCC, which is asked nothing twice: what it said and wrote is kept in the directory $ANSWERS, by the question, or by
# the file to make and the scale that the kernels in the directory $KERNELS define. Few processes, as it is called a thousand times.
while read -r word _ number; do
    [ "$word" = "#define" ] && scale=$number
done < "$KERNELS/scale.cuh"
answer=$ANSWERS/$1
for word in "$@"; do
    [ "$before" = -o ] && answer=$ANSWERS/$word-$scale
    before=$word
done
if [ ! -d "$answer" ]; then
    mkdir -p "$answer.new/files"
    "$REAL_NVCC" "$@" >"$answer.new/stdout" 2>"$answer.new/stderr" || exit
    case "$*" in
    *" -o "*) cp -R . "$answer.new/files" ;;
    esac
    mv "$answer.new" "$answer"
fi
[ -s "$answer/stdout" ] && cat "$answer/stdout"
[ -s "$answer/stderr" ] && cat "$answer/stderr" >&2
case "$*" in
*" -o "*) cp -R "$answer/files/." . ;;
esac
