#!/usr/bin/env bash
#SBATCH --job-name=suite
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --mem=0
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR1@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%A_%a.out
# One stage of a suite, each run a task of an array; `dmt-ds suite SUITE --submit` submits the stages one after the other:
#   sbatch --array=0-7 slurm/suite.sh seeds table1_vit_small data.path=/data/imagenet
# Options of sbatch override the lines above; one task per GPU. docs/slurm.md has the rest.
if [[ -z ${SLURM_JOB_ID:-} ]]; then echo "start it with: sbatch $0 ..." >&2 && exit 2; fi
home=${DMT_DS_HOME:-$( # asked again where the controller does not answer
    for _ in {1..12}; do scontrol show job "$SLURM_JOB_ID" && break; sleep 5; done |
        sed -n 's|^ *Command=\([^ ]*\)/slurm/.*|\1|p' | tail -n 1
)}
# shellcheck source=slurm/job.sh
source "${home:?set DMT_DS_HOME to the checkout}/slurm/job.sh"

stage=${1:?which stage: teachers, tune, seeds, finetune, segment or detect?}
number=${SLURM_ARRAY_TASK_ID:?start it with sbatch --array=0-N}
run=$(once suite "${@:2}" --stage "$stage" --print-run "$number") || exit
if [[ -z $run ]]; then
    say "run $number of $stage is finished"
    exit 0
fi
mapfile -t words <<<"$run" # one argument a line

# `train` ends this shell; what it leaves behind is judged on the way out.
# shellcheck disable=SC2329 # the trap calls it
judge() {
    local code=$?
    if ((code == 0)) && [[ -f $output_dir/DONE ]]; then once_or_requeue evaluate -e "$output_dir" || code=$?; fi
    exit "$code"
}
case $stage in
finetune | segment | detect) trainer=$stage ;;
*) trap judge EXIT ;;
esac
train "${words[@]}"
