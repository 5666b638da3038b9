"""What loader processes do for segmentation: rows of a source to batches of images with label maps."""

from dataclasses import dataclass

import torch
from torch import Tensor

from dmt_ds import sample_rng
from dmt_ds.config.schema import BadImages, Interpolation
from dmt_ds.config.segmentation import IGNORED
from dmt_ds.data.batch import Batch
from dmt_ds.data.batch_maker import BatchMaker, Job, RowReader, empty_images, in_shared_memory
from dmt_ds.data.joint_crop import NUMBERS, JointCrop, resized
from dmt_ds.data.label_maps import LabelMapSource


@dataclass(frozen=True)
class LabelMaps:
    """Label maps of a batch's images.

    Attributes:
        maps: [B, H, W] uint8, class numbers and 255. In evaluation of the image's own size, which its pixels in the
            batch need not have.
        sizes: height and width of what each image fills of its training crop, at the top left; none in evaluation.
    """

    maps: Tensor
    sizes: tuple[tuple[int, int], ...] = ()

    def pin_memory(self) -> "LabelMaps":
        """A copy in page-locked memory."""
        return LabelMaps(self.maps.pin_memory(), self.sizes)

    def to(self, device: torch.device) -> "LabelMaps":
        """A copy on `device`; does not wait for the transfer when the memory is pinned."""
        return LabelMaps(self.maps.to(device, non_blocking=True), self.sizes)


class TrainMapMaker(BatchMaker):
    """Draws one crop of each image and of its label map."""

    def __init__(self, source: LabelMapSource, crop: JointCrop, run_seed: int, bad_images: BadImages) -> None:
        self._crop, self._run_seed = crop, run_seed
        self._read = RowReader(source.read_pair, len(source), bad_images)

    def make(self, job: Job, met: dict[int, str]) -> Batch:
        """Read, crop and stack the job's images and maps."""
        epochs, rows = torch.tensor(job[0]), torch.tensor(job[1])
        seeds = sample_rng.image_seeds(self._run_seed, epochs, rows)  # [B]
        numbers: list[list[float]] = sample_rng.uniform(seeds, "joint_crop", NUMBERS).tolist()
        size = self._crop.size
        images = empty_images(len(rows), size)
        maps = in_shared_memory(torch.empty(len(rows), size, size, dtype=torch.uint8))
        sizes = []
        for place, row in enumerate(job[1]):
            pair, rows[place] = self._read(row, int(seeds[place]), met)
            sizes.append(self._crop.cut_into(images[place], maps[place], pair, numbers[place]))
        labels = torch.full_like(rows, -1)
        return Batch((images,), seeds, rows, labels, LabelMaps(maps, tuple(sizes)))


class EvalMapMaker(BatchMaker):
    """One whole image a batch, scaled, with its label map at its own size; jobs have one row.

    A row beyond the last one fills a rank's share up: its map is all 255, its label -1; that of all others is 0.
    """

    def __init__(self, source: LabelMapSource, short_side: int | None, interpolation: Interpolation) -> None:
        self._source, self._short_side, self._interpolation = source, short_side, interpolation

    def make(self, job: Job, met: dict[int, str]) -> Batch:
        """Read and scale the job's image."""
        (row,), num_images = job[1], len(self._source)
        image, labels = self._source.read_pair(row % num_images)
        fills_up = row >= num_images
        if fills_up:
            labels = torch.full_like(labels, IGNORED)
        image = resized(image, self._short_side, interpolation=self._interpolation)
        zero = torch.zeros(1, dtype=torch.int64)
        target = LabelMaps(in_shared_memory(labels[None]))
        return Batch((in_shared_memory(image[None]),), zero, zero + row % num_images, zero - int(fills_up), target)
