#!/bin/sh
# The real python3 ($REAL_PYTHON), which notes each install in the file $INSTALLS and begins it once the file $GATE is there.
case $* in
*--requirement*)
    echo install >> "$INSTALLS"
    until [ -e "$GATE" ]; do /bin/sleep 0.02; done
    ;;
esac
exec "$REAL_PYTHON" "$@"
