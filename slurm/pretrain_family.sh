#!/usr/bin/env bash
#SBATCH --job-name=pretrain_family
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --mem=0
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR1@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.out
# ViT-T, ViT-S and ViT-B from one pass of three ViT-B teachers:  sbatch slurm/pretrain_family.sh data.path=/data/imagenet
# Options of sbatch override the lines above; one task per GPU. docs/slurm.md has the rest.
if [[ -z ${SLURM_JOB_ID:-} ]]; then echo "start it with: sbatch $0 ..." >&2 && exit 2; fi
home=${DMT_DS_HOME:-$( # asked again where the controller does not answer
    for _ in {1..12}; do scontrol show job "$SLURM_JOB_ID" && break; sleep 5; done |
        sed -n 's|^ *Command=\([^ ]*\)/slurm/.*|\1|p' | tail -n 1
)}
# shellcheck source=slurm/job.sh
source "${home:?set DMT_DS_HOME to the checkout}/slurm/job.sh"

train -c vit_family "$@"
