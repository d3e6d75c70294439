#!/bin/sh
# A uv that copies the toolkit $TOOLKIT to where it is told to install, and notes its arguments in the file $INSTALLS.
if [ "$1" = --version ]; then
    echo "uv 0.9.0"
    exit 0
fi
echo "$*" >> "$INSTALLS"
while [ "$1" != --target ]; do shift; done
/bin/mkdir -p "$2/nvidia"
/bin/cp -R "$TOOLKIT" "$2/nvidia/cu13"
