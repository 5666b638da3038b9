#!/usr/bin/env bash
# Stops the cluster under DMT_CLUSTER_ROOT by the pids in its own files, and removes its network; KEEP=1 keeps its logs.
set -uo pipefail
# shellcheck source=tests/slurm/cluster/settings.sh
source "$(dirname "${BASH_SOURCE[0]}")/settings.sh"
[[ -d $root ]] || exit 0

# A zombie counts as gone: in a container pid 1 may not reap it.
is_alive() { grep -q '^State:[[:space:]]*[^ZX]' "/proc/$1/status" 2>/dev/null; }
is_ours() { [[ $(tr '\0' ' ' <"/proc/$1/cmdline" 2>/dev/null) == *@(munged|slurmctld|slurmd)*"$root"* ]]; }
any_alive() {
    local pid
    for pid in "$@"; do if is_alive "$pid"; then return 0; fi; done
    return 1
}

cancel_jobs() {
    timeout 5 scontrol ping 2>/dev/null | grep -q UP || return 0
    local tries
    [[ -z $(squeue -h 2>/dev/null) ]] || timeout 10 scancel --user="$(id -un)" 2>/dev/null
    for ((tries = 0; tries < 100; tries++)); do
        [[ -n $(squeue -h 2>/dev/null) ]] || return 0
        sleep 0.1
    done
}

stop_daemons() {
    local file pid pids=() tries
    for file in "$root"/run/slurmd-*.pid "$root"/run/slurmctld.pid "$root"/munge/munged.pid; do
        [[ -s $file ]] || continue
        pid=$(<"$file")
        if is_alive "$pid" && is_ours "$pid"; then pids+=("$pid"); fi
    done
    ((${#pids[@]})) || return 0
    kill -TERM "${pids[@]}" 2>/dev/null
    for ((tries = 0; tries < 100; tries++)); do
        any_alive "${pids[@]}" || return 0
        sleep 0.1
    done
    kill -KILL "${pids[@]}" 2>/dev/null
}

# What jobs left behind, such as the steps of a node that was cut off: they name this cluster's configuration.
kill_leftovers() {
    local pid
    grep -lzx "SLURM_CONF=$SLURM_CONF" /proc/[0-9]*/environ 2>/dev/null | cut -d/ -f3 | while read -r pid; do
        if grep -qz '^SLURMD_NODENAME=' "/proc/$pid/environ" 2>/dev/null; then kill -KILL "$pid" 2>/dev/null; fi
    done
    for pid in $(pgrep -f '^slurmstepd: '); do # by its log, open under our root
        if find "/proc/$pid/fd" -lname "$root/*" 2>/dev/null | grep -q .; then kill -KILL "$pid" 2>/dev/null; fi
    done
}

remove_network() {
    local number
    [[ $(cat "$root/mode" 2>/dev/null) == netns ]] || return 0
    for ((number = 1; number <= num_nodes; number++)); do
        ip link del "dmt-v$number" 2>/dev/null
        ip netns del "$(namespace "node$number")" 2>/dev/null
    done
    ip link del dmt-br 2>/dev/null
}

remove_names() {
    local kept
    grep -q '# dmt-cluster$' /etc/hosts || return 0
    kept=$(grep -v '# dmt-cluster$' /etc/hosts)
    printf '%s\n' "$kept" >/etc/hosts # in place: a container's /etc/hosts is a mount
}

cancel_jobs
stop_daemons
kill_leftovers
remove_network
remove_names
[[ ${KEEP:-0} == 1 ]] || rm -rf "$root"
