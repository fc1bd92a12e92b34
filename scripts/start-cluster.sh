#!/usr/bin/env bash
# Starts a MinFS cluster on this machine: three MetaServers, four DataServers, and an etcd of their own when
# etcd is installed. Returns when all three agree on a leader and it knows all four. What runs already is left
# alone, so that it can be typed again after a server was killed. Everything lies in cluster/; scripts/stop-cluster.sh undoes it.
#
# lib.sh lists the environment variables that change ports, directory and time.
set -euo pipefail

# shellcheck source=scripts/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
(($# == 0)) || die "takes no arguments; the environment variables are in scripts/lib.sh"
patience="${MINFS_START_TIMEOUT:-60}"
is_number "$patience" || die "MINFS_START_TIMEOUT must be a number of seconds, is '$patience'"
bin_dir="${MINFS_BIN_DIR:-$root/target/release}"

servers="localhost:${ports[0]},localhost:${ports[1]},localhost:${ports[2]}"
started=() # what this run has started, to be stopped when it fails
blamed=""  # which of them died
finished=no

on_exit() {
    local status=$? name
    [[ "$finished" == yes ]] && return
    for name in "${started[@]}"; do
        # Whoever has died knows why; when nobody has, all may.
        [[ "$blamed" == "" || "$blamed" == "$name" ]] || continue
        printf '\nthe last lines of %s:\n' "$cluster_dir/$name.log" >&2
        tail -n 20 "$cluster_dir/$name.log" >&2 || true
    done
    if ((${#started[@]} > 0)); then
        printf '\nstopping what was started\n' >&2
        stop_all 5 "${started[@]}" >&2 || true
    fi
    exit "$((status == 0 ? 1 : status))"
}
trap on_exit EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

# launch NAME COMMAND...: runs it apart from this terminal, with its output in NAME.log.
launch() {
    local name="$1"
    shift
    setsid "$@" >>"$cluster_dir/$name.log" 2>&1 </dev/null 9>&- &
    printf '%s\n' "$!" >"$cluster_dir/$name.pid"
    started+=("$name")
    # Until exec, the child's command line is still this script's.
    local deadline=$((SECONDS + 5)) pid="$!"
    until is_ours "$name" "$pid"; do
        if ! kill -0 "$pid" 2>/dev/null || ((SECONDS >= deadline)); then
            blamed="$name"
            die "$name stopped at once"
        fi
        sleep 0.02
    done
}

# must_run NAME: a process that has died will not answer any more.
must_run() {
    pid_of "$1" >/dev/null && return
    blamed="$1"
    die "$1 has stopped; its log is $cluster_dir/$1.log"
}

main() {
    mkdir -p "$cluster_dir"
    [[ -e "$marker" || -z "$(ls -A "$cluster_dir")" || "$cluster_dir" == "$default_dir" ]] ||
        die "$cluster_dir is not empty and no cluster of this script: choose another MINFS_CLUSTER_DIR"
    take_lock
    local before
    before="$(cat "$marker" 2>/dev/null || true)"
    [[ -z "$before" || "$before" == "$base_port" || "$before" == "$base_port $data_base_port" ]] ||
        die "the cluster in $cluster_dir is on base ports $before: set MINFS_BASE_PORT and MINFS_DATA_BASE_PORT to them, or stop-cluster.sh --wipe"
    printf '%s %s\n' "$base_port" "$data_base_port" >"$marker"

    local missing=() data_missing=() port name pid
    for port in "${ports[@]}"; do
        name="meta-$port"
        if pid="$(pid_of "$name")"; then
            say "$name already runs (pid $pid)"
            continue
        fi
        missing+=("$port")
        ! in_use "$port" || port_taken "$port" "$name (gRPC)"
        ! in_use "$((port + 1000))" || port_taken "$((port + 1000))" "$name (Raft)"
    done
    for port in "${data_ports[@]}"; do
        name="ds-$port"
        if pid="$(pid_of "$name")"; then
            say "$name already runs (pid $pid)"
            continue
        fi
        data_missing+=("$port")
        ! in_use "$port" || port_taken "$port" "$name"
    done

    if ((${#missing[@]} + ${#data_missing[@]} > 0)) || [[ ! -x "$bin_dir/minfs" ]]; then build; fi
    etcd_endpoint=""
    start_etcd "${#missing[@]}"
    if ((${#missing[@]} > 0)); then
        write_config
        for port in "${missing[@]}"; do start_node "$port"; done
    fi
    for port in "${data_missing[@]}"; do start_data_server "$port"; done
    await_leader
    await_data_servers
    report
    finished=yes
}

port_taken() {
    die "port $1, for $2, is in use by another program: stop it, or choose MINFS_BASE_PORT (now $base_port) or MINFS_DATA_BASE_PORT (now $data_base_port)"
}

build() {
    if [[ -z "${MINFS_BIN_DIR:-}" ]]; then
        "$root/scripts/setup.sh" build
        say "building the release (minutes, the first time) ..."
        (cd "$root" && CARGO_TARGET_DIR="$root/target" cargo build --release --locked)
    fi
    local name
    for name in metaserver dataserver minfs; do
        [[ -x "$bin_dir/$name" ]] || die "there is no $bin_dir/$name"
    done
}

# start_etcd ABSENT: a private one, on free ports, which it keeps if it can. ABSENT of the three nodes do not run
# yet; those that do know only the etcd that they were started with.
start_etcd() {
    local pid client="" peer="" absent="$1"
    if pid="$(pid_of etcd)"; then
        read -r client peer <"$cluster_dir/etcd.ports"
        say "etcd already runs (pid $pid)"
    elif [[ -n "${MINFS_SKIP_ETCD:-}" ]]; then
        say "DISCOVERY IS OFF: MINFS_SKIP_ETCD is set, so no etcd is started"
        return
    elif ! command -v etcd >/dev/null; then
        say "DISCOVERY IS OFF: etcd is not installed; scripts/setup.sh etcd installs it"
        return
    else
        read -r client peer 2>/dev/null <"$cluster_dir/etcd.ports" || true
        if ((absent < 3)) && ! grep --quiet "localhost:${client:-none}\"" "$cluster_dir/config.yaml"; then
            say "DISCOVERY STAYS OFF: the nodes that run were started without etcd; stop-cluster.sh and start again"
            return
        fi
        if ((absent < 3)); then
            ! in_use "$client" || port_taken "$client" etcd
            ! in_use "$peer" || port_taken "$peer" etcd
        elif [[ -z "$peer" ]] || in_use "$client" || in_use "$peer"; then
            client="$(free_port)"
            peer="$(free_port "$client")"
            printf '%s %s\n' "$client" "$peer" >"$cluster_dir/etcd.ports"
        fi
        local client_url="http://127.0.0.1:$client" peer_url="http://127.0.0.1:$peer"
        launch etcd etcd --name minfs --data-dir "$(data_dir etcd)" \
            --listen-client-urls "$client_url" --advertise-client-urls "$client_url" \
            --listen-peer-urls "$peer_url" --initial-advertise-peer-urls "$peer_url" \
            --initial-cluster "minfs=$peer_url"
        local deadline=$((SECONDS + patience))
        until etcd_is_healthy "$client"; do
            must_run etcd
            ((SECONDS < deadline)) || die "etcd is not healthy after $patience s"
            sleep 0.1
        done
    fi
    etcd_endpoint="localhost:$client"
}

# free_port [EXCEPT]: one below those that the system gives to outgoing connections.
free_port() {
    local port _
    for _ in {1..200}; do
        port=$((20000 + RANDOM % 10000))
        if [[ "$port" != "${1:-}" ]] && ! in_use "$port"; then
            printf '%s' "$port"
            return
        fi
    done
    die "found no free port for etcd"
}

etcd_is_healthy() {
    local answer
    in_use "$1" || return 1
    answer="$(exec 3<>"/dev/tcp/127.0.0.1/$1" && printf 'GET /health HTTP/1.0\r\n\r\n' >&3 && timeout 2 cat <&3)" || return 1
    [[ "$answer" == *'"health":"true"'* ]]
}

# cluster/config.yaml: the top-level one, with the ports of this cluster, its etcd, and stderr as the only log
# (which goes to meta-<port>.log, so that a crash's last words are in the same file).
write_config() {
    local config="$cluster_dir/config.yaml" endpoints="[]" port i
    [[ -z "$etcd_endpoint" ]] || endpoints="[\"$etcd_endpoint\"]"
    local edits=(
        -e "s|endpoints: *\[[^]]*\]|endpoints: $endpoints|"
        -e 's|\(^[[:space:]]*\)file: *"[^"]*"|\1file: ""|; s|\([{,] *\)file: *"[^"]*"|\1file: ""|'
    )
    local expected=("endpoints: $endpoints" 'file: ""')
    for i in 0 1 2; do
        port="${ports[$i]}"
        # The @ keeps a port that was put in from being taken for one of config.yaml's; it goes at the end.
        edits+=(-e "s|meta-909$i|meta-@$port|; s|localhost:1009$i|localhost:@$((port + 1000))|")
        edits+=(-e "s|localhost:909$i|localhost:@$port|")
        expected+=("meta-$port" "localhost:$((port + 1000))" "localhost:$port\"")
    done
    {
        say "# Written by scripts/start-cluster.sh from the top-level config.yaml; change that one."
        sed "${edits[@]}" "$root/config.yaml" | sed 's|meta-@|meta-|g; s|localhost:@|localhost:|g'
    } >"$config.new"
    for i in "${expected[@]}"; do
        grep --quiet --fixed-strings -- "$i" "$config.new" ||
            die "cannot make cluster/config.yaml: where config.yaml is expected to lead to '$i', it says something else"
    done
    mv "$config.new" "$config"
}

start_node() {
    local port="$1" first=()
    [[ "$port" != "${ports[0]}" ]] || first=(--bootstrap)
    launch "meta-$port" "$bin_dir/metaserver" --config "$cluster_dir/config.yaml" \
        --port "$port" --raft-port "$((port + 1000))" --data-dir "$(data_dir "meta-$port")" "${first[@]}"
}

# With etcd, a DataServer finds the leader there; without, among the addresses that it is given.
start_data_server() {
    local port="$1" where=(--metaserver "$servers")
    [[ -z "$etcd_endpoint" ]] || where=(--etcd "$etcd_endpoint")
    launch "ds-$port" "$bin_dir/dataserver" --port "$port" --data-dir "$(data_dir "ds-$port")" "${where[@]}"
}

# Waits until all three name the same leader.
await_leader() {
    local deadline=$((SECONDS + patience)) port answer answers
    leader=""
    say "waiting until all three answer and agree on a leader ..."
    while :; do
        answers=()
        for port in "${ports[@]}"; do
            must_run "meta-$port"
            answer="$(timeout 5 "$bin_dir/minfs" --server "localhost:$port" --timeout 1s leader 2>/dev/null)" || break
            [[ -n "$answer" ]] || break
            answers+=("$answer")
        done
        if [[ ${#answers[@]} == 3 && "${answers[0]}" == "${answers[1]}" && "${answers[0]}" == "${answers[2]}" ]]; then
            leader="${answers[0]}"
            return
        fi
        ((SECONDS < deadline)) || die "no leader that all three agree on after $patience s"
        sleep 0.1
    done
}

# Waits until the leader counts every DataServer as alive.
await_data_servers() {
    local deadline=$((SECONDS + patience)) port answer alive
    say "waiting until all four DataServers have reported ..."
    while :; do
        for port in "${data_ports[@]}"; do must_run "ds-$port"; done
        answer="$(timeout 5 "$bin_dir/minfs" --server "$servers" --timeout 2s cluster 2>/dev/null || true)"
        alive=0
        for port in "${data_ports[@]}"; do
            ! grep --quiet "localhost:$port\b" <<<"$answer" || alive=$((alive + 1))
        done
        ((alive < ${#data_ports[@]})) || return 0
        ((SECONDS < deadline)) || die "only $alive of ${#data_ports[@]} DataServers have reported after $patience s"
        sleep 0.1
    done
}

report() {
    local port name role row='%-11s %-9s %-17s %-17s %-8s %s\n'
    # shellcheck disable=SC2059
    {
        printf '\n'
        printf "$row" NODE ROLE GRPC RAFT PID LOG
        for port in "${ports[@]}"; do
            name="meta-$port"
            role=follower
            [[ "$leader" != *":$port" ]] || role=leader
            printf "$row" "$name" "$role" "localhost:$port" "localhost:$((port + 1000))" "$(pid_of "$name")" "$(short "$cluster_dir/$name.log")"
        done
        for port in "${data_ports[@]}"; do
            name="ds-$port"
            printf "$row" "$name" data "localhost:$port" - "$(pid_of "$name")" "$(short "$cluster_dir/$name.log")"
        done
        [[ -z "$etcd_endpoint" ]] ||
            printf "$row" etcd - "$etcd_endpoint" - "$(pid_of etcd)" "$(short "$cluster_dir/etcd.log")"
    }
    local minfs stop
    minfs="$(short "$bin_dir/minfs")"
    stop="$(short "$root/scripts/stop-cluster.sh")"
    [[ "$cluster_dir" == "$default_dir" ]] || stop="MINFS_CLUSTER_DIR=$cluster_dir $stop"
    cat <<NEXT

What to type next:
  export MINFS_SERVER=$servers
  $minfs put README.md /hello.md
  $minfs cat /hello.md | head -3
  $minfs ls -l /
  $minfs fsck
  $stop    # with --wipe it deletes the data, too
NEXT
}

# short PATH: from the working directory, when it is below it.
short() { printf '%s' "${1#"$PWD"/}"; }

main
