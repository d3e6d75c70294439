#!/bin/sh
# Makes a CUDA_HOME with which candle's feature `cuda` builds, from the project's pinned compiler and NVIDIA's wheels, and prints the environment that uses it:
#
#     eval "$(crates/peersum-candle/cuda-toolkit.sh target/candle-cuda)"
#
# About 600 MB to fetch and 1.3 GB on disk. A directory that is complete is used as it is. Needs python3 with pip and a C compiler.
set -eu

[ $# -eq 1 ] || { echo "usage: $0 DIRECTORY" >&2; exit 2; }
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$(dirname "$1")"
directory=$(cd "$(dirname "$1")" && pwd)/$(basename "$1")

if [ ! -e "$directory/complete" ]; then
    (cd "$here/../.." && cargo xtask toolchain install) >&2
    pinned=$(cd "$here/../.." && cargo xtask toolchain path)
    unfinished=$(mktemp -d "$directory.XXXXXX")
    trap 'rm -rf "$unfinished"' EXIT
    env PIP_USER=0 python3 -m pip install --quiet --require-hashes --no-deps --only-binary=:all: \
        --requirement "$here/cuda-libraries.txt" --target "$unfinished" >&2
    # A copy: nvcc finds its headers from where it really lies.
    cp -r "$pinned/nvidia/cu13/." "$unfinished/nvidia/cu13/"

    cd "$unfinished/nvidia/cu13/lib"
    # Wheels leave out the links by which a linker finds a library.
    for library in lib*.so.*; do
        [ -e "${library%%.so*}.so" ] || ln -s "$library" "${library%%.so*}.so"
    done
    # What a linker needs to know of the driver on a machine that has none: every name in its header. It does nothing; programs find the driver's own
    # library when they run.
    mkdir -p stubs
    grep -o '\bcu[A-Z][A-Za-z0-9_]*' ../include/cuda.h | sort -u | sed 's/.*/void &(void) {}/' |
        cc -x c - -shared -fPIC -w -Wl,-soname,libcuda.so.1 -o stubs/libcuda.so

    cd /
    rm -rf "$directory"
    mv "$unfinished" "$directory"
    trap - EXIT
    : > "$directory/complete"
fi

home=$directory/nvidia/cu13
cat <<END
export CUDA_HOME='$home'
export NVCC='$home/bin/nvcc'
export PATH='$home/bin':"\$PATH"
export LD_LIBRARY_PATH='$home/lib'"\${LD_LIBRARY_PATH:+:\$LD_LIBRARY_PATH}"
export CUDARC_CUDA_VERSION=13000
export CUDA_COMPUTE_CAP="\${CUDA_COMPUTE_CAP:-90}"
END
