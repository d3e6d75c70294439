#!/bin/sh
# A pip that fails with much to say.
case $* in
*--version*)
    echo "pip 24.0 from /nowhere (python 3.11)"
    exit 0
    ;;
esac
line=1
while [ $line -le 200 ]; do
    echo "pip says $line of 200" >&2
    line=$((line + 1))
done
exit 23
