#!/usr/bin/env bash
# Submits a chain of jobs, each of which starts when the previous one has succeeded: distil, then evaluate by k-NN; with
# the word finetune, then fine-tune; with segment=FOLDER, then train UPerNet on the scenes there (ADE20K); with
# detect=FOLDER, then train Mask R-CNN on the objects there (COCO).
# Run it where sbatch works; it prints the job ids. Words that start with -- go to sbatch, the rest to the trainer:
#   slurm/pipeline.sh vit_s finetune segment=/data/ADEChallengeData2016 --nodes=2 --partition=gpu data.path=/data/imagenet
# Number of nodes and start time apply only to the distillation; tasks, GPUs, CPUs and memory per node and the time
# limit apply to all training jobs. JOB:WORD applies to one job, JOB,JOB:WORD to several (distil, knn, finetune, segment,
# detect), all:--OPTION to every job:
#   slurm/pipeline.sh vit_s finetune data.path=/data/imagenet finetune:--nodes=2 finetune:train.micro_batch_size=64
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
usage() {
    sed -n '2,10s/^# //p' "${BASH_SOURCE[0]}" >&2
    exit 2
}
die() { printf 'pipeline: error: %s\n' "$*" >&2 && exit 2; }

case ${1:-} in
vit_t) recipe=vit_tiny ;;
vit_s) recipe=vit_small ;;
vit_b) recipe=vit_base ;;
*) printf 'pipeline: error: %s: name a student first: vit_t, vit_s or vit_b\n\n' "${1:-no word}" >&2 && usage ;;
esac
declare -A script=(
    [distil]=$here/pretrain_$1.sh [knn]=$here/knn.sh [finetune]=$here/finetune_imagenet.sh
    [segment]=$here/segment_ade20k.sh [detect]=$here/detect_coco.sh
)
parent=pipeline_$1_$(date +%Y%m%d_%H%M%S)
shift

# ---- Words: what is of all jobs, what is of one (JOB:WORD), and what describes the distillation.
declare -A asked=([distil]=1 [knn]=1)
for_all=() for_trainings=() for_one=() arguments=()

of_some() { # JOB,JOB:WORD
    local jobs job word=${1#*:}
    IFS=, read -r -a jobs <<<"${1%%:*}"
    for job in "${jobs[@]}"; do
        case $job in
        all | distil) [[ $word == --* ]] || die "$1: remove $job: because settings of the run apply to all jobs" ;;
        knn | finetune | segment | detect)
            [[ $word != --dependency* ]] || die "$1: each job waits for the previous one; only distil can wait for another"
            ;;
        *) die "$1: no job $job; the jobs are distil, knn, finetune, segment, detect, and all" ;;
        esac
        if [[ $job == all ]]; then for_all+=("$word"); else for_one+=("$job:$word"); fi
    done
}

for word in "$@"; do
    case $word in
    finetune) asked[finetune]=1 ;;
    segment=?* | detect=?*) asked[${word%%=*}]=1 for_one+=("${word%%=*}:data.path=${word#*=}") ;;
    --array*) die "$word: a chain has one run; submit one chain per run" ;;
    --ntasks-per* | --gpus-per* | --gres=* | --cpus-per* | --mem* | --time* | --exclusive*) for_trainings+=("$word") ;;
    --nodes* | --nodelist* | --ntasks* | --gpus* | --dependency* | --begin* | --hold) for_one+=("distil:$word") ;;
    --*) for_all+=("$word") ;;
    *)
        if [[ $word =~ ^[a-z,]+:. ]]; then of_some "$word"; else arguments+=("$word"); fi
        ;;
    esac
done
for word in "${for_one[@]}"; do
    case ${asked[${word%%:*}]:-}:$word in
    :finetune:*) die "$word: this chain has no such job; add the word finetune" ;;
    :*) die "$word: this chain has no such job; add ${word%%:*}=FOLDER" ;;
    esac
done

of() { # JOB  leaves in `options` what sbatch gets for it, in `words` what its command gets for it alone
    local word
    options=("${for_all[@]}") words=()
    if [[ $1 != knn ]]; then options+=("${for_trainings[@]}"); fi
    for word in "${for_one[@]}"; do
        case $word in
        "$1":--*) options+=("${word#*:}") ;;
        "$1":*) words+=("${word#*:}") ;;
        esac
    done
}

# What a chain makes stands under one run in MLflow, made by the first of them that gets there.
if [[ " ${arguments[*]} " != *" tracking.parent="* ]]; then arguments+=("tracking.parent=$parent"); fi

# ---- Settings and batches, before anything is submitted: a later job would find out days from now.
config() ( # a shell of its own: what the site's file sets is for the jobs
    # shellcheck disable=SC2034 # the site's file adds to it
    srun_options=()
    # shellcheck source=/dev/null
    if [[ -f ${DMT_DS_SITE:-$here/site.sh} ]]; then source "${DMT_DS_SITE:-$here/site.sh}"; fi
    if [[ ${DMT_DS_DOCTOR:-1} != 1 ]]; then exit 0; fi
    python=${DMT_DS_PYTHON:-$here/../.venv/bin/python}
    command -v "$python" >/dev/null || python=python3
    PYTHONPATH="$here/..${PYTHONPATH:+:$PYTHONPATH}" exec "$python" -m dmt_ds config "$@"
)

check() { # JOB RECIPE WORD...
    local said code=0
    of "$1"
    said=$(
        config -c "$2" "${@:3}" "${words[@]}" --ds --script "${script[$1]}" "${options[@]/#/--sbatch=}" 2>&1 >/dev/null
    ) || code=$?
    case $code in
    0) ;;
    2)
        if [[ $1 != distil ]]; then said=${said//; or train./; or $1:train.}; fi
        printf '%s\n' "${said//dmt-ds: error: /pipeline: error: $1: }" >&2
        is_well=0
        ;;
    *) printf 'pipeline: warning: %s: not checked, because dmt-ds does not run here: %s\n' "$1" "${said##*$'\n'}" >&2 ;;
    esac
}

is_well=1
check distil "$recipe" "${arguments[@]}"
if [[ ${asked[finetune]:-} ]]; then check finetune "finetune_$recipe"; fi
if [[ ${asked[segment]:-} ]]; then check segment "segment_ade20k_$recipe"; fi
if [[ ${asked[detect]:-} ]]; then check detect "detect_coco_mask_rcnn_$recipe"; fi
((is_well)) || exit 2

# ---- Submit.
last='' submitted=()
submit() { # JOB WORD... adds one behind the chain's last job
    local before=$last behind=() what_stands
    of "$1"
    if [[ -n $before ]]; then # on several clusters an id is followed by ;CLUSTER
        behind=("--dependency=afterok:${before%%;*}" --kill-on-invalid-dep=yes)
    fi
    if ((${#words[@]})); then words=(-- "${words[@]}"); fi
    # Of several --dependency the last one counts.
    if ! last=$(sbatch --parsable "${options[@]}" "${behind[@]}" "${script[$1]}" "${@:2}" "${words[@]}"); then
        what_stands=${submitted[*]:+; to cancel what was submitted: scancel ${submitted[*]}}
        printf 'pipeline: error: %s: not submitted%s\n' "$1" "$what_stands" >&2
        exit 1
    fi
    submitted+=("${last%%;*}")
    printf '%-8s  %s%s\n' "$1" "$last" "${before:+  after $before}"
}
submit distil "${arguments[@]}"
for job in knn finetune segment detect; do
    if [[ ${asked[$job]:-} ]]; then submit "$job" --of-run -c "$recipe" "${arguments[@]}"; fi
done
