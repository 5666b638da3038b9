"""A short `dmt-ds pretrain` with `train.profile_steps`, on digits and with random teachers: where a step's time goes.

    python benchmarks/profile_run.py --out FOLDER                             # the recipe vit_tiny, on a GPU
    python benchmarks/profile_run.py --out FOLDER --teacher vit_tiny --image-size 32 train.global_batch_size=2 \\
        train.micro_batch_size=2 data.num_workers=0                           # to see it run

Teachers lie in whole copies, and what can be compiled is. FOLDER gets the table as profile.json, and the trace beside
it unless it is large.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from ours import make_teachers

from dmt_ds.engine.step_profile import TABLE_FILE, TRACE_FILE, render
from dmt_ds.run_files import PROFILE_FOLDER

TEACHERS = ("mae", "moco_v3", "ibot")  # of the recipe
LARGEST_TRACE = 4 * 2**20  # bytes; the folder of figures is to be small enough to be sent


def settings(options: argparse.Namespace, folder: Path) -> list[str]:
    """Of the run: when the steps come that are looked at, all is compiled and the loader is ahead."""
    models = make_teachers(folder, options.teacher, len(TEACHERS), options.image_size)
    sources = zip(TEACHERS, models.values(), strict=True)
    chosen = {f"teachers.models.{name}.source": model.source for name, model in sources} | {
        "output_dir": str(folder / "run"),
        "data.source": "digits",
        "data.image_size": options.image_size,
        "teachers.sharding": "replicate",
        "teachers.compile": "true",
        "train.compile": "true",
        "train.global_batch_size": 256,
        "train.micro_batch_size": 256,
        "train.steps": 40,
        "train.profile_steps": "[33,36]",
        "tracking.enabled": "false",
        "tracking.pictures": "false",
    }
    if not torch.cuda.is_available():
        chosen |= {"train.deepspeed": "student_zero2_fp32", "teachers.deepspeed": "teacher_zero3_inference_fp32"}
    chosen |= dict(override.split("=", 1) for override in options.overrides)
    return [f"{key}={value}" for key, value in chosen.items()]


def keep(profile: Path, out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    shutil.copy(profile / TABLE_FILE, out / "profile.json")
    trace, size = profile / TRACE_FILE, (profile / TRACE_FILE).stat().st_size
    if size <= LARGEST_TRACE:
        shutil.copy(trace, out / "profile_trace.json.gz")
    else:
        print(f"the trace has {size / 2**20:.1f} MiB and is left out")
    print(render(json.loads((profile / TABLE_FILE).read_text())))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the table and the trace")
    parser.add_argument("--teacher", default="vit_base", help="architecture of all three")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="settings of the run")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        command = [sys.executable, "-m", "dmt_ds", "pretrain", "-c", "vit_tiny", *settings(options, folder)]
        done = subprocess.run(command)
        if done.returncode != 0:
            raise SystemExit(done.returncode)
        keep(folder / "run" / PROFILE_FOLDER, options.out)


if __name__ == "__main__":
    main()
