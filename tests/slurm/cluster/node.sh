#!/usr/bin/env bash
# What happens to nodes: node.sh start|kill|cut|mend|freeze|thaw NODE
#   start  run the node's slurmd
#   kill   power loss: slurmd and every process of the node's jobs die at once
#   cut    (mode netns) off the network; the node's processes live on       mend   undo cut
#   freeze stop the processes of the node's jobs where they are             thaw   let them go on
set -euo pipefail
# shellcheck source=tests/slurm/cluster/settings.sh
source "$(dirname "${BASH_SOURCE[0]}")/settings.sh"
action=$1 node=$2

start_node() {
    if [[ $(<"$root/mode") == plain ]]; then
        slurmd -N "$node" -f "$SLURM_CONF"
    else
        # shellcheck disable=SC2016  # the inner shell expands them
        nsenter --net="/run/netns/$(namespace "$node")" unshare --uts \
            sh -c 'hostname "$1" && exec slurmd -N "$1" -f "$SLURM_CONF"' _ "$node"
    fi
}

# Tasks and batch scripts of the node name it in their environment; a slurmstepd is the parent of each.
processes_of_jobs() {
    local pid parent
    grep -lzx "SLURM_CONF=$SLURM_CONF" /proc/[0-9]*/environ 2>/dev/null | cut -d/ -f3 | while read -r pid; do
        grep -qzx "SLURMD_NODENAME=$node" "/proc/$pid/environ" 2>/dev/null || continue
        printf '%s\n' "$pid"
        parent=$(awk '/^PPid:/ { print $2 }' "/proc/$pid/status" 2>/dev/null) || continue
        if [[ $(tr '\0' ' ' <"/proc/$parent/cmdline" 2>/dev/null) == slurmstepd* ]]; then printf '%s\n' "$parent"; fi
    done | sort -un
}

signal_jobs() { # SIGNAL
    local pids=()
    mapfile -t pids < <(processes_of_jobs)
    ((${#pids[@]} == 0)) || kill "-$1" "${pids[@]}" 2>/dev/null || true
}

case $action in
start) start_node ;;
kill)
    kill -KILL "$(<"$root/run/slurmd-$node.pid")" 2>/dev/null || true # first: it would report the steps' end
    signal_jobs KILL
    ;;
freeze) signal_jobs STOP ;;
thaw) signal_jobs CONT ;;
cut) ip link set "dmt-v${node#node}" down ;;
mend) ip link set "dmt-v${node#node}" up ;;
*)
    printf 'node.sh: %s? start, kill, cut, mend, freeze or thaw\n' "$action" >&2
    exit 2
    ;;
esac
