#!/bin/sh
# A machine with the GPUs whose compute capabilities SMI_CAPABILITIES lists, or without a driver if it is empty.
test -n "$SMI_CAPABILITIES" || exit 9
printf '%s\n' $SMI_CAPABILITIES
