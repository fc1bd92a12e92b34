#!/usr/bin/env bash
# Runs every test: of the library, of the actors, of whole clusters of real processes, and of the documentation.
#
#   scripts/test.sh [ARGUMENTS]      with arguments: what cargo test runs with them
#
# Some tests need a real etcd. Where it is missing and cannot be installed they are skipped, and that is said
# before and after; with CI=true it is a failure.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

banner() {
    local line
    printf '%s\n' "" "############################################################"
    for line in "$@"; do printf '#  %s\n' "$line"; done
    printf '%s\n' "############################################################" ""
}

scripts/setup.sh build
# Needs root all the same; without it those tests are skipped, and say so. In CI they fail.
scripts/setup.sh network || true
if ! command -v etcd >/dev/null && ! scripts/setup.sh etcd; then
    if [[ "${CI:-}" == true ]]; then
        echo "test.sh: etcd is missing, and CI skips no tests" >&2
        exit 1
    fi
    export MINFS_SKIP_ETCD=1
fi
if [[ -n "${MINFS_SKIP_ETCD:-}" ]]; then
    if [[ "${CI:-}" == true ]]; then
        echo "test.sh: MINFS_SKIP_ETCD is set, and CI skips no tests" >&2
        exit 1
    fi
    banner "THE TESTS WITH A REAL ETCD ARE SKIPPED."
fi

if (($# > 0)); then
    (set -x && cargo test --locked "$@")
else
    (set -x && cargo test --locked --all-targets)
    (set -x && cargo test --locked --doc)
fi

[[ -z "${MINFS_SKIP_ETCD:-}" ]] || banner "Passed, but THE TESTS WITH A REAL ETCD WERE SKIPPED."
