"""Pictures of a run: its curves, and what teachers and student see; draws what it is given and knows no model."""

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dmt_ds.tracking.figures import (
    BLUE,
    FEW_POINTS,
    GREEN,
    GREY,
    INK,
    ORANGE,
    PURPLE,
    name_panel,
    new_figure,
    save,
    smoothed,
    style,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_LABELS = {
    "train/loss": ("total loss", INK),
    "train/loss_tfd": ("token fusion (TFD)", BLUE),
    "train/loss_sfd": ("spatial fusion (SFD)", ORANGE),
    "train/lr": ("learning rate", GREEN),
}
_CELL_INCHES = 1.75


def loss_curves(points: Iterable[Mapping[str, Any]], path: Path, title: str = "") -> None:
    """Draw a panel a curve: the total loss, each of its parts (`train/loss_*`), the learning rate.

    Args:
        points: lines of `metrics.jsonl` (`tracker.read_points(output_dir)`): `step` and `metrics`.
        path: PNG to write.
        title: name of the run.
    """
    points = list(points)
    names = _curve_names(points)
    figure, axes = new_figure(max(1, len(names)), 1, (3.6 * max(1, len(names)), 2.9))
    for axis, name in zip(axes[0], names, strict=False):
        label, colour = _LABELS.get(name, (name.removeprefix("train/").replace("_", " "), PURPLE))
        _draw_curve(axis, *_curve(points, name), colour, smooth=name != "train/lr")
        name_panel(axis, label)
    if not names:
        axes[0][0].text(0.5, 0.5, "no points yet", ha="center", va="center", color=GREY)
        axes[0][0].set_axis_off()
    if title:
        figure.suptitle(title, fontsize=11, color=INK, x=0.01, ha="left", fontweight="bold")
    save(figure, path)


def pca_of_tokens(images: Tensor, named_tokens: Mapping[str, Tensor], path: Path) -> None:
    """Draw a row an image: the image, then the patch tokens of each model, their first three components as colours.

    A column has one basis for all its images, so that equal colours mean equal content within a column. The sign of a
    component is arbitrary: it is chosen to agree best with the column before, so that colours can be compared across.

    Args:
        images: [B, 3, H, W] uint8.
        named_tokens: title -> [B, 1+N, D], the class token first; N is a square number, D may differ between columns.
        path: PNG to write.
    """
    columns: dict[str, Tensor] = {}
    previous: Tensor | None = None
    for name, tokens in named_tokens.items():
        previous = _components(tokens[:, 1:].detach().float().cpu(), previous)  # [B, N, 3]
        columns[name] = _colours(previous)  # [B, side, side, 3] in [0, 1]
    num_rows = images.shape[0]
    figure, axes = new_figure(
        1 + len(columns), num_rows, (_CELL_INCHES * (1 + len(columns)), _CELL_INCHES * num_rows + 0.3)
    )
    for row in range(num_rows):
        axes[row][0].imshow(images[row].permute(1, 2, 0).cpu().numpy(), interpolation="nearest")
        for axis, colours in zip(axes[row][1:], columns.values(), strict=True):
            axis.imshow(colours[row].numpy(), interpolation="nearest")
    for axis, name in zip(axes[0], ("image", *columns), strict=True):
        axis.set_title(name, fontsize=10, color=INK, pad=5)
    for axis in itertools.chain(*axes):
        axis.set_axis_off()
    figure.set_layout_engine("constrained", w_pad=0.02, h_pad=0.02, wspace=0.0, hspace=0.0)
    save(figure, path)


def _curve_names(points: Sequence[Mapping[str, Any]]) -> list[str]:
    found = {name for point in points for name in point["metrics"]}
    parts = sorted(name for name in found if name.startswith("train/loss_") and name not in _LABELS)
    order = ("train/loss", "train/loss_tfd", "train/loss_sfd", *parts, "train/lr")
    return [name for name in order if name in found]


def _curve(points: Sequence[Mapping[str, Any]], name: str) -> tuple[list[int], list[float]]:
    found = [(point["step"], point["metrics"][name]) for point in points if name in point["metrics"]]
    return [step for step, _ in found], [value for _, value in found]


def _draw_curve(axis: "Axes", steps: Sequence[int], values: Sequence[float], colour: str, smooth: bool) -> None:
    """Draw the values as a faint line and their running mean as a strong one; few points, or exact ones, alone."""
    if smooth and len(values) >= FEW_POINTS:
        axis.plot(steps, values, color=colour, linewidth=0.8, alpha=0.35)
        axis.plot(steps, smoothed(values, len(values) // 25), color=colour, linewidth=1.6)
    else:
        marker = "o" if len(values) < FEW_POINTS else ""
        axis.plot(steps, values, color=colour, linewidth=1.6, marker=marker, markersize=2.5)
    style(axis, "step")
    axis.margins(x=0.02)


def _components(patch_tokens: Tensor, previous: Tensor | None) -> Tensor:
    """First three principal components over all patches of all images, of unit variance: [B, N, D] -> [B, N, 3]."""
    flat = patch_tokens.flatten(0, 1)  # [B*N, D]
    flat = torch.nan_to_num(flat - flat.mean(0))
    left, scales, _ = torch.linalg.svd(flat, full_matrices=False)
    components = (left[:, :3] * flat.shape[0] ** 0.5).where(scales[:3] > 1e-6 * scales[0].clamp(min=1e-12), 0.0)
    components = torch.nn.functional.pad(components, (0, 3 - components.shape[1]))
    components = components.reshape(*patch_tokens.shape[:2], 3)
    return components if previous is None else _like_previous(components, previous)


def _like_previous(components: Tensor, previous: Tensor) -> Tensor:
    """The order and the signs of the components that agree best with another column's: [B, N, 3] twice -> [B, N, 3]."""
    if components.shape != previous.shape:
        return components
    agreement = previous.flatten(0, 1).T @ components.flatten(0, 1)  # [3 of the previous, 3 of these]
    order = max(
        itertools.permutations(range(3)),
        key=lambda order: sum(abs(agreement[i, j].item()) for i, j in enumerate(order)),
    )
    signs = torch.tensor([-1.0 if agreement[i, j] < 0 else 1.0 for i, j in enumerate(order)])
    return components[..., list(order)] * signs


def _colours(components: Tensor) -> Tensor:
    """RGB in [0, 1]; the outermost hundredths are clipped, so that one outlier does not grey the rest."""
    flat = components.flatten(0, 1)  # [B*N, 3]
    low, high = torch.quantile(flat, torch.tensor([0.01, 0.99]), dim=0)
    spread = (high - low).clamp(min=1e-6)
    colours: Tensor = ((components - low) / spread).clamp(0, 1).where(high - low > 1e-6, 0.5)
    side = math.isqrt(components.shape[1])
    return colours.reshape(-1, side, side, 3)
