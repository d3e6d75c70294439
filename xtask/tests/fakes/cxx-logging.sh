#!/bin/sh
# The machine's C++ compiler; each call is a line in the file CXX_LOG, and CXX_BEFORE is run ahead of it.
echo "$*" >> "$CXX_LOG"
eval "$CXX_BEFORE"
exec c++ "$@"
