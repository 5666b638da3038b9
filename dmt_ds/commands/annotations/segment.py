"""Segmentation as a task with annotations: its images, its judge, its pictures of answers, the folder it leaves."""

import csv
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dmt_ds.commands.annotations.annotated import AnnotatedKind, Judgement, Scene
from dmt_ds.config.schema import RunConfig
from dmt_ds.config.segmentation import IGNORED
from dmt_ds.data.batch import Batch
from dmt_ds.data.batch_maker import BatchMaker
from dmt_ds.data.joint_crop import JointCrop, resized
from dmt_ds.data.label_maps import LabelMapSource, SegmentedImages, count_pixels, open_label_maps, open_segmented
from dmt_ds.data.map_batches import EvalMapMaker, LabelMaps, TrainMapMaker
from dmt_ds.data.sampling import spread
from dmt_ds.data.sources import ImageSource
from dmt_ds.data.splits import Split
from dmt_ds.downstream.region_overlap import Overlap, class_iou, overlap_of
from dmt_ds.downstream.segmentation import SegmentationTask
from dmt_ds.downstream.segmenter_folder import SEGMENTER_FILE, load_segmenter, save_segmenter
from dmt_ds.engine import dist
from dmt_ds.engine.deepspeed.masters import state_of
from dmt_ds.engine.task import Model
from dmt_ds.run_files import SEGMENTER_FOLDER

logger = logging.getLogger(__name__)

NUM_SHOWN = 8
"""Validation images whose answers are drawn."""
MAPS_COUNTED = 100
"""Training maps whose pixels are counted where nothing is trained."""

MOST_UNLIKE = 2.0
"""Short side of the images by the crop's, or the other way round, at most without a word; Cityscapes' is 1024 by 512.
"""


class Segmentation(AnnotatedKind[SegmentationTask, SegmentedImages]):
    """Classes of pixels."""

    folder = SEGMENTER_FOLDER
    told_as = ("segment",)
    described_in = SEGMENTER_FILE
    shaped_by = tuple(f"segment.{key}" for key in ("blocks", "channels", "auxiliary_weight", "auxiliary_channels"))
    needs_whole_weights = "sees images of many sizes, so that ranks would wait for each other's parts"

    def open(self, config: RunConfig) -> SegmentedImages:
        """Both splits with their label maps."""
        return open_segmented(config.data, config.segment)

    def source(self, config: RunConfig, split: Split) -> LabelMapSource:
        """One split with its annotations, so that a look at its images is one at both."""
        return open_label_maps(config.data, config.segment, split)

    def open_validation(self, config: RunConfig) -> LabelMapSource:
        """The validation split with its label maps."""
        return self.source(config, "val")

    def meaning(self, images: SegmentedImages) -> list[str]:
        """Which class each value of a pixel is."""
        return [images.train.values.told()]

    def doubts(self, config: RunConfig) -> list[str]:
        """A crop that shows little of an image, or an image that fills little of a crop."""
        short_side, crop = config.segment.short_side, config.data.image_size
        if short_side is None or 1 / MOST_UNLIKE <= short_side / crop <= MOST_UNLIKE:
            return []
        part = f"1/{max(short_side / crop, crop / short_side) ** 2:.0f}"
        shows = f"a crop shows about {part} of an image" if short_side > crop else f"an image fills {part} of a crop"
        sides = f"images are scaled to a short side of {short_side} pixels, crops have {crop} (data.image_size)"
        return [f"{sides}: {shows}; segment.short_side={crop} is usual"]

    def gaps(self, images: SegmentedImages) -> list[str]:
        """Values that look as if they were meant otherwise, by a few training maps from first to last."""
        source, rows = images.train, spread(len(images.train), MAPS_COUNTED)
        return source.values.doubts(source.pixels_of(rows), f"the {len(rows)} training maps looked at")

    def build(self, config: RunConfig, class_names: Sequence[str]) -> SegmentationTask:
        """UPerNet on the encoder.

        Raises:
            ConfigError: a block is asked for that is not there.
        """
        return SegmentationTask(config.student, config.segment, config.data.image_size, config.augment, class_names)

    def train_maker(self, config: RunConfig, images: SegmentedImages, task: SegmentationTask) -> BatchMaker:
        """Crops of images and their maps."""
        crop = JointCrop.from_sections(config.data, config.segment)
        return TrainMapMaker(images.train, crop, config.seed, config.data.bad_images)

    def build_judge(self, task: SegmentationTask, images: ImageSource, scene: Scene) -> "SegmentationJudge":
        """The judge by mIoU, aAcc and mAcc."""
        assert isinstance(images, LabelMapSource)
        return SegmentationJudge(task, images, scene)

    def save(
        self,
        task: SegmentationTask,
        config: RunConfig,
        masters: Mapping[str, Tensor],
        provenance: Mapping[str, Any],
        folder: Path,
    ) -> None:
        """Encoder, pyramid and heads."""
        save_segmenter(
            folder,
            state_of(task.module, masters),
            config.student,
            config.segment,
            config.data,
            config.augment,
            task.class_names,
            provenance,
        )

    def restore(self, config: RunConfig, folder: Path) -> SegmentationTask:
        """The published segmenter."""
        saved = load_segmenter(folder)
        student = config.student.model_copy(update={"init_from": None})
        task = self.build(config.model_copy(update={"student": student}), saved.class_names)
        task.module.load_state_dict(saved.model.state_dict())
        return task

    def stage(self, config: RunConfig) -> str:
        """`segment`."""
        return "segment"

    def recipe_of(self, size: str) -> str:
        """ADE20K's recipe."""
        return f"segment_ade20k_vit_{size}"


@dataclass(frozen=True)
class SegmentationJudge:
    """Judges a segmenter by the overlap of its answers with the label maps; all ranks call all of it.

    Attributes:
        images: those that it is judged on, with their maps.
    """

    task: SegmentationTask
    images: LabelMapSource
    scene: Scene

    told_as = "segment"
    drawn = ("confusion.csv", "confusion.png", "classes.csv", "masks.png")

    def look_at_images(self) -> None:
        """Read each image and its annotation once; warn where the values seem to be meant otherwise.

        Raises:
            DataError: one can't be read, or does not fit the other; names it.
        """
        pixels = torch.zeros(IGNORED + 1, dtype=torch.int64)
        for batch in self._batches("reading the validation images"):
            assert isinstance(batch.target, LabelMaps)
            pixels += count_pixels(batch.target.maps) * (batch.labels >= 0)
        pixels = dist.sum_over_ranks(pixels.to(self.task.module.device)).cpu()
        if dist.is_main():
            for line in self.images.values.doubts(pixels, "the validation maps"):
                logger.warning("%s", line)

    def judge(self, model: Model, doing: str) -> Judgement[Tensor]:
        """`miou`, `aacc` and `macc`; the answers are the pixels of all ranks by class and answer, [C, C]."""
        own = self.task.confusion(model, self._batches(doing))
        confusion = dist.sum_over_ranks(own).cpu()
        overlap, majority = overlap_of(confusion), majority_of(confusion)
        told = (
            f"mIoU {100 * overlap.miou:.2f} %, aAcc {100 * overlap.aacc:.2f} %, mAcc {100 * overlap.macc:.2f} % of "
            f"{len(self.images)} validation images"
        )
        baselines = {"miou_of_majority": majority.miou, "aacc_of_majority": majority.aacc}
        return Judgement(overlap._asdict(), [told], "miou", confusion, baselines=baselines)

    def pictures(self, judgement: Judgement[Tensor]) -> Callable[[Path], None]:
        """The confusion matrix, the classes' scores, and a few masks."""
        return partial(self._draw, judgement.answers)

    def _shown(self) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Image [3, H, W], label map and answer [H, W], all uint8, of a few images."""
        data, section = self.scene.config.data, self.scene.config.segment
        found = []
        for row in spread(len(self.images), NUM_SHOWN):
            image, labels = self.images.read_pair(row)
            scaled = resized(image, section.short_side, interpolation=data.interpolation)
            device = self.task.module.device
            answer = self.task.answer(self.task.module, scaled[None].to(device), labels.shape)
            found.append((image, labels, answer.cpu()))
        return found

    def _draw(self, confusion: Tensor, folder: Path) -> None:
        from dmt_ds.tracking import answer_pictures, mask_pictures

        names = self.task.class_names
        answer_pictures.write_confusion(confusion, names, folder / "confusion.csv")
        answer_pictures.draw_confusion(confusion, names, folder / "confusion.png")
        _write_classes(confusion, names, folder / "classes.csv")
        mask_pictures.draw_masks(self._shown(), names, folder / "masks.png")

    def _batches(self, doing: str) -> Iterator[Batch]:
        """This rank's share of the images, one a batch."""
        data = self.scene.config.data
        maker = EvalMapMaker(self.images, self.scene.config.segment.short_side, data.interpolation)
        return self.scene.batches(maker, len(self.images), 1, doing)


def majority_of(confusion: Tensor) -> Overlap:
    """What it would be to answer the most frequent class everywhere: [C, C], a row a true class."""
    of_class = confusion.sum(dim=1)
    answers = torch.zeros_like(confusion)
    answers[:, int(of_class.argmax())] = of_class
    return overlap_of(answers)


def _write_classes(confusion: Tensor, names: Sequence[str], path: Path) -> None:
    """A line a class: its IoU, the right share of its pixels, its share of all pixels."""
    of_class = confusion.sum(dim=1).double()
    columns = (class_iou(confusion), confusion.diagonal() / of_class, of_class / of_class.sum())
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["class", "iou", "accuracy", "share_of_pixels"])
        writer.writerows(
            [name, *(f"{value:.4f}" for value in row)]
            for name, *row in zip(names, *(column.tolist() for column in columns), strict=True)
        )
