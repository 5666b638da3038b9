# Where the test cluster lives and what it looks like; sourced by start.sh, stop.sh and node.sh.
# Each can be set in the environment before start.sh; stop.sh and node.sh need the same DMT_CLUSTER_ROOT.
# shellcheck shell=bash
# shellcheck disable=SC2034  # each script uses some of them

root=${DMT_CLUSTER_ROOT:-${TMPDIR:-/tmp}/dmt-cluster}
# netns: each node has its own address, host name and loopback (needs CAP_NET_ADMIN and CAP_SYS_ADMIN).
# plain: nodes differ by their port only; works in an unprivileged container. auto: the best that works.
mode=${DMT_CLUSTER_MODE:-auto}
num_nodes=${DMT_CLUSTER_NODES:-4}
cpus=64 memory_mb=512000 gpus=8          # of each node; Slurm is told, not asked: the machine may have two cores
port=${DMT_CLUSTER_PORT:-26917}          # slurmctld's; node i listens on port + i, below the ephemeral range
network=10.213.8                         # nodes' addresses in mode netns
cred_expire_seconds=5                    # so long a requeued job waits; 5 is Slurm's least, 120 its default
slurmd_timeout_seconds=10                # a silent node is DOWN after it
kill_wait_seconds=5                      # from TERM to KILL
grace_seconds=30                         # from the TERM of a preemption to its requeue

export SLURM_CONF=$root/slurm.conf
namespace() { printf 'dmt-%s' "$1"; }    # of a node
