"""Drop path whose masks belong to the image, not to the process; knows no ViT library and no method."""

from types import TracebackType
from typing import Literal

from torch import Tensor, nn

from dmt_ds import sample_rng


class ImageDropPath(nn.Module):
    """Drops a residual branch for some images (Huang et al., 2016), by the images' own seeds.

    In evaluation it is the identity. In training it needs `drop_path_seeds` around the forward.

    Args:
        probability: that the branch of an image is dropped.
        branch: number of this branch in its model; branches draw independently.
    """

    def __init__(self, probability: float, branch: int) -> None:
        super().__init__()
        self.probability = probability
        self.branch = branch
        self.scales: Tensor | None = None  # [B, branches]: 0 or 1 / keep

    def forward(self, x: Tensor) -> Tensor:
        """[B, ...] -> [B, ...]: each image's branch is 0, or scaled by 1 / keep."""
        if not self.training:
            return x
        assert self.scales is not None, "a training forward with drop path must run inside `with drop_path_seeds(...)`"
        scale = self.scales[:, self.branch].to(x.dtype)
        return x * scale.view(-1, *[1] * (x.ndim - 1))

    def extra_repr(self) -> str:
        """What `print(model)` shows."""
        return f"probability={self.probability}, branch={self.branch}"


class drop_path_seeds:  # noqa: N801 - reads as a verb: with drop_path_seeds(vit, seeds)
    """Within it, drop path in `module` follows the images' seeds: the same masks however the batch is cut.

    Args:
        module: any module with `ImageDropPath` inside; one without is left alone.
        seeds: [B] int64 of the images in the forward, as `dmt_ds.sample_rng.image_seeds` gives them.
    """

    def __init__(self, module: nn.Module, seeds: Tensor) -> None:
        self._drops = [child for child in module.modules() if isinstance(child, ImageDropPath)]
        self._seeds = seeds

    def __enter__(self) -> None:
        drops = [drop for drop in self._drops if drop.training]
        if not drops:
            return
        count = 1 + max(drop.branch for drop in drops)
        # One draw for all branches: a number depends on (seed, branch) alone, not on how many are drawn.
        draws = sample_rng.uniform(self._seeds, "drop_path", count)  # [B, branches]
        scales: dict[float, Tensor] = {}  # one for all branches of a probability: each operation is a kernel to launch
        for drop in drops:
            keep = 1.0 - drop.probability
            if keep not in scales:
                scales[keep] = (draws < keep) / keep
            drop.scales = scales[keep]

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for drop in self._drops:
            drop.scales = None


def probabilities_of(largest: float, depth: int, rule: Literal["constant", "linear"]) -> list[float]:
    """Of the blocks, the first one first: the same but for the last, which has 0; or evenly rising from 0."""
    if rule == "constant":
        return [largest] * (depth - 1) + [0.0]
    return [largest * index / max(1, depth - 1) for index in range(depth)]


def use_image_drop_path(vit: nn.Module, largest: float, rule: Literal["constant", "linear"] = "constant") -> None:
    """Gives the residual branches of the ViT's blocks `ImageDropPath`, as `probabilities_of` has it."""
    blocks: list[nn.Module] = list(vit.blocks)  # type: ignore[arg-type]
    for index, (block, probability) in enumerate(
        zip(blocks, probabilities_of(largest, len(blocks), rule), strict=True)
    ):
        for branch in (0, 1):
            drop = ImageDropPath(probability, 2 * index + branch) if probability else nn.Identity()
            setattr(block, f"drop_path{branch + 1}", drop)
