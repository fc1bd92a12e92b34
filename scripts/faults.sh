#!/usr/bin/env bash
# Throws random faults at a cluster of real processes, and judges what the clients saw (tests/faults).
#
#   scripts/faults.sh [--seconds N] [--seed S] [--only WORDS] [--release]
#
# Faults go on for N seconds (default 120); setting up and judging come on top. The seed (default: a random
# one, printed) decides which faults come in which order; with --only just those whose names contain one of
# the words, which are parted by commas ("kill -9,disk full"). As root, partitions and a full disk are among them.
# When it fails or is interrupted, no process, network namespace, mount or directory is left behind.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

usage() {
    sed -n '2,/^set/s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" | sed '$d'
    exit 2
}

number() {
    [[ "${2:-}" =~ ^[0-9]+$ ]] || { echo "faults.sh: $1 wants a number, not '${2:-}'" >&2; exit 2; }
}

seconds=120
seed=$((RANDOM * 32768 + RANDOM))
only=
profile=()
while (($# > 0)); do
    case "$1" in
        --seconds) number "$@"; seconds=$2; shift 2 ;;
        --seed) number "$@"; seed=$2; shift 2 ;;
        --only) only=${2:?}; shift 2 ;;
        --release) profile=(--release); shift ;;
        *) usage ;;
    esac
done

cargo test --locked "${profile[@]}" --test faults --no-run

# The cluster's data, so that they go with it; the ports stay locked against other tests.
ports="${TMPDIR:-/tmp}/minfs-test-ports"
mkdir -p "$ports"
work=$(mktemp -d)
ln -s "$ports" "$work/minfs-test-ports"

run=
clean() {
    trap - EXIT INT TERM
    local ours=" "
    if [[ -n "$run" ]]; then
        ours=" $(pgrep -g "$run" | tr '\n' ' ' || true)"
        # Whatever the test started is in its process group.
        kill -KILL -- "-$run" 2>/dev/null || true
        wait "$run" 2>/dev/null || true
    fi
    local name process n at
    while read -r name _; do
        [[ "$name" =~ ^minfs-test-([0-9a-f]+)-([0-9]+)$ ]] || continue
        process=${BASH_REMATCH[1]}
        n=${BASH_REMATCH[2]}
        # Of another test that still runs? (One that was just killed may be seen for a moment.)
        [[ "$ours" != *" $((16#$process)) "* && -e "/proc/$((16#$process))" ]] && continue
        ip netns del "$name" || true
        # A namespace may outlive its name for a while, and its cables with it.
        ip link del "mfp$process-$n" 2>/dev/null || true
        ip link del "mft$process-$n" 2>/dev/null || true
        ip link del "mfb$process" 2>/dev/null || true
    done < <(ip netns list 2>/dev/null || true)
    while read -r name at _; do
        [[ "$at" == "$work"/* ]] && umount -l "$at"
    done </proc/mounts
    rm -rf "$work"
}
trap clean EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

echo "faults.sh: --seconds $seconds --seed $seed"
# A process group of its own.
set -m
MINFS_FAULT_SECONDS=$seconds MINFS_FAULT_SEED=$seed MINFS_FAULT_ONLY=$only TMPDIR=$work \
    cargo test --locked "${profile[@]}" --test faults -- --nocapture whatever_happens &
run=$!
set +m
wait "$run" && status=0 || status=$?
if ((status != 0)); then
    echo "faults.sh: failed; again with: scripts/faults.sh --seconds $seconds --seed $seed ${only:+--only \"$only\"} ${profile[*]}" >&2
fi
exit "$status"
