#!/usr/bin/env bash
# Checks that this machine has what MinFS needs, and installs what is missing where it may.
#
#   scripts/setup.sh                what building needs, and etcd
#   scripts/setup.sh build          a C compiler, the Rust toolchain, protoc
#   scripts/setup.sh etcd           etcd, for discovery
#   scripts/setup.sh network        ip, for the tests that cut a leader off
#   scripts/setup.sh build etcd     both
#
# Debian packages are installed with apt-get, when this is root or sudo asks for no password; otherwise
# the command to type is printed. Rust is never installed, only named. Exits with 0 when all is there.
set -euo pipefail

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
packages=()
problems=()

# need COMMAND PACKAGE...
need() {
    command -v "$1" >/dev/null || packages+=("${@:2}")
}

need_rust() {
    local wanted found
    wanted="$(sed -n 's/^rust-version = "\(.*\)"$/\1/p' "$root/Cargo.toml")"
    if ! command -v cargo >/dev/null; then
        problems+=("Rust $wanted or newer is missing: install it as https://rustup.rs says")
        return
    fi
    found="$(cd "$root" && cargo --version | cut -d' ' -f2)"
    if [[ "$(printf '%s\n' "$wanted" "$found" | sort --version-sort | head -n 1)" != "$wanted" ]]; then
        problems+=("Rust is $found, but MinFS needs $wanted or newer: rustup update")
    fi
}

(($# > 0)) || set -- build etcd
for what in "$@"; do
    case "$what" in
    build)
        need cc gcc libc6-dev
        # etcd-client's build reads Google's own .proto files too, which Debian packs apart.
        need protoc protobuf-compiler libprotobuf-dev
        if [[ "$(command -v protoc)" == /usr/bin/protoc && ! -e /usr/include/google/protobuf/descriptor.proto ]]; then
            packages+=(libprotobuf-dev)
        fi
        need_rust
        ;;
    etcd) need etcd etcd-server ;;
    network) need ip iproute2 ;;
    *)
        echo "setup.sh: '$what' is none of build, etcd, network" >&2
        exit 2
        ;;
    esac
done

if ((${#packages[@]} > 0)); then
    as_root=()
    ((EUID == 0)) || as_root=(sudo --non-interactive)
    if ! command -v apt-get >/dev/null; then
        problems+=("please install (these are Debian's names): ${packages[*]}")
    elif ((EUID != 0)) && ! sudo --non-interactive true 2>/dev/null; then
        problems+=("please type: sudo apt-get update && sudo apt-get install -y ${packages[*]}")
    else
        echo "setup.sh: installing ${packages[*]}"
        log="$(mktemp)"
        trap 'rm -f "$log"' EXIT
        apt=("${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get)
        if ! { "${apt[@]}" update && "${apt[@]}" install -y --no-install-recommends "${packages[@]}"; } \
            >"$log" 2>&1 </dev/null; then
            tail -n 20 "$log" >&2
            problems+=("apt-get could not install ${packages[*]}; what it said last is above")
        fi
    fi
fi

if ((${#problems[@]} > 0)); then
    printf 'setup.sh: %s\n' "${problems[@]}" >&2
    exit 1
fi
