#!/bin/sh
# The real cargo ($REAL_CARGO), which notes each packaging in the file $PACKAGES and begins it once the file $GATE is there. Without
# the notes the test has ended, and nobody opens the gate.
case $1 in
package)
    echo package >> "$PACKAGES"
    until [ -e "$GATE" ]; do
        [ -e "$PACKAGES" ] || exit 1
        /bin/sleep 0.02
    done
    ;;
esac
exec "$REAL_CARGO" "$@"
