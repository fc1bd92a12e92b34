#!/usr/bin/env bash
# Feeds the fuzz targets (src/fuzzing.rs) with inputs that libFuzzer makes up, a while for each of them.
#
#   scripts/fuzz.sh [--seconds N] [--asan] [TARGET...]
#
# Each target runs for N seconds (default 10), beginning with fuzz/seeds/ and what earlier runs found new ways with
# (fuzz/corpus/, which is not kept in git). An input that fails is left in fuzz/artifacts/; put it into fuzz/seeds/
# when its cause is mended, and `cargo test` will try it for ever. Works with stable Rust: only this crate is compiled
# with coverage, and everything else is taken from where the tests have built it. With --asan, cargo-fuzz compiles
# everything anew with nightly Rust and the address sanitizer, which takes minutes.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

CARGO_FUZZ=0.13.2
ALL=(path command snapshot peer_messages client_requests)

usage() {
    sed -n '2,/^set/s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" | sed '$d'
    exit 2
}

seconds=10
asan=
targets=()
while (($# > 0)); do
    case "$1" in
        --seconds)
            [[ "${2:-}" =~ ^[0-9]+$ ]] || usage
            seconds=$2
            shift 2
            ;;
        --asan) asan=1; shift ;;
        -*) usage ;;
        *)
            [[ " ${ALL[*]} " == *" $1 "* ]] || { echo "fuzz.sh: no target $1; there are: ${ALL[*]}" >&2; exit 2; }
            targets+=("$1")
            shift
            ;;
    esac
done
((${#targets[@]} > 0)) || targets=("${ALL[@]}")

scripts/setup.sh build
if [[ -n "$asan" ]]; then
    rustup run nightly rustc --version >/dev/null || { echo "fuzz.sh: --asan needs nightly Rust" >&2; exit 1; }
    cargo fuzz --version >/dev/null 2>&1 || cargo install --locked "cargo-fuzz@$CARGO_FUZZ"
    (cd fuzz && cargo +nightly fuzz build)
    programs=fuzz/target/$(rustc -vV | sed -n 's/^host: //p')/release
else
    (cd fuzz && RUSTC_WRAPPER=$PWD/rustc-with-coverage CARGO_TARGET_DIR=$PWD/../target cargo build --locked)
    programs=target/debug
fi

failed=()
for target in "${targets[@]}"; do
    mkdir -p "fuzz/corpus/$target" "fuzz/artifacts/$target"
    log=$(mktemp)
    status=0
    "$programs/$target" -max_total_time="$seconds" -rss_limit_mb=2048 -timeout=20 \
        -artifact_prefix="fuzz/artifacts/$target/" \
        "fuzz/corpus/$target" "fuzz/seeds/$target" >"$log" 2>&1 || status=$?
    if ((status == 0)); then
        # Something must have been tried, and seen: a target that is not instrumented would learn nothing.
        grep -q 'DONE.*cov: [1-9]' "$log" || status=99
    fi
    if ((status == 0)); then
        echo "$target: $(sed -n 's/.*DONE *\(cov: [0-9]*\).*exec\/s: \([0-9]*\).*/\1, \2 runs a second/p' "$log"), $(sed -n 's/^Done \([0-9]* runs in [0-9]* second(s)\)/\1/p' "$log")"
    else
        failed+=("$target")
        echo "$target: FAILED ($status)"
        tail -n 60 "$log"
    fi
    rm -f "$log"
done
if ((${#failed[@]} > 0)); then
    echo "fuzz.sh: failed: ${failed[*]}; the inputs are in fuzz/artifacts/" >&2
    exit 1
fi
