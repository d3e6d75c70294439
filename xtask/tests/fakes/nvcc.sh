#!/bin/sh
# An nvcc as far as questions go. The file `release` of its toolkit says which version it is.
toolkit=${0%/bin/nvcc}
read -r version < "$toolkit/release"
release=${version%.*}
case $1 in
--version)
    echo "nvcc: NVIDIA (R) Cuda compiler driver"
    echo "Cuda compilation tools, release $release, V$version"
    echo "Build cuda_$release.r$release/compiler.1_0"
    ;;
--list-gpu-code)
    echo sm_80
    echo sm_90
    ;;
--list-gpu-arch)
    echo compute_80
    echo compute_90
    ;;
--dryrun)
    echo "#\$ _HERE_=$toolkit/bin" >&2
    echo "#\$ TOP=$toolkit/bin/.." >&2
    echo "#\$ CICC_PATH=$toolkit/nvvm/bin" >&2
    echo "#\$ INCLUDES=\"-I$toolkit/include\" " >&2
    ;;
*)
    echo "fake nvcc: unexpected $*" >&2
    exit 64
    ;;
esac
