#!/usr/bin/env bash
# Everything that only a GPU can show, in one go, on a GPU machine without network: GPU tests, a short distillation at real
# size, the trainer's overhead. Ends in under ten minutes on one H100 or H200; figures go to the folder given.
#
#   benchmarks/gpu_check.sh OUT_FOLDER          # PYTHON=/path/to/python chooses the interpreter
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1
out=${1:?folder for the figures}
python=${PYTHON:-python3}
mkdir -p "$out"
export PYTHONUNBUFFERED=1 MLFLOW_DISABLE_TELEMETRY=true
failed=0

stage() { # name, command...
    local name=$1
    shift
    echo "== $name"
    timeout "${STAGE_SECONDS:-240}" "$@" >"$out/$name.log" 2>&1
    local code=$?
    tail -n 12 "$out/$name.log"
    if [ $code -ne 0 ]; then
        echo "== $name ended with code $code"
        failed=1
    fi
}

{
    date -u +%F
    nvidia-smi --query-gpu=name,memory.total,driver_version --format=csv,noheader
    "$python" -c 'import torch, deepspeed, timm; print("torch", torch.__version__, "deepspeed", deepspeed.__version__, "timm", timm.__version__)'
} 2>&1 | tee "$out/machine.txt"

stage tests "$python" -m pytest -q -m gpu tests
stage overhead_t "$python" benchmarks/trainer_overhead.py --student vit_tiny --batch 256 --rounds 7 --steps 10 \
    --workers 8 --json "$out/trainer_overhead_vit_tiny.json"
stage overhead_b "$python" benchmarks/trainer_overhead.py --student vit_base --batch 128 --rounds 7 --steps 10 \
    --workers 8 --json "$out/trainer_overhead_vit_base.json"
exit $failed
