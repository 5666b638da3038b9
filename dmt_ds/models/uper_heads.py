"""The door to transformers' UPerNet heads, and the pyramid that a plain ViT feeds them; knows no ViT and no loss."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from dmt_ds import sample_rng

Norm = Callable[[int], nn.Module]
"""Number of channels -> normalisation of [B, C, H, W]."""
THIRD_MAP = 2
"""The map that the auxiliary head sees, counted from 0."""


class Pyramid(nn.Module):
    """Four maps of one grid -> strides of 1/4, 1/2, 1 and 2 patches (4, 8, 16 and 32 pixels of patches of 16).

    BEiT's neck (Bao et al., 2022), MMSegmentation's Feature2Pyramid: transposed convolutions upwards, max-pooling down.
    """

    def __init__(self, width: int, norm: Norm) -> None:
        super().__init__()
        self.to_quarter = nn.Sequential(
            nn.ConvTranspose2d(width, width, 2, 2), norm(width), nn.GELU(), nn.ConvTranspose2d(width, width, 2, 2)
        )
        self.to_half = nn.ConvTranspose2d(width, width, 2, 2)

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        """Maps of four blocks, the lowest first -> the pyramid, the largest first.

        Args:
            maps: four [B, D, h, w].

        Returns:
            [B, D, 4h, 4w], [B, D, 2h, 2w], [B, D, h, w] and [B, D, h/2, w/2].
        """
        low, middle, high, last = maps
        # A grid of one row or column stays as it is: there is nothing to pool.
        pooled = functional.max_pool2d(last, [min(2, side) for side in last.shape[-2:]])
        return [self.to_quarter(low), self.to_half(middle), high, pooled]


class ImageDropout2d(nn.Module):
    """Drops whole channels of an image in training, by the image's own seed.

    Args:
        probability: of a channel.
        stream: names the numbers it draws; layers with different names draw independently.
    """

    def __init__(self, probability: float, stream: str) -> None:
        super().__init__()
        self.probability, self.stream = probability, stream
        self.seeds: Tensor | None = None  # [B] int64, set before a training forward

    def forward(self, maps: Tensor) -> Tensor:
        """[B, C, H, W] -> the same, each channel 0 or scaled by 1 / keep."""
        if not self.training or not self.probability:
            return maps
        assert self.seeds is not None, "seeds are set before a training forward"
        keep = 1 - self.probability
        kept = sample_rng.uniform(self.seeds, f"dropout/{self.stream}", maps.shape[1]) < keep  # [B, C]
        return maps * (kept / keep).to(maps.dtype)[:, :, None, None]


def build_heads(
    width: int, num_classes: int, channels: int, auxiliary_channels: int | None, dropout: float, norm: Norm
) -> tuple[nn.Module, nn.Module | None]:
    """UPerNet's head (Xiao et al., 2018), and a convolutional one on the third map; weights start as MMSegmentation's.

    transformers has neither the dropout before the last layer nor a norm over ranks: both are put in.

    Args:
        width: of the maps.
        channels: width inside UPerNet's head.
        auxiliary_channels: width inside the other; None leaves it out.
        dropout: share of channels.
        norm: what normalises in place of its batch norms.

    Returns:
        Four maps -> scores [B, C, H, W] at the size of the first, and of the third.
    """
    from transformers import UperNetConfig
    from transformers.models.upernet.modeling_upernet import UperNetFCNHead, UperNetHead

    config = UperNetConfig(
        num_labels=num_classes,
        hidden_size=channels,
        pool_scales=[1, 2, 3, 6],
        auxiliary_channels=auxiliary_channels or 1,
        auxiliary_in_channels=width,
        auxiliary_num_convs=1,
        auxiliary_concat_input=False,
    )
    widths = [width] * 4
    main: nn.Module = _prepared(UperNetHead(config, widths), "main", dropout, norm)
    if auxiliary_channels is None:
        return main, None
    return main, _prepared(UperNetFCNHead(config, widths, in_index=THIRD_MAP), "auxiliary", dropout, norm)


def _prepared(head: Any, stream: str, dropout: float, norm: Norm) -> nn.Module:
    for module in list(head.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.BatchNorm2d):
                setattr(module, name, norm(child.num_features))
            elif isinstance(child, nn.Conv2d):
                nn.init.kaiming_normal_(child.weight, mode="fan_out", nonlinearity="relu")
    nn.init.normal_(head.classifier.weight, std=0.01)
    nn.init.zeros_(head.classifier.bias)
    head.classifier = nn.Sequential(ImageDropout2d(dropout, stream), head.classifier)
    prepared: nn.Module = head
    return prepared


def scores_at(scores: Tensor, size: tuple[int, int] | torch.Size) -> Tensor:
    """Bilinear, in float32: [B, C, h, w] -> [B, C, H, W]."""
    return functional.interpolate(scores.float(), tuple(size), mode="bilinear", align_corners=False)
