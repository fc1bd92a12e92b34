#!/usr/bin/env bash
# Stops what scripts/start-cluster.sh has started: the DataServers, the MetaServers, each of which hands over
# what it must, then etcd. Whoever has not stopped in time is killed, and that is said.
#
#   scripts/stop-cluster.sh [--wipe]       --wipe also deletes cluster/, with all data
#
# lib.sh lists the environment variables that change ports, directory and time.
set -euo pipefail

# shellcheck source=scripts/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
patience="${MINFS_STOP_TIMEOUT:-20}"
is_number "$patience" || die "MINFS_STOP_TIMEOUT must be a number of seconds, is '$patience'"
wipe=no
case "$#:${1:-}" in
0:) ;;
1:--wipe) wipe=yes ;;
*) die "usage: scripts/stop-cluster.sh [--wipe]" ;;
esac

if [[ ! -e "$marker" ]]; then
    say "there is no cluster in $cluster_dir"
    exit 0
fi
take_lock

# By their pid files, whichever ports they were started with. The leader goes with the others: as long as two are
# left it hands over, and after that nobody needs one.
nodes=()
data_servers=()
for file in "$cluster_dir"/{meta,ds}-*.pid; do
    [[ -e "$file" ]] || continue
    name="$(basename "$file" .pid)"
    if [[ "$name" == ds-* ]]; then data_servers+=("$name"); else nodes+=("$name"); fi
done
running=no
for name in "${data_servers[@]}" "${nodes[@]}" etcd; do
    ! pid_of "$name" >/dev/null || running=yes
done
[[ "$running" == yes ]] || say "nothing runs in $cluster_dir"

# Whoever needs the others goes first. etcd last, so that the nodes can take their keys out.
stop_all "$patience" "${data_servers[@]}" || die "a DataServer cannot be killed"
stop_all "$patience" "${nodes[@]}" || die "a MetaServer cannot be killed"
stop_all "$patience" etcd || die "etcd cannot be killed"

if [[ "$wipe" == yes ]]; then
    rm -rf -- "$cluster_dir"
    say "deleted $cluster_dir"
fi
