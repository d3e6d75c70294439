#!/bin/sh
# An nvcc that answers questions and compiles only push kernels of two ranks, with the nvcc that REAL_NVCC names.
case "$*" in
--version | --list-gpu-* | --dryrun* | *WORLD_SIZE=2*push.cu)
    exec "$REAL_NVCC" "$@"
    ;;
esac
echo "line 1 on stdout"
for line in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do
    printf '%s\n' "line $line on stderr: \$HOME 'quoted' \"twice\" \\n" >&2
done
printf 'no newline at the end' >&2
exit 42
