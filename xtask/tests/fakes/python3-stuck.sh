#!/bin/sh
# A pip that unpacks half a compiler, says so in the file $STARTED with its process id, and does not end while a test lasts.
case $* in
*--version*)
    echo "pip 24.0 from /nowhere (python 3.11)"
    exit 0
    ;;
esac
while [ "$1" != --target ]; do shift; done
/bin/mkdir -p "$2/nvidia/cu13/bin"
echo half > "$2/nvidia/cu13/bin/nvcc"
echo $$ > "$STARTED.new"
/bin/mv "$STARTED.new" "$STARTED"
exec /bin/sleep 60
