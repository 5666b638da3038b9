"""Detection as a task: normalised pixels, torchvision's losses, what is found; knows no engine and no file."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from dmt_ds.config.detection import DetectConfig
from dmt_ds.config.methods import AugmentConfig
from dmt_ds.config.schema import StudentConfig
from dmt_ds.data.augment import Augment, blank_beyond, normalize
from dmt_ds.data.batch import Batch
from dmt_ds.data.detection_batch import DetectionTarget
from dmt_ds.downstream.detection.detector import Detector
from dmt_ds.engine.task import Model, Progress, StatelessTask, TaskLosses, frozen_weights
from dmt_ds.models.evaluation_mode import evaluating
from dmt_ds.models.start import start_from
from dmt_ds.models.vit import build_vit
from dmt_ds.models.vit_layers import layer_numbers


class Answer(NamedTuple):
    """What a detector says of one image."""

    row: int
    """Of the data set."""
    size: tuple[int, int]
    """Height and width at which it was looked at."""
    found: dict[str, Tensor]
    """`boxes` [n, 4] in pixels of that size, `labels` [n] from 1, `scores` [n], `masks` [n, 1, 28, 28] of the boxes."""


class DetectionTask(StatelessTask):
    """Learns to find objects; the result is the encoder, and the average precision of the whole.

    Args:
        student: the encoder; starts from `init_from` where that is set.
        image_size: that its positions are of, in pixels; they are interpolated to each batch's images.
        augment: of the pixels on the device.
        class_names: of the categories, by label.
    """

    def __init__(
        self,
        student: StudentConfig,
        section: DetectConfig,
        image_size: int,
        augment: AugmentConfig,
        class_names: Sequence[str],
    ) -> None:
        vit = build_vit(student, image_size, any_size=True)
        if student.init_from is not None:
            start_from(vit, student.init_from, image_size)
        self.module = Detector(vit, section, len(class_names))
        self.class_names = tuple(class_names)
        self.untouched = frozen_weights(self.module)
        self._augment = Augment(augment)

    def layers(self) -> dict[str, int]:
        """Pyramid and heads learn with the last layer."""
        return layer_numbers(self.module, self.module.vit)

    def backbone(self) -> nn.Module:
        """The ViT, without pyramid and heads."""
        vit: nn.Module = self.module.vit
        return vit

    def losses(self, model: Model, batch: Batch, progress: Progress, diagnose: bool) -> TaskLosses:
        """The sum of torchvision's losses: of proposals, classes, boxes and masks."""
        target = batch.target
        assert isinstance(target, DetectionTarget)
        images = blank_beyond(self._augment(batch.images, batch.seeds), target.sizes)
        wanted = [
            {"boxes": own.boxes, "labels": own.labels + 1, "masks": own.masks}  # 0 is the background
            for own in target.objects
        ]
        losses = model(images, batch.seeds, target.sizes, wanted)
        metrics = {f"train/{name}": loss.detach() for name, loss in losses.items()}
        return TaskLosses(torch.stack(list(losses.values())).sum(), metrics)

    def answers(self, model: Model, batches: Iterable[Batch]) -> Iterator[Answer]:
        """What is found in this rank's images, one after the other; a label below 0 is left out.

        Args:
            batches: of `EvalDetectionMaker`.
        """
        with evaluating(self.module), torch.no_grad():
            for batch in batches:
                yield from self._answers(model, batch.to(next(self.module.parameters()).device))

    def _answers(self, model: Model, batch: Batch) -> Iterator[Answer]:
        target, section = batch.target, self._augment.section
        assert isinstance(target, DetectionTarget)
        images = blank_beyond(normalize(batch.images, section.mean, section.std), target.sizes)
        found: list[dict[str, Any]] = model(images, batch.seeds, target.sizes)
        columns = batch.indices.tolist(), batch.labels.tolist(), target.sizes, found
        for row, label, size, of_image in zip(*columns, strict=True):
            if label >= 0:
                yield Answer(row, size, of_image)
