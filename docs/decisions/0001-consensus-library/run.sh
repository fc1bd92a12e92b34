#!/usr/bin/env bash
# Decision 0001, seen with your own eyes: async-raft loses four acknowledged writes, openraft does not.
#
#   docs/decisions/0001-consensus-library/run.sh           experiment 2, with both libraries
#   docs/decisions/0001-consensus-library/run.sh all       experiments 1 to 5 and 8 (a minute more)
#   docs/decisions/0001-consensus-library/run.sh 3 4       the ones that are named
#
# Exits with 0 when the outcome is the one that the page reports.
set -euo pipefail

here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
root="$(cd "$here/../../.." && pwd)"
# Beside the main build, which git ignores; not the main build, whose artifacts are others.
export CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-$root/target}/decision-0001"

experiments=("${@:-2}")
[[ "${experiments[*]}" != all ]] || experiments=(1 2 3 4 5 8)

output="$(mktemp)"
trap 'rm -f "$output"' EXIT

for library in async-raft openraft; do
    echo "building the experiments with $library ..."
    cargo build --quiet --locked --manifest-path "$here/$library/Cargo.toml"
    echo
    "$CARGO_TARGET_DIR/debug/lab-$library" "${experiments[@]}" | tee -a "$output"
done

echo "In short:"
grep -E '^(async-raft|openraft) experiment' "$output" | sed 's/^/  /'

as_reported=0
for n in "${experiments[@]}"; do
    [[ "$n" == 8 ]] || grep -q "^async-raft experiment $n: VIOLATED" "$output" || as_reported=1
    grep -q "^openraft experiment $n: held" "$output" || as_reported=1
done
if ((as_reported == 0)); then
    echo "This is what the page reports."
else
    echo "This is NOT what the page reports." >&2
fi
exit "$as_reported"
