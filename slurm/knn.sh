#!/usr/bin/env bash
#SBATCH --job-name=knn
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --mem=64G
#SBATCH --time=02:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.out
# k-NN accuracy of encoders:  sbatch slurm/knn.sh -e runs/vit_small -e pixels data.path=/data/imagenet
# or of the run that the arguments of a training job describe:  sbatch slurm/knn.sh --of-run -c vit_small output_dir=x
if [[ -z ${SLURM_JOB_ID:-} ]]; then echo "start it with: sbatch $0 ..." >&2 && exit 2; fi
home=${DMT_DS_HOME:-$( # asked again where the controller does not answer
    for _ in {1..12}; do scontrol show job "$SLURM_JOB_ID" && break; sleep 5; done |
        sed -n 's|^ *Command=\([^ ]*\)/slurm/.*|\1|p' | tail -n 1
)}
# shellcheck source=slurm/job.sh
source "${home:?set DMT_DS_HOME to the checkout}/slurm/job.sh"

on_encoder "$@"
once knn "${words[@]}"
