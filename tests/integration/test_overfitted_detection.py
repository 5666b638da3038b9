"""Both detectors learn 16 photographs by heart, from random weights: some ten minutes of a free core each.

`tests/gpu` runs the same on CUDA.
"""

import json
from pathlib import Path

import pytest

from tests import processes, tiny_run
from tests.tiny_coco import needs_pycocotools

pytestmark = [pytest.mark.slow, needs_pycocotools]

NUM_IMAGES, NUM_STEPS = 16, 600
SCHEDULE_STEPS = 1000
"""Of which the learning rate's half cosine is; docs/detection.md has figures of the first `NUM_STEPS`."""


def first_images(root: Path, folder: Path) -> Path:
    """The JSON of the first 16 photographs by id, for both splits; the images stay where they are."""
    content = json.loads((root / "annotations/instances_train2017.json").read_text())
    content["images"] = sorted(content["images"], key=lambda image: image["id"])[:NUM_IMAGES]
    kept = {image["id"] for image in content["images"]}
    content["annotations"] = [entry for entry in content["annotations"] if entry["image_id"] in kept]
    path = folder / "first.json"
    path.write_text(json.dumps(content))
    return path


def overfit(root: Path, folder: Path, heads: str) -> list[str]:
    """The run, as arguments of Python."""
    labels = first_images(root, folder)
    settings = (f"data.path={root}", f"detect.annotations={labels}", "detect.images=train2017", f"detect.heads={heads}")
    length = (f"train.steps={SCHEDULE_STEPS}", f"train.stop_after_step={NUM_STEPS}", "train.eval_every_epochs=25")
    rest = ("data.horizontal_flip=0", f"output_dir={folder / 'run'}", "tracking.enabled=false")
    return ["-m", "dmt_ds", "pretrain", "-c", "small_detect", *settings, *length, *rest]


@pytest.mark.parametrize("heads", ["mask_rcnn", "cascade"])
def test_sixteen_photographs_are_learned_by_heart(shared_dir: Path, tmp_path: Path, heads: str) -> None:
    root = shared_dir / "data" / "coco_instances"
    if not root.is_dir():
        pytest.skip(f"no photographs at {root}")
    processes.run(overfit(root, tmp_path, heads), timeout=10800)
    for kind in ("box", "mask"):
        assert tiny_run.losses(tmp_path / "run", f"eval/{kind}_ap50")[NUM_STEPS] > 0.5
