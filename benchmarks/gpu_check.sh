#!/usr/bin/env bash
# Everything that only a GPU can show, in one go, on a GPU machine without network: GPU tests, the losses, whole steps
# beside those of others, the trainer's overhead. Figures go to the folder given, as JSON and Markdown.
#
#   benchmarks/gpu_check.sh OUT_FOLDER                     # all; PYTHON=/path/to/python chooses the interpreter
#   benchmarks/gpu_check.sh OUT_FOLDER tests loss          # some stages: of compile, loss, jitter, step_t, step_s,
#                                                          # step_b, trainer, family, rates, tests, heart, study
#
# `study` is not among them unless asked for: the small study of docs/small_study.md on the images in PHOTOS (a parquet
# folder), goes on where it was ended, and leaves its runs in OUT_FOLDER/study.
#
# `compile` takes one step of all that is compiled, side by side; what is timed later finds it in the compiler's cache.
# A command is ended after STAGE_SECONDS (280; photographs learned by heart, 600); the others go on, and the code says it.
# On an H200 with 16 cores a whole step's benchmark took more than one minute, and `compile` more than two.
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1
out=${1:?folder for the figures}
shift
stages=${*:-compile loss jitter step_t step_s step_b trainer family rates tests heart}
python=${PYTHON:-python3}
mkdir -p "$out"
out=$(cd "$out" && pwd)
export PYTHONUNBUFFERED=1 MLFLOW_DISABLE_TELEMETRY=true PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True
failed=0

stage() { # name, command...
    local name=$1
    shift
    echo "== $name"
    timeout "${STAGE_SECONDS:-280}" "$@" >"$out/$name.log" 2>&1
    local code=$?
    tail -n 14 "$out/$name.log"
    if [ $code -ne 0 ]; then
        echo "== $name ended with code $code"
        failed=1
    fi
}

compile() {
    local running=() one
    quick loss &
    running+=($!)
    quick step --student vit_tiny &
    running+=($!)
    quick step --student vit_small &
    running+=($!)
    quick step --student vit_base --batch 128 &
    running+=($!)
    quick trainer --student vit_tiny --compile &
    running+=($!)
    for one in "${running[@]}"; do
        wait "$one" || failed=1
    done
}

quick() { # script, options...
    local script=$1
    shift
    timeout "${STAGE_SECONDS:-280}" "$python" "benchmarks/bench_$script.py" --out "$out/compile" --no-mlflow \
        --rounds 1 --steps 1 "$@" >"$out/compile_${script}_${2:-}.log" 2>&1
}

bench() { # name, script, options...
    local name=$1 script=$2
    shift 2
    stage "$name" "$python" "benchmarks/bench_$script.py" --out "$out" --no-mlflow "$@"
}

{
    date -u +%F
    nvidia-smi --query-gpu=name,memory.total,driver_version --format=csv,noheader
    "$python" -c 'import torch, deepspeed, timm; print("torch", torch.__version__, "deepspeed", deepspeed.__version__, "timm", timm.__version__)'
} 2>&1 | tee "$out/machine.txt"

for set in $stages; do
    case $set in
    compile) compile ;;
    tests) stage tests "$python" -m pytest -v -n "${JOBS:-8}" --durations=12 -m gpu -k "not heart" tests/gpu ;;
    heart) # needs the photographs of DMT_DS_SHARED
        STAGE_SECONDS=${HEART_SECONDS:-600} stage heart "$python" -m pytest -v -n 2 -m gpu -k heart tests/gpu
        ;;
    loss) bench loss loss ;;
    jitter) bench jitter jitter ;;
    step_t) bench step_t step --student vit_tiny --rounds 5 --steps 4 ;;
    step_s) bench step_s step --student vit_small --rounds 5 --steps 4 ;;
    step_b) bench step_b step --student vit_base --batch 128 --rounds 5 --steps 4 ;;
    trainer) # from JPEG files to the update
        bench trainer_t trainer --student vit_tiny --workers 14 --pictures 256 --compile --rounds 5 --steps 10
        ;;
    family) bench family family --rounds 5 --steps 5 ;;
    rates) # what `dmt-ds plan` assumes of these is in docs/performance.md
        for student in tiny small base; do
            stage "rates_$student" "$python" -m dmt_ds bench -c "vit_$student" train.compile=true teachers.compile=true \
                -o "$out/rates_vit_$student.json"
        done
        ;;
    study)
        photos=${PHOTOS:?folder of the images}
        stage study "$python" -m dmt_ds suite small_study data.path="$photos" -o "$out/study" --jobs "${JOBS:-8}"
        ;;
    *)
        echo "no stage $set: compile, loss, jitter, step_t, step_s, step_b, trainer, family, rates, tests, heart, study"
        exit 2
        ;;
    esac
done
exit $failed
