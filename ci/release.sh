#!/usr/bin/env bash
# Makes and checks a release: ci/release.sh v0.1.0
#
# Needs what CI needs, and rustup. The files are left in target/dist. With GH_TOKEN set they are uploaded as a release of that tag.
set -euo pipefail
cd "$(dirname "$0")/.."

# Installed here and not in CI: it takes minutes to build. By hand: `cargo install --locked cargo-deny`, then `cargo deny check`.
CARGO_DENY=0.20.2

field() { sed -n "s/^$1 = \"\(.*\)\"$/\1/p" Cargo.toml | head -n 1; }
fail() {
    echo "error: $1" >&2
    exit 1
}

tag=${1:?usage: ci/release.sh TAG}
version=$(field version)
[[ $tag == "v$version" ]] || fail "the tag is $tag, and Cargo.toml says $version"
grep -q "^## $version" CHANGELOG.md || fail "CHANGELOG.md has no section \`## $version\`"
! grep -q "^## $version (unreleased)" CHANGELOG.md || fail "CHANGELOG.md calls $version unreleased: give it a date"

# The oldest Rust that Cargo.toml promises, with all that is compiled by default and all that is published.
msrv=$(field rust-version)
rustup toolchain install "$msrv" --profile minimal
CARGO_TARGET_DIR=target/msrv RUSTUP_TOOLCHAIN=$msrv cargo check --locked --workspace --features xtask/dist

# Licences, sources and advisories of all dependencies, of both workspaces that crates are published from.
cargo deny --version 2>&1 | grep -qx "cargo-deny $CARGO_DENY" ||
    cargo install --locked --quiet "cargo-deny@$CARGO_DENY"
rules=$PWD/deny.toml
for workspace in . crates/peersum-candle; do
    (cd "$workspace" && cargo deny --locked --config "$rules" check licenses bans sources advisories)
done

# Everything that a change must pass, which ends with the release in target/dist and its verification.
.ci/run

if [[ -n ${GH_TOKEN:-} ]]; then
    gh release create "$tag" --verify-tag --title "peersum $version" \
        --notes-file target/dist/RELEASE-NOTES.md target/dist/*
fi
