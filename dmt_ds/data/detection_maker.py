"""What a loader process does for detection: rows of a COCO source to one batch; knows no order and no process."""

import torch
from torch import Tensor

from dmt_ds import sample_rng
from dmt_ds.config.schema import BadImages
from dmt_ds.data.batch import Batch
from dmt_ds.data.batch_maker import BatchMaker, Job, RowReader
from dmt_ds.data.coco import CocoSource
from dmt_ds.data.detection_batch import DetectionTarget
from dmt_ds.data.detection_views import Draw, ScaleSpec, draws, padded, scaled_image, scaled_objects


class TrainDetectionMaker(BatchMaker):
    """Images scaled and mirrored by their own seeds, with their objects.

    Args:
        spec: how they are scaled.
        size_multiple: of which the batch's height and width are.
        bad_images: an unreadable image ends the work, or another takes its place.
    """

    def __init__(
        self,
        source: CocoSource,
        spec: ScaleSpec,
        size_multiple: int,
        run_seed: int,
        bad_images: BadImages,
    ) -> None:
        self._source, self._spec = source, spec
        self._size_multiple, self._run_seed = size_multiple, run_seed
        self._read = RowReader(source.read, len(source), bad_images)

    def make(self, job: Job, met: dict[int, str]) -> Batch:
        """Read, scale and pad the job's images."""
        epochs, rows = torch.tensor(job[0]), torch.tensor(job[1])
        seeds = sample_rng.image_seeds(self._run_seed, epochs, rows)  # [B]
        images: list[Tensor] = []
        objects = []
        for place, draw in enumerate(draws(seeds, self._spec)):
            image, row = self._read(job[1][place], int(seeds[place]), met)
            images.append(scaled_image(image, self._spec, draw))
            size = size_of(images[-1])
            objects.append(scaled_objects(self._source.objects(row), size_of(image), size, self._spec, draw))
            rows[place] = row
        target = DetectionTarget(tuple(map(size_of, images)), tuple(objects))
        return Batch((padded(images, self._size_multiple),), seeds, rows, torch.full_like(rows, -1), target)


class EvalDetectionMaker(BatchMaker):
    """One image a batch, scaled, as it is: then what is found in it does not depend on the images beside it.

    A row beyond the last one is an image that was there before, with label -1; that of all others is 0.
    """

    def __init__(self, source: CocoSource, spec: ScaleSpec, size_multiple: int) -> None:
        self._source, self._spec, self._size_multiple = source, spec, size_multiple

    def make(self, job: Job, met: dict[int, str]) -> Batch:
        """Read, scale and pad the job's one image."""
        (row,) = job[1]
        num_images = len(self._source)
        image = scaled_image(self._source.read(row % num_images), self._spec, Draw(self._spec.short_sides[0], False))
        rows = torch.tensor([row % num_images])
        labels = torch.tensor([0 if row < num_images else -1])
        target = DetectionTarget((size_of(image),))
        return Batch((padded([image], self._size_multiple),), torch.zeros_like(rows), rows, labels, target)


def size_of(image: Tensor) -> tuple[int, int]:
    """Height and width of [3, H, W]."""
    return image.shape[1], image.shape[2]
