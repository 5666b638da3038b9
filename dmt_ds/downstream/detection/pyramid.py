"""A ViT's one map as maps of several strides (ViTDet's simple feature pyramid; Li et al., 2022); knows no head."""

from collections import OrderedDict

from torch import Tensor, nn
from torchvision.models.convnext import LayerNorm2d

FINE_TO_COARSE = ("0", "1", "2", "3")
"""Names of the maps of a quarter, a half, one and two patches' stride, as torchvision's poolers know them."""
COARSEST = "pool"
"""Name of the map of four patches' stride, for the largest anchors alone."""
COARSEST_STRIDE = 4
"""In patches: the sides of images are multiples of it, so that each map fits its image exactly."""


class FeaturePyramid(nn.Module):
    """Five maps from one, each from the map itself and not from its neighbours.

    Args:
        embed_dim: channels D of the ViT's map.
        width: channels of the five.
    """

    def __init__(self, embed_dim: int, width: int) -> None:
        super().__init__()
        half, quarter = embed_dim // 2, embed_dim // 4
        scaled: list[tuple[nn.Module, int]] = [
            (
                nn.Sequential(
                    nn.ConvTranspose2d(embed_dim, half, 2, 2),
                    LayerNorm2d(half, eps=1e-6),
                    nn.GELU(),
                    nn.ConvTranspose2d(half, quarter, 2, 2),
                ),
                quarter,
            ),
            (nn.ConvTranspose2d(embed_dim, half, 2, 2), half),
            (nn.Identity(), embed_dim),
            (nn.MaxPool2d(2), embed_dim),
        ]
        self.levels = nn.ModuleList(nn.Sequential(scale, *_evened(channels, width)) for scale, channels in scaled)

    def forward(self, feature_map: Tensor) -> OrderedDict[str, Tensor]:
        """[B, D, h, w] -> [B, width, 4h, 4w], [.., 2h, 2w], [.., h, w], [.., h/2, w/2], [.., h/4, w/4]."""
        maps = OrderedDict((name, level(feature_map)) for name, level in zip(FINE_TO_COARSE, self.levels, strict=True))
        maps[COARSEST] = maps[FINE_TO_COARSE[-1]][:, :, ::2, ::2]
        return maps


def _evened(channels: int, width: int) -> tuple[nn.Module, ...]:
    """To the common width, each convolution with a norm of its own."""
    return (
        nn.Conv2d(channels, width, 1, bias=False),
        LayerNorm2d(width, eps=1e-6),
        nn.Conv2d(width, width, 3, padding=1, bias=False),
        LayerNorm2d(width, eps=1e-6),
    )
