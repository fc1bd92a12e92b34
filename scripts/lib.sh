# shellcheck shell=bash
# shellcheck disable=SC2034  # variables for those who source this
# What the scripts share: their settings, how they speak, and how they know a process again. Sourced, not run.
#
# Environment:
#   MINFS_CLUSTER_DIR     where the cluster's data, logs and pids lie           [cluster]
#   MINFS_BASE_PORT       gRPC on this port and the next two, Raft 1,000 above  [9090]
#   MINFS_DATA_BASE_PORT  DataServers on this port and the next three           [8001]
#   MINFS_BIN_DIR         take the binaries from here, build nothing            [build, target/release]
#   MINFS_SKIP_ETCD       when set: as if etcd were not installed
#   MINFS_START_TIMEOUT   seconds until the cluster must answer                 [60]
#   MINFS_STOP_TIMEOUT    seconds until a process is killed that will not stop  [20]

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
default_dir="$root/cluster"
cluster_dir="${MINFS_CLUSTER_DIR:-$default_dir}"
[[ "$cluster_dir" == /* ]] || cluster_dir="$PWD/$cluster_dir"
while [[ "$cluster_dir" == *?/ ]]; do cluster_dir="${cluster_dir%/}"; done
base_port="${MINFS_BASE_PORT:-9090}"
data_base_port="${MINFS_DATA_BASE_PORT:-8001}"
marker="$cluster_dir/.minfs-cluster" # proves that the directory is ours to wipe, and holds its base ports

say() { printf '%s\n' "$*"; }

die() {
    printf '%s: %s\n' "$(basename "$0")" "$*" >&2
    exit 1
}

is_number() { [[ "$1" =~ ^[0-9]{1,9}$ ]]; }

if ! is_number "$base_port" || ((base_port < 1 || base_port > 64533)); then
    die "MINFS_BASE_PORT must be a port from 1 to 64533, is '$base_port'"
fi

if ! is_number "$data_base_port" || ((data_base_port < 1 || data_base_port > 65532)); then
    die "MINFS_DATA_BASE_PORT must be a port from 1 to 65532, is '$data_base_port'"
fi

# The gRPC ports of the three nodes. A node is called meta-<port>; its Raft port is 1,000 above.
ports=("$base_port" "$((base_port + 1))" "$((base_port + 2))")
# The ports of the four DataServers, which are called ds-<port>.
data_ports=("$data_base_port" "$((data_base_port + 1))" "$((data_base_port + 2))" "$((data_base_port + 3))")

# data_dir NAME: the data directory of a node, a DataServer, or of etcd. It is on the command line of its process, and on
# no other's: that is how a process is known again.
data_dir() { printf '%s/%s' "$cluster_dir" "$1"; }

# pid_of NAME: prints the pid of a running node (or DataServer, or etcd), fails when it does not run. A pid file alone
# proves nothing: after a crash the number may be another program's.
pid_of() {
    local name="$1" pid
    pid="$(cat "$cluster_dir/$name.pid" 2>/dev/null)" || return 1
    is_number "$pid" && is_ours "$name" "$pid" || return 1
    printf '%s' "$pid"
}

# is_ours NAME PID: whether that process is the node of that name in this cluster directory.
is_ours() {
    local name="$1" pid="$2" wanted argument
    wanted="$(data_dir "$name")"
    while IFS= read -r -d '' argument; do
        [[ "$argument" != "$wanted" ]] || return 0
    done 2>/dev/null <"/proc/$pid/cmdline"
    return 1
}

# in_use PORT: whether something on this machine accepts connections there.
in_use() { (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }

# stop_all SECONDS NAME...: SIGTERM to all, then waits, then SIGKILL. Fails when something would not even die.
stop_all() {
    local patience="$1" name pid deadline
    shift
    local -A waiting=()
    for name in "$@"; do
        if pid="$(pid_of "$name")"; then
            waiting[$name]="$pid"
            kill -TERM "$pid" 2>/dev/null || true
        else
            rm -f "$cluster_dir/$name.pid"
        fi
    done
    deadline=$((SECONDS + patience))
    until forget_stopped waiting || ((SECONDS >= deadline)); do sleep 0.1; done
    for name in "${!waiting[@]}"; do
        say "$name (pid ${waiting[$name]}) did not stop within $patience s: killed"
        kill -KILL "${waiting[$name]}" 2>/dev/null || true
    done
    deadline=$((SECONDS + 10))
    until forget_stopped waiting; do
        ((SECONDS < deadline)) || return 1
        sleep 0.1
    done
}

# forget_stopped ARRAY: takes those that have stopped out of NAME → PID; succeeds when none is left.
forget_stopped() {
    local -n left="$1"
    local name
    for name in "${!left[@]}"; do
        is_ours "$name" "${left[$name]}" && continue
        say "stopped $name (pid ${left[$name]})"
        rm -f "$cluster_dir/$name.pid"
        unset "left[$name]"
    done
    ((${#left[@]} == 0))
}

# take_lock: one start or stop at a time in this directory. Children must close descriptor 9.
take_lock() {
    exec 9>"$cluster_dir/.lock"
    flock --nonblock 9 || die "another start-cluster.sh or stop-cluster.sh is at work in $cluster_dir"
}
