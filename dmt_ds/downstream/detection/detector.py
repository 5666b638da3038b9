"""A ViT, its feature pyramid and the heads that find objects, as one module; knows no data set and no engine."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.roi_heads import RoIHeads

from dmt_ds.config.detection import DetectConfig
from dmt_ds.downstream.detection.cascade import LOSS_WEIGHTS, STAGES, CascadeHeads
from dmt_ds.downstream.detection.heads import build_box_heads, build_rpn
from dmt_ds.downstream.detection.pyramid import COARSEST_STRIDE, FeaturePyramid
from dmt_ds.downstream.detection.sampling import SeededSampler
from dmt_ds.errors import ConfigError
from dmt_ds.models.drop_path import drop_path_seeds
from dmt_ds.models.vit import shape_of
from dmt_ds.models.vit_maps import feature_map


class Detector(nn.Module):
    """Finds objects of some categories, with boxes and masks.

    Args:
        vit: the encoder, which takes any size; all that is kept as the backbone.
        num_categories: without the background.

    Raises:
        ConfigError: the encoder's patches or width can't be halved and doubled.
    """

    def __init__(self, vit: nn.Module, section: DetectConfig, num_categories: int) -> None:
        super().__init__()
        shape = shape_of(vit)
        _check_shape(shape.patch_size, shape.embed_dim)
        self.vit = vit
        self.section = section
        self.pyramid = FeaturePyramid(shape.embed_dim, section.neck_width)
        self.rpn = build_rpn(section)
        stages = _build_stages(section, num_categories + 1, shape.patch_size // 4)
        self.roi_heads = CascadeHeads(stages, LOSS_WEIGHTS[: len(stages)])
        self._samplers: list[SeededSampler] = [part.fg_bg_sampler for part in (self.rpn, *stages)]
        self.size_multiple = size_multiple(shape.patch_size)

    def forward(
        self,
        images: Tensor,
        seeds: Tensor,
        sizes: Sequence[tuple[int, int]],
        targets: Sequence[dict[str, Tensor]] | None = None,
    ) -> Any:
        """Losses in training, else what is found.

        Args:
            images: [B, 3, H, W] float, normalised, zeros beyond each image's own size; multiples of `size_multiple`.
            seeds: [B] int64, one an image: drop path and the losses' samples are drawn from them.
            sizes: height and width of each image.
            targets: of each image `boxes` [n, 4] float32, `labels` [n] int64 from 1, and `masks` [n, h, w] uint8.

        Returns:
            In training name -> scalar float32; else of each image `boxes`, `labels` (from 1), `scores`, and `masks`
            [n, 1, 28, 28] in 0..1, which are of the boxes.
        """
        for sampler in self._samplers:
            sampler.seeds = seeds
        section, kind = self.section, next(self.vit.parameters()).dtype
        with drop_path_seeds(self.vit, seeds):
            tokens = feature_map(self.vit, images.to(kind), section.window_size, section.num_global_blocks)
        maps = {name: level.float() for name, level in self.pyramid(tokens).items()}
        batch = ImageList(images, [(int(height), int(width)) for height, width in sizes])
        listed = None if targets is None else list(targets)
        proposals, proposal_losses = self.rpn(batch, maps, listed)
        detections, losses = self.roi_heads(maps, proposals, batch.image_sizes, listed)
        return losses | proposal_losses if self.training else detections


def size_multiple(patch_size: int) -> int:
    """Number of pixels that the sides of a detector's images must be a multiple of."""
    return COARSEST_STRIDE * patch_size


def _build_stages(section: DetectConfig, num_classes: int, finest_stride: int) -> list[RoIHeads]:
    """The one stage of Mask R-CNN, or those of its cascade."""
    if section.heads == "mask_rcnn":
        return [build_box_heads(section, num_classes, finest_stride, masks=section.masks)]
    return [
        build_box_heads(
            section,
            num_classes,
            finest_stride,
            iou=iou,
            coder_weights=weights,
            shared_boxes=True,
            masks=section.masks and number == 0,
            stage=number,
        )
        for number, (iou, weights) in enumerate(STAGES)
    ]


def _check_shape(patch_size: int, embed_dim: int) -> None:
    """Maps from a quarter of a patch to four patches, whose strides torchvision takes for powers of two."""
    if patch_size < 4 or patch_size & (patch_size - 1):
        raise ConfigError(f"student.patch_size {patch_size}: detection needs patches of 4, 8, 16 or 32 pixels")
    if embed_dim % 4:
        raise ConfigError(f"student.embed_dim {embed_dim}: detection needs a width that is a multiple of 4")
