#!/usr/bin/env bash
# Stands up a Slurm of several nodes on this machine, as root; whatever ran under the same root is stopped first.
#   eval "$(tests/slurm/cluster/start.sh)"     # exports SLURM_CONF: sbatch, srun, squeue then speak to this cluster
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=tests/slurm/cluster/settings.sh
source "$here/settings.sh"

say() { printf 'cluster: %s\n' "$*" >&2; }

check_machine() {
    [[ $EUID -eq 0 ]] || { say "needs root"; exit 1; }
    local program
    for program in munged slurmctld slurmd sbatch; do
        command -v "$program" >/dev/null || { say "no $program: apt-get install slurmctld slurmd slurm-client munge"; exit 1; }
    done
}

can_separate_networks() {
    command -v ip >/dev/null && unshare --uts true 2>/dev/null && ip netns add dmt-probe 2>/dev/null || return 1
    local able=1
    ip link add dmt-p0 type veth peer name dmt-p1 netns dmt-probe 2>/dev/null && able=0
    ip link del dmt-p0 2>/dev/null || true
    ip netns del dmt-probe
    return "$able"
}

# Names must resolve: ranks find each other by the first node's. A container's /etc/hosts is a mount, hence appended to.
name_address() { # ADDRESS NAME
    getent ahostsv4 "$2" 2>/dev/null | grep -q "^$1 " || printf '%s %s # dmt-cluster\n' "$1" "$2" >>/etc/hosts
}

make_bridge() {
    ip link add dmt-br type bridge
    ip addr add "$controller/24" dev dmt-br
    ip link set dmt-br up
}

make_network() { # NODE NUMBER
    local space
    space=$(namespace "$1")
    ip netns add "$space"
    ip link add "dmt-v$2" type veth peer name eth0 netns "$space"
    ip link set "dmt-v$2" master dmt-br up
    ip -n "$space" link set lo up
    ip -n "$space" addr add "$network.$2/24" dev eth0
    ip -n "$space" link set eth0 up
}

# One line of slurm.conf and one of gres.conf. GPUs are links to /dev/null: character devices without mknod.
make_node() { # NUMBER
    local node=node$1 address=127.0.0.1 hostname=$host gpu
    if [[ $mode == netns ]]; then
        address=$network.$1 hostname=$node
        make_network "$node" "$1"
    fi
    name_address "$address" "$node"
    mkdir -p "$root/spool/$node" "$root/dev/$node"
    for ((gpu = 0; gpu < gpus; gpu++)); do ln -sfn /dev/null "$root/dev/$node/nvidia$gpu"; done
    node_lines+="NodeName=$node NodeHostname=$hostname NodeAddr=$address Port=$((port + $1)) CPUs=$cpus Boards=1"
    node_lines+=" SocketsPerBoard=2 CoresPerSocket=$((cpus / 2)) ThreadsPerCore=1 RealMemory=$memory_mb Gres=gpu:$gpus"
    node_lines+=$'\n'
    printf 'NodeName=%s Name=gpu File=%s/dev/%s/nvidia[0-%d]\n' "$node" "$root" "$node" "$((gpus - 1))" >>"$root/gres.conf"
}

write_configuration() {
    local text
    text=$(<"$here/slurm.conf.in")
    text=${text//@ROOT@/$root} text=${text//@HOST@/$host} text=${text//@CONTROLLER@/$controller}
    text=${text//@PORT@/$port} text=${text//@FIRST_NODE_PORT@/$((port + 1))} text=${text//@GRACE@/$grace_seconds}
    text=${text//@CRED_EXPIRE@/$cred_expire_seconds} text=${text//@SLURMD_TIMEOUT@/$slurmd_timeout_seconds}
    text=${text//@KILL_WAIT@/$kill_wait_seconds} text=${text//@NODES@/$node_lines}
    printf '%s\n' "$text" >"$SLURM_CONF"
}

start_munge() {
    (umask 077 && head -c 1024 /dev/urandom >"$root/munge/munge.key")
    munged --key-file="$root/munge/munge.key" --socket="$root/munge/munge.socket" --num-threads=4 \
        --pid-file="$root/munge/munged.pid" --log-file="$root/munge/munged.log" --seed-file="$root/munge/munged.seed"
}

wait_until_idle() {
    local deadline=$((SECONDS + 60)) file
    until [[ $(sinfo -h -N -o '%N %t' 2>/dev/null | sort -u | grep -c ' idle$') == "$num_nodes" ]]; do
        if ((SECONDS >= deadline)); then
            say "nodes are not idle after 60 s"
            for file in "$root"/log/*.log; do
                say "== $file"
                tail -n 20 "$file" >&2
            done
            exit 1
        fi
        sleep 0.1
    done
}

check_machine
[[ ! -e $root ]] || "$here/stop.sh" >&2
if [[ $mode == auto ]]; then
    if can_separate_networks; then mode=netns; else mode=plain; fi
fi
host=$(hostname -s) controller=127.0.0.1 node_lines=''
mkdir -p "$root"/{munge,state,spool,run,log,dev}
chmod 755 "$root" "$root"/*
chmod 700 "$root/state"
printf '%s\n' "$mode" >"$root/mode"
printf 'AutoDetect=off\n' >"$root/gres.conf"
if [[ $mode == netns ]]; then
    controller=$network.254
    make_bridge
fi
getent hosts "$host" >/dev/null || name_address 127.0.0.1 "$host"
for ((number = 1; number <= num_nodes; number++)); do make_node "$number"; done
write_configuration
start_munge
slurmctld -c -f "$SLURM_CONF"
for ((number = 1; number <= num_nodes; number++)); do "$here/node.sh" start "node$number"; done
wait_until_idle
say "mode $mode, $num_nodes nodes of $cpus cpus and $gpus gpus"
printf 'export SLURM_CONF=%q DMT_CLUSTER_ROOT=%q\n' "$SLURM_CONF" "$root"
