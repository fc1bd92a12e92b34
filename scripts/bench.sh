#!/usr/bin/env bash
# Measures the MetaServer beside a three-node etcd that does the same work, in turns (benches/metadata).
#
#   scripts/bench.sh [--quick | --save | --out DIR] [OPTION...]
#   scripts/bench.sh --verify-flush
#
# A whole run takes about forty minutes, and wants a machine that does nothing else. The results (tables, every round
# as CSV, plots) go to target/bench, to DIR, or with --save to docs/performance, whose README.md says what is
# measured and how to read it. --quick shows in seconds that everything works. --verify-flush only counts, with
# strace, the flushes of every node while creates are acknowledged, which a run also does before it begins.
#
#   --rounds N          how often everything is measured               [5]
#   --seconds S         how long a cell is measured                    [3]
#   --warm-up S         and under the same load before that            [0.7]
#   --clients N,...     in a closed loop                               [1,64,256,1024]
#   --connections N     that they share at most                        [16]
#   --operations O,...  stat stat-follower list mixed create delete allocate finalize   [all]
#   --systems S,...     minfs minfs-lease etcd                         [all]
#   --files N           that a stat chooses from                       [10000]
#
# Environment: MINFS_BENCH_DATA is a directory on the disk that all servers' data shall be on [target]. When the run
# fails or is interrupted, no process and no data are left behind.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

usage() {
    sed -n '2,/^set/s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" | sed '$d'
    exit 2
}

die() {
    echo "bench.sh: $*" >&2
    exit 1
}

verify=
for argument in "$@"; do
    case "$argument" in
        -h | --help) usage ;;
        --verify-flush) verify=1 ;;
    esac
done

command -v etcd >/dev/null || die "etcd is missing: install Debian's etcd-server"
if ! command -v strace >/dev/null; then
    [[ -z "$verify" ]] || die "strace is missing: install Debian's strace"
    echo "bench.sh: strace is missing (Debian's strace): flushes will not be counted" >&2
fi
scripts/setup.sh build

cargo bench --locked --bench metadata --no-run

# The servers' data, so that they go with it; the ports stay locked against tests.
ports="${TMPDIR:-/tmp}/minfs-test-ports"
mkdir -p "$ports" "${MINFS_BENCH_DATA:=target}"
work=$(mktemp -d "$(realpath "$MINFS_BENCH_DATA")/bench-data.XXXXXX")
ln -s "$(realpath "$ports")" "$work/minfs-test-ports"

run=
clean() {
    trap - EXIT INT TERM
    if [[ -n "$run" ]]; then
        # Whatever the run started is in its process group.
        kill -KILL -- "-$run" 2>/dev/null || true
        wait "$run" 2>/dev/null || true
    fi
    rm -rf "$work"
}
trap clean EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# A process group of its own.
set -m
TMPDIR=$work cargo bench --locked --bench metadata -- "$@" &
run=$!
set +m
wait "$run"
