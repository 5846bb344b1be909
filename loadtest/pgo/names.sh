#!/bin/sh
# Checks that the proxy of the image has the names that the profile refers to. Cargo names a crate by its features and by those of what
# it uses. `make pgo` and `make build` build the workspace, the image (Dockerfile) this package alone: a feature that only another member
# asks for would make all names differ, and the image's proxy would be optimised without the profile. Nothing else would notice.
set -eu
cd "$(dirname "$0")/../.."

crates() {
    ${CARGO:-cargo} tree --locked "$@" --edges normal,build --prefix none --no-dedupe --format '{p} {f}' | sort -u
}

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
crates --workspace >"$work/workspace"
crates --package gopherproxy >"$work/alone"
if comm -23 "$work/alone" "$work/workspace" | grep .; then
    echo "These have other features in the workspace. Ask for the features in [workspace.dependencies], so that both have them." >&2
    exit 1
fi
