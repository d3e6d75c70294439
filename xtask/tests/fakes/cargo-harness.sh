#!/bin/sh
# A cargo that has built the harness: HARNESS, as its messages name it.
echo '{"reason":"build-script-executed"}'
echo "{\"reason\":\"compiler-artifact\",\"manifest_path\":\"/nowhere/Cargo.toml\",\"target\":{\"name\":\"peersum-harness\"},\"profile\":{\"test\":false},\"executable\":\"$HARNESS\"}"
