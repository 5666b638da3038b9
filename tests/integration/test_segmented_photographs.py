"""ADE20K's recipe on photographs with things and stuff: 0 is no class, the names lie with the data."""

import csv
import io
import math
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
from PIL import Image

from tests import processes, tiny_run

NUM_STEPS = 3
SMALL = {
    "data.source": "parquet", "data.train_split": "train", "data.val_split": "validation", "data.num_workers": 0,
    "data.image_size": 64, "segment.short_side": 96, "segment.test_stride": 43,
    "segment.channels": 24, "segment.auxiliary_channels": 16,
    "student.embed_dim": 48, "student.depth": 4, "student.num_heads": 3, "student.drop_path": 0,
    "train.steps": NUM_STEPS, "train.global_batch_size": 4, "train.micro_batch_size": 4, "train.log_every_steps": 1,
    "train.deepspeed": "student_zero2_fp32", "train.eval_every_epochs": 0, "optim.warmup_steps": 1,
    "tracking.enabled": "false",
}  # fmt: skip


def pixels_by_value(folder: Path) -> np.ndarray:
    """[256] of the validation annotations, as they are stored."""
    (file,) = (folder / "data").glob("validation-*.parquet")
    cells = pyarrow.parquet.read_table(file).column("annotation").to_pylist()
    maps = [np.asarray(Image.open(io.BytesIO(cell["bytes"]))) for cell in cells]
    return np.sum([np.bincount(labels.ravel(), minlength=256) for labels in maps], axis=0)


@pytest.mark.distributed
def test_photographs_of_things_and_stuff_are_learned_and_judged_as_ade20k(shared_dir: Path, tmp_path: Path) -> None:
    data = shared_dir / "data" / "coco_semantic"
    settings = [f"{key}={value}" for key, value in SMALL.items()]
    where = [f"data.path={data}", f"output_dir={tmp_path / 'run'}"]
    processes.run(["-m", "dmt_ds", "pretrain", "-c", "segment_ade20k_vit_tiny", *settings, *where], timeout=500)
    assert [math.isfinite(loss) for loss in tiny_run.losses(tmp_path / "run").values()] == [True] * NUM_STEPS
    with (tmp_path / "run/pictures/confusion.csv").open() as file:
        (_, *names), *rows = csv.reader(file)
    counted = np.array([row[1:] for row in rows], dtype=np.int64).sum(axis=1)
    there = pixels_by_value(data)
    assert len(names) == 133 and there[0] > 0
    assert counted.tolist() == there[1:134].tolist()
    share = there[1:].max() / there[1:].sum()
    (majority,) = tiny_run.losses(tmp_path / "run", "eval/aacc_of_majority").values()
    assert majority == pytest.approx(share, abs=1e-6)
