#!/usr/bin/env bash
#SBATCH --job-name=segment_ade20k
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --mem=0
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR1@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.out
# Puts an encoder under UPerNet:  sbatch slurm/segment_ade20k.sh -e runs/vit_small data.path=/data/ADEChallengeData2016
# or that of the run that the arguments of a training job describe, with words of its own behind --:
#   sbatch slurm/segment_ade20k.sh --of-run -c vit_small output_dir=x -- data.path=/data/ADEChallengeData2016
if [[ -z ${SLURM_JOB_ID:-} ]]; then echo "start it with: sbatch $0 ..." >&2 && exit 2; fi
home=${DMT_DS_HOME:-$( # asked again where the controller does not answer
    for _ in {1..12}; do scontrol show job "$SLURM_JOB_ID" && break; sleep 5; done |
        sed -n 's|^ *Command=\([^ ]*\)/slurm/.*|\1|p' | tail -n 1
)}
# shellcheck source=slurm/job.sh
source "${home:?set DMT_DS_HOME to the checkout}/slurm/job.sh"

trainer=segment
on_encoder "$@"
train "${words[@]}" task=segment # for `config` and `doctor`, which are of any task
