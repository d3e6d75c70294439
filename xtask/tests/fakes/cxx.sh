#!/bin/sh
# A host compiler, as far as being there goes.
exit 64
