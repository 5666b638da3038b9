#!/usr/bin/env bash
# Everything that only a GPU can show, in one go, on a GPU machine without network: GPU tests, the losses, whole steps
# beside those of others, the teachers' pass, the trainer's overhead, where a step's time goes. Figures go to the folder
# given, as JSON and Markdown.
#
#   benchmarks/gpu_check.sh OUT_FOLDER                     # all; PYTHON=/path/to/python chooses the interpreter
#   benchmarks/gpu_check.sh OUT_FOLDER tests loss+step_t   # some: of loss, step_t, step_s, step_b, teachers, jitter,
#                                                          # trainer, family, rates, profile, tests, heart, study
#
# What is joined by + (loss, step_*, teachers, jitter, trainer, family) is built and compiled side by side, which takes
# most of the time, and then timed one after the other, alone on the device. The three whole steps together want some
# 60 GB of the device and 16 cores.
#
# `study` is not among them unless asked for: the small study of docs/small_study.md on the images in PHOTOS (a parquet
# folder), goes on where it was ended, and leaves its runs in OUT_FOLDER/study. `heart` needs the photographs of
# DMT_DS_SHARED.
#
# A stage is ended after STAGE_SECONDS (400; photographs learned by heart, 600; joined ones, once for each of them); the
# others go on, and the code says it.
#
# All of OUT_FOLDER but a study's runs is in OUT_FOLDER.tar.gz as well: after each stage, and when the script is ended from
# outside. Everything takes longer than ten minutes, and joined programs publish after their turn only: where time is
# short, take few stages and bound them. On an H200 with 16 cores, three joined programs take some 130 s to be ready and
# five some 220; then a whole step takes 27 s, the trainer 40, a family 45, the teachers 25:
#   timeout 300 benchmarks/gpu_check.sh /tmp/out step_t+step_s+step_b
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1
out=${1:?folder for the figures}
shift
stages=${*:-loss+step_t+step_s+step_b teachers+jitter+trainer+family rates profile tests heart}
python=${PYTHON:-python3}
mkdir -p "$out"
out=$(cd "$out" && pwd)
export PYTHONUNBUFFERED=1 MLFLOW_DISABLE_TELEMETRY=true PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True
failed=0

# shellcheck disable=SC2329  # the trap calls it
end_programs() { # that were set up in the background
    local job
    for job in $(jobs -p); do
        pkill -P "$job"
        kill "$job" 2>/dev/null
    done
}

pack() { # a file, for where few come back
    local name
    name=$(basename "$out")
    # tar says 1 where a log grew meanwhile.
    tar -czf "$out.tar.gz.part" --exclude="$name/study" -C "$(dirname "$out")" "$name" 2>/dev/null || [ $? -eq 1 ] || return
    mv "$out.tar.gz.part" "$out.tar.gz"
}

# shellcheck disable=SC2329  # the trap calls it
finish() {
    end_programs
    pack
}

ending=
# shellcheck disable=SC2329  # traps call it
on_signal() { # the second of two, as `timeout` sends them, must not end what the first began
    [ -n "$ending" ] && return
    ending=1
    exit 130
}
trap on_signal INT TERM
trap finish EXIT

stage() { # name, command...; its log is OUT_FOLDER/name.log
    local name=$1
    shift
    timeout -k 30 "${STAGE_SECONDS:-400}" "$@" >"$out/$name.log" 2>&1 &
    wait $! # a trap does not wait, as it would for a program in the foreground
    local code=$?
    echo "== $name"
    tail -n 14 "$out/$name.log"
    if [ $code -ne 0 ]; then
        echo "== $name ended with code $code"
        failed=1
    fi
    return $code
}

bench() { # name, script, options...
    local name=$1 script=$2
    shift 2
    stage "$name" "$python" "benchmarks/bench_$script.py" --out "$out" --no-mlflow "$@"
}

run() { # stage
    case $1 in
    loss) bench loss loss ;;
    teachers) bench teachers teachers ;;
    jitter) bench jitter jitter ;;
    step_t) bench step_t step --student vit_tiny --rounds 7 --steps 4 ;;
    step_s) bench step_s step --student vit_small --rounds 7 --steps 4 ;;
    step_b) bench step_b step --student vit_base --batch 128 --rounds 7 --steps 4 ;;
    trainer) # from JPEG files to the update
        bench trainer trainer --student vit_tiny --workers 14 --pictures 256 --compile --rounds 5 --steps 14
        ;;
    family) bench family family --compile --rounds 3 --steps 8 ;;
    rates) # what `dmt-ds plan` assumes of these is in docs/performance.md
        local student
        for student in tiny small base; do
            stage "rates_$student" "$python" -m dmt_ds bench -c "vit_$student" train.compile=true teachers.compile=true \
                -o "$out/rates_vit_$student.json"
        done
        return $failed
        ;;
    profile) stage profile "$python" benchmarks/profile_run.py --out "$out" ;;
    tests) stage tests "$python" -m pytest -v -n "${JOBS:-8}" --durations=12 -m gpu -k "not heart" tests/gpu ;;
    heart)
        STAGE_SECONDS=${HEART_SECONDS:-600} stage heart "$python" -m pytest -v -n 2 -m gpu -k heart tests/gpu
        ;;
    study)
        local photos=${PHOTOS:?folder of the images}
        stage study "$python" -m dmt_ds suite small_study data.path="$photos" -o "$out/study" --jobs "${JOBS:-8}"
        ;;
    *)
        echo "no stage $1: loss, step_t, step_s, step_b, teachers, jitter, trainer, family, rates, profile, tests, heart, study"
        return 2
        ;;
    esac
}

side_by_side() { # stages...
    local turns one running=()
    for one in "$@"; do
        if [[ ! $one =~ ^(loss|step_[tsb]|teachers|jitter|trainer|family)$ || $(printf '%s\n' "$@" | grep -cx "$one") != 1 ]]; then
            echo "$one takes no turns, or stands twice in $*"
            failed=1
            return
        fi
    done
    turns=$(mktemp -d)
    echo $# >"$turns/expected"
    for one in "$@"; do
        (
            trap on_signal INT TERM
            trap end_programs EXIT # its own: a signal may reach this shell before the one that waits for it
            STAGE_SECONDS=$((${STAGE_SECONDS:-400} * $#)) TURN=$turns/$one run "$one"
            code=$?
            touch "$turns/$one.ready" # also where it ended before it was
            exit $code
        ) &
        running+=($!)
    done
    for one in "${running[@]}"; do
        wait "$one" || failed=1
    done
    rm -r "$turns"
}

{
    date -u +%F
    nvidia-smi --query-gpu=name,memory.total,driver_version --format=csv,noheader
    "$python" -c 'import torch, deepspeed, timm; print("torch", torch.__version__, "deepspeed", deepspeed.__version__, "timm", timm.__version__)'
} 2>&1 | tee "$out/machine.txt"

for set in $stages; do
    IFS=+ read -ra members <<<"$set"
    if [ ${#members[@]} -gt 1 ]; then
        side_by_side "${members[@]}"
    else
        run "$set" || failed=1
    fi
    pack
done
exit $failed
