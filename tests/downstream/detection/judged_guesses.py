"""Five images and what a detector might say of them, judged by all ranks; `main` is one of them."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from dmt_ds.config.methods import AugmentConfig
from dmt_ds.data.batch import Batch
from dmt_ds.data.coco import CocoSource, open_coco
from dmt_ds.data.detection_maker import EvalDetectionMaker
from dmt_ds.data.detection_views import ScaleSpec
from dmt_ds.data.loader import every_image
from dmt_ds.downstream.detection.results import results_of, scores_over_ranks
from dmt_ds.downstream.detection.task import DetectionTask
from dmt_ds.engine import dist
from dmt_ds.engine.deepspeed import ds_engine
from tests.downstream.detection import tiny

NUM_IMAGES = 5
"""Odd: one of two processes is given an image a second time, which must not count."""


class Guesses:
    """Stands for a detector: what is labelled, some pixels off, surer here and less sure there."""

    def __init__(self, source: CocoSource) -> None:
        self._source, self._row = source, -1

    def noting_rows(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        for batch in batches:
            self._row = int(batch.indices)
            yield batch

    def __call__(self, images: torch.Tensor, seeds: torch.Tensor, sizes: Any) -> list[dict[str, torch.Tensor]]:
        chance = torch.Generator().manual_seed(self._row)
        objects, (height, width) = self._source.objects(self._row), self._source.size(self._row)
        factors = torch.tensor([sizes[0][1] / width, sizes[0][0] / height] * 2)
        boxes = torch.tensor([thing.box for thing in objects]) * factors
        return [
            {
                "boxes": (boxes + 4 * torch.randn(boxes.shape, generator=chance)).clamp(min=0),
                "labels": torch.tensor([thing.label + 1 for thing in objects]),
                "scores": torch.rand(len(objects), generator=chance),
                "masks": torch.ones(len(objects), 1, 28, 28),
            }
        ]


def judged(root: Path) -> dict[str, float]:
    """Of this rank's share, and all ranks together."""
    source = open_coco(str(root), "val", "annotations/instances_{split}.json", "{split}")
    task = DetectionTask(tiny.STUDENT, tiny.section(), tiny.IMAGE_SIZE, AugmentConfig(), source.class_names)
    maker = EvalDetectionMaker(source, ScaleSpec((64,), 96), task.module.size_multiple)
    batches = every_image(maker, NUM_IMAGES, 1, rank=dist.rank(), world_size=dist.world_size())
    guesses = Guesses(source)
    results = []
    for answer in task.answers(guesses, guesses.noting_rows(batches)):
        image_id, ids = int(source.ids[answer.row]), [category.id for category in source.categories]
        results += results_of(answer.found, answer.size, source.size(answer.row), image_id, ids)
    return scores_over_ranks(results, source.truth, masks=True)


def main() -> None:
    torch.set_num_threads(1)
    ds_engine.start(120)
    scores = dist.gather_objects(judged(Path(sys.argv[1])))
    if dist.is_main():
        print("SCORES " + json.dumps(scores), flush=True)
    ds_engine.stop()


if __name__ == "__main__":
    main()
