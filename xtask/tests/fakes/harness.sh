#!/bin/sh
# A harness that prints its command line, one word a line, on a machine without a GPU.
if [ "$1" = device ]; then
    echo '{"kind":"emulator","architectures":[]}'
    exit
fi
for word in "$@"; do
    echo "[$word]"
done
echo "connections ${CUDA_DEVICE_MAX_CONNECTIONS-unset}"
exit "${HARNESS_STATUS:-0}"
