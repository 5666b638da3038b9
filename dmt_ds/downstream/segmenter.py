"""A ViT under UPerNet, and how it sees images larger than its crop; knows no data, no loss and no engine."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from dmt_ds.config.section import Triple
from dmt_ds.config.segmentation import SegmentConfig
from dmt_ds.data.augment import normalize
from dmt_ds.downstream.shared_batch_norm import SharedBatchNorm2d
from dmt_ds.errors import ConfigError
from dmt_ds.models.drop_path import drop_path_seeds
from dmt_ds.models.uper_heads import ImageDropout2d, Pyramid, build_heads, scores_at

WINDOWS_AT_ONCE = 8


class Scores(NamedTuple):
    """Scores of the classes, before the softmax."""

    main: Tensor
    """[B, C, 4h, 4w], a quarter of a patch each."""
    auxiliary: Tensor | None
    """[B, C, h, w], a patch each; in training, where there is such a head."""


def blocks_of(section: SegmentConfig, depth: int) -> tuple[int, ...]:
    """The four blocks whose tokens are taken, from 0: those of the settings, else 3, 5, 7, 11 of 12 in proportion.

    Raises:
        ConfigError: the encoder has fewer blocks.
    """
    if section.blocks is not None:
        if section.blocks[-1] >= depth:
            raise ConfigError(
                f"segment.blocks {list(section.blocks)}: the encoder has {depth} blocks, 0 to {depth - 1}: take four "
                "of them, or segment.blocks=null"
            )
        return section.blocks
    return tuple(max(0, depth * numerator // 6 - 1) for numerator in (2, 3, 4, 6))


class Segmenter(nn.Module):
    """Patch tokens of four blocks, without the final norm, as a pyramid under UPerNet's head.

    Args:
        vit: the encoder, built for images of any size; its final norm is not used, and stays as it is.
    """

    def __init__(self, vit: nn.Module, num_classes: int, section: SegmentConfig) -> None:
        super().__init__()
        parts: Any = vit
        width = parts.embed_dim
        self.vit = vit
        parts.norm.requires_grad_(False)
        self.blocks = blocks_of(section, len(parts.blocks))
        self.patch_size: int = parts.patch_embed.patch_size[0]
        self.pyramid = Pyramid(width, SharedBatchNorm2d)
        auxiliary = section.auxiliary_channels if section.auxiliary_weight else None
        self.head, self.auxiliary_head = build_heads(
            width, num_classes, section.channels or width, auxiliary, section.dropout, SharedBatchNorm2d
        )

    @property
    def device(self) -> torch.device:
        """Device of its weights."""
        return self.pyramid.to_half.weight.device

    def forward(self, images: Tensor, seeds: Tensor) -> Scores:
        """Scores of each place.

        Args:
            images: [B, 3, H, W] float, normalised; H and W are multiples of the patch.
            seeds: [B] int64, one an image: drop path and dropout are drawn from them in training.
        """
        kind = self.pyramid.to_half.weight.dtype
        with drop_path_seeds(self.vit, seeds):
            maps = self._maps(images.to(kind))
        for module in self.modules():
            if isinstance(module, ImageDropout2d):
                module.seeds = seeds
        pyramid = self.pyramid(maps)
        if self.auxiliary_head is None or not self.training:
            return Scores(self.head(pyramid), None)
        return Scores(self.head(pyramid), self.auxiliary_head(pyramid))

    def _maps(self, images: Tensor) -> list[Tensor]:
        """Four [B, D, h, w]."""
        vit: Any = self.vit
        wanted = sorted(set(self.blocks))  # a shallow ViT gives one block's tokens more than once
        found = vit.forward_intermediates(
            images, indices=wanted, norm=False, output_fmt="NCHW", intermediates_only=True
        )
        return [found[wanted.index(block)] for block in self.blocks]


@dataclass(frozen=True)
class View:
    """How a segmenter sees whole images.

    Attributes:
        window: side of the windows that an image is seen through, in pixels; None sees it at once.
        stride: from a window to the next, in pixels.
        mean: normalisation of its images.
        std: the same.
    """

    window: int | None
    stride: int
    mean: Triple
    std: Triple

    @classmethod
    def from_sections(cls, section: SegmentConfig, image_size: int, mean: Triple, std: Triple) -> "View":
        """The view that the settings ask for; `image_size` is the crop's side."""
        stride = section.test_stride or max(1, 2 * image_size // 3)
        return cls(image_size if section.test_window == "slide" else None, stride, mean, std)

    @torch.no_grad()
    def classes(
        self, model: Callable[..., Any], patch_size: int, image: Tensor, size: tuple[int, int] | torch.Size
    ) -> Tensor:
        """Class of each pixel of one image: [1, 3, H, W] uint8, scaled already -> [h, w] uint8 of that size."""
        scores = see(model, normalize(image, self.mean, self.std), patch_size, self.window, self.stride)
        return scores_at(scores, size)[0].argmax(dim=0).to(torch.uint8)


def see(model: Callable[..., Any], pixels: Tensor, patch_size: int, window: int | None, stride: int) -> Tensor:
    """Scores of each pixel of one image, with any model that answers as `Segmenter` does.

    Args:
        pixels: [1, 3, H, W] float32, normalised, of any size.
        window: side of the windows that the image is seen through, in pixels; None sees it at once.
        stride: from a window to the next; the last ones end with the image.

    Returns:
        [1, C, H, W] float32: means over the windows that a pixel lies in.
    """
    height, width = pixels.shape[-2:]
    side = max(height, width) if window is None else window
    stride = min(stride, side)  # a longer one would leave pixels unseen
    rows, columns = _starts(height, side, stride), _starts(width, side, stride)
    tall, wide = min(side, height), min(side, width)
    corners = [(top, left) for top in rows for left in columns]
    total: Tensor | None = None
    counts = pixels.new_zeros(1, 1, height, width)
    for start in range(0, len(corners), WINDOWS_AT_ONCE):
        some = corners[start : start + WINDOWS_AT_ONCE]
        parts = torch.cat([pixels[:, :, top : top + tall, left : left + wide] for top, left in some])
        scores = _of_whole(model, parts, patch_size)  # [n, C, tall, wide]
        total = pixels.new_zeros(1, scores.shape[1], height, width) if total is None else total
        for (top, left), own in zip(some, scores, strict=True):
            total[0, :, top : top + tall, left : left + wide] += own
            counts[:, :, top : top + tall, left : left + wide] += 1
    assert total is not None
    return total / counts


def _starts(length: int, side: int, stride: int) -> Sequence[int]:
    """Where windows begin: each `stride`, the last one moved back so that it ends with the image."""
    last = max(0, length - side)
    return sorted({*range(0, last, stride), last})


def _of_whole(model: Callable[..., Any], pixels: Tensor, patch_size: int) -> Tensor:
    """[B, 3, H, W] -> [B, C, H, W] float32; what fills the last patches up is 0, the mean colour, and cut off again."""
    height, width = pixels.shape[-2:]
    filled = functional.pad(pixels, (0, -width % patch_size, 0, -height % patch_size))
    seeds = torch.zeros(len(pixels), dtype=torch.int64, device=pixels.device)
    scores: Scores = model(filled, seeds)
    return scores_at(scores.main, filled.shape[-2:])[:, :, :height, :width]
