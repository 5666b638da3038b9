"""Semantic segmentation on a given or a fresh encoder; knows no engine and no file."""

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from dmt_ds.config.methods import AugmentConfig
from dmt_ds.config.schema import StudentConfig
from dmt_ds.config.segmentation import IGNORED, SegmentConfig
from dmt_ds.data.augment import blank_beyond, normalize
from dmt_ds.data.batch import Batch
from dmt_ds.data.map_batches import LabelMaps
from dmt_ds.data.photometric import distort
from dmt_ds.downstream.region_overlap import confusion_of
from dmt_ds.downstream.segmenter import Segmenter, View
from dmt_ds.engine.task import Model, Progress, StatelessTask, TaskLosses, frozen_weights
from dmt_ds.models.evaluation_mode import evaluating
from dmt_ds.models.start import start_from
from dmt_ds.models.uper_heads import scores_at
from dmt_ds.models.vit import build_vit
from dmt_ds.models.vit_layers import layer_numbers


def pixel_loss(scores: Tensor, maps: Tensor) -> Tensor:
    """Cross-entropy in float32, summed over pixels with a class and divided by all, as MMSegmentation does.

    So a pixel counts as much on whatever rank and in whatever micro-batch it lies.

    Args:
        scores: [B, C, h, w], scaled to the map's size.
        maps: [B, H, W] int64, class numbers and 255.
    """
    at_size = scores_at(scores, maps.shape[-2:])
    return functional.cross_entropy(at_size, maps, ignore_index=IGNORED, reduction="sum") / maps.numel()


class SegmentationTask(StatelessTask):
    """Learns the classes of pixels; the result is the encoder, and the overlap that the whole reaches.

    Args:
        student: the encoder; starts from `init_from` where that is set, with positions interpolated to the crop.
        image_size: side of the crop, in pixels.
        augment: normalisation; of its strengths none is used.
        class_names: of the data set, by class number.
    """

    def __init__(
        self,
        student: StudentConfig,
        section: SegmentConfig,
        image_size: int,
        augment: AugmentConfig,
        class_names: Sequence[str],
    ) -> None:
        vit = build_vit(student, image_size, any_size=True)
        if student.init_from is not None:
            start_from(vit, student.init_from, None)
        self.module = Segmenter(vit, len(class_names), section)
        self.class_names = tuple(class_names)
        self._section, self._augment = section, augment
        self._view = View.from_sections(section, image_size, augment.mean, augment.std)
        self.untouched = frozen_weights(self.module)

    def layers(self) -> dict[str, int]:
        """Pyramid and heads learn with the last layer."""
        return layer_numbers(self.module, self.module.vit)

    def backbone(self) -> torch.nn.Module:
        """The ViT, without heads."""
        return self.module.vit

    def losses(self, model: Model, batch: Batch, progress: Progress, diagnose: bool) -> TaskLosses:
        """Cross-entropy of both heads; `train/aacc` is the share of right pixels, at the head's own resolution."""
        assert isinstance(batch.target, LabelMaps)
        maps = batch.target.maps.long()  # [B, H, W]
        pixels = batch.images.to(torch.float32, memory_format=torch.contiguous_format).div_(255)
        if self._section.photometric:
            pixels = distort(pixels, batch.seeds)
        images = normalize(pixels, self._augment.mean, self._augment.std)
        scores = model(blank_beyond(images, batch.target.sizes), batch.seeds)  # the distortion reached there too
        main = pixel_loss(scores.main, maps)
        metrics = {"train/loss_segmentation": main.detach(), "train/aacc": _right_share(scores.main.detach(), maps)}
        if scores.auxiliary is None:
            return TaskLosses(main, metrics)
        auxiliary = pixel_loss(scores.auxiliary, maps)
        metrics["train/loss_auxiliary"] = auxiliary.detach()
        return TaskLosses(main + self._section.auxiliary_weight * auxiliary, metrics)

    def confusion(self, model: Model, batches: Iterable[Batch]) -> Tensor:
        """Pixels of this rank's images by class and answer, [C, C] int64, at the size of their maps.

        Args:
            batches: one image each (`EvalMapMaker`).
        """
        device, num_classes = self.module.device, len(self.class_names)
        counts = torch.zeros(num_classes, num_classes, dtype=torch.int64, device=device)
        for batch in batches:
            on_device = batch.to(device)
            assert isinstance(on_device.target, LabelMaps)
            (labels,) = on_device.target.maps
            counts += confusion_of(labels, self.answer(model, on_device.images, labels.shape), num_classes)
        return counts

    @torch.no_grad()
    def answer(self, model: Callable[..., object], image: Tensor, size: tuple[int, int] | torch.Size) -> Tensor:
        """Class of each pixel of one image: [1, 3, H, W] uint8 -> [h, w] uint8 of that size."""
        with evaluating(self.module):
            return self._view.classes(model, self.module.patch_size, image, size)


def _right_share(scores: Tensor, maps: Tensor) -> Tensor:
    """Share of right pixels among those with a class, a few a patch: scalar."""
    height, width = scores.shape[-2:]
    some = functional.interpolate(maps[:, None].float(), (height, width), mode="nearest-exact")[:, 0].long()
    counted = some != IGNORED
    right = (scores.argmax(dim=1) == some) & counted
    return right.sum() / counted.sum().clamp(min=1)
