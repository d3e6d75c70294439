#!/bin/sh
# A pip that copies the toolkit $TOOLKIT to where it is told to install, and notes its arguments in the file $INSTALLS.
case $* in
*--version*)
    echo "pip 24.0 from /nowhere (python 3.11)"
    exit 0
    ;;
esac
echo "$*" >> "$INSTALLS"
while [ "$1" != --target ]; do shift; done
/bin/mkdir -p "$2/nvidia"
/bin/cp -R "$TOOLKIT" "$2/nvidia/cu13"
