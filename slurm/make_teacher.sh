#!/usr/bin/env bash
#SBATCH --job-name=make_teacher
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
# A teacher, from its recipe mae, moco_v3, ibot or dino:  sbatch slurm/make_teacher.sh mae data.path=/data/imagenet
# Options of sbatch override the lines above; one task per GPU. docs/slurm.md has the rest.
if [[ -z ${SLURM_JOB_ID:-} ]]; then echo "start it with: sbatch $0 ..." >&2 && exit 2; fi
home=${DMT_DS_HOME:-$( # asked again where the controller does not answer
    for _ in {1..12}; do scontrol show job "$SLURM_JOB_ID" && break; sleep 5; done |
        sed -n 's|^ *Command=\([^ ]*\)/slurm/.*|\1|p' | tail -n 1
)}
# shellcheck source=slurm/job.sh
source "${home:?set DMT_DS_HOME to the checkout}/slurm/job.sh"

task=${1:?which teacher? mae, moco_v3, ibot or dino}
train -c "$task" "${@:2}"
