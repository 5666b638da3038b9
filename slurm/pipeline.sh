#!/usr/bin/env bash
# Submits a chain of jobs, each of which starts when the one before has ended well: distil, then judge by k-NN; with the
# word finetune, then fine-tune too; with segment=FOLDER, then train UPerNet on the scenes there (ADE20K); with
# detect=FOLDER, then Mask R-CNN on the objects there (COCO).
# Run it where sbatch works; it prints the job ids. Words that start with -- go to sbatch, the rest to the trainer:
#   slurm/pipeline.sh vit_s finetune segment=/data/ADEChallengeData2016 --nodes=2 --partition=gpu data.path=/data/imagenet
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
usage() {
    sed -n '2,6s/^# //p' "${BASH_SOURCE[0]}" >&2
    exit 2
}

case ${1:-} in
vit_t) recipe=vit_tiny ;;
vit_s) recipe=vit_small ;;
vit_b) recipe=vit_base ;;
*) printf 'pipeline: error: %s: name a student first: vit_t, vit_s or vit_b\n\n' "${1:-no word}" >&2 && usage ;;
esac
training=("$here/pretrain_$1.sh")
parent=pipeline_$1_$(date +%Y%m%d_%H%M%S)
shift

finetunes=0 scenes='' objects='' for_all=() for_training=() arguments=()
for word in "$@"; do
    case $word in
    finetune) finetunes=1 ;;
    segment=?*) scenes=${word#segment=} ;;
    detect=?*) objects=${word#detect=} ;;
    --account=* | --partition=* | --qos=* | --constraint=* | --reservation=*) for_all+=("$word") ;;
    --*) for_training+=("$word") ;;
    *) arguments+=("$word") ;;
    esac
done

# What a chain makes stands under one run in MLflow, made by the first of them that gets there.
if [[ " ${arguments[*]} " != *" tracking.parent="* ]]; then arguments+=("tracking.parent=$parent"); fi

submit() { sbatch --parsable "${for_all[@]}" "$@"; }
after() { printf -- '--dependency=afterok:%s' "${1%%;*}"; } # on several clusters an id is followed by ;CLUSTER

trained=$(submit "${for_training[@]}" "${training[@]}" "${arguments[@]}")
printf 'distil  %s\n' "$trained"
judged=$(submit "$(after "$trained")" --kill-on-invalid-dep=yes "$here/knn.sh" --of-run -c "$recipe" "${arguments[@]}")
printf 'knn     %s  after %s\n' "$judged" "$trained"
last=$judged
follow() { # NAME SCRIPT WORD... adds a training behind the chain's last job
    local name=$1 before=$last
    last=$(submit "$(after "$before")" --kill-on-invalid-dep=yes "${for_training[@]}" "$here/$2" \
        --of-run -c "$recipe" "${arguments[@]}" "${@:3}")
    printf '%s  %s  after %s\n' "$name" "$last" "$before"
}
if ((finetunes)); then follow finetune finetune_imagenet.sh; fi
if [[ -n $scenes ]]; then follow segment segment_ade20k.sh -- "data.path=$scenes"; fi
if [[ -n $objects ]]; then follow detect detect_coco.sh -- "data.path=$objects"; fi
