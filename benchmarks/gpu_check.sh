#!/usr/bin/env bash
# Everything that only a GPU can show, in one go, on a GPU machine without network: GPU tests, the losses, whole steps
# beside those of others, the trainer's overhead. Figures go to the folder given, as JSON and Markdown.
#
#   benchmarks/gpu_check.sh OUT_FOLDER                     # all; PYTHON=/path/to/python chooses the interpreter
#   benchmarks/gpu_check.sh OUT_FOLDER tests loss          # some stages: of tests, loss, trainer, step_t, step_s, step_b,
#                                                          # family, rates
#
# A command is ended after STAGE_SECONDS (280), so that any two fit ten minutes; the others go on, and the code says it.
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1
out=${1:?folder for the figures}
shift
stages=${*:-tests loss trainer step_t step_s step_b family rates}
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
    tests) stage tests "$python" -m pytest -q -n "${JOBS:-6}" --durations=12 -m gpu tests/gpu tests/data ;;
    loss) bench loss loss ;;
    trainer)
        bench trainer_t trainer --student vit_tiny --workers 8
        bench trainer_b trainer --student vit_base --batch 128 --workers 8
        ;;
    step_t) bench step_t step --student vit_tiny --rounds 7 --steps 5 ;;
    step_s) bench step_s step --student vit_small --rounds 7 --steps 5 ;;
    step_b) bench step_b step --student vit_base --batch 128 --rounds 7 --steps 5 ;;
    family) bench family family ;;
    rates) # what `dmt-ds plan` assumes of these is in docs/performance.md
        for student in tiny small base; do
            stage "rates_$student" "$python" -m dmt_ds bench -c "vit_$student" train.compile=true teachers.compile=true \
                -o "$out/rates_vit_$student.json"
        done
        ;;
    *)
        echo "no stage $set: tests, loss, trainer, step_t, step_s, step_b, family, rates"
        exit 2
        ;;
    esac
done
exit $failed
