"""Pictures of objects in images: boxes, masks and names, as labelled beside as found; knows no model and no JSON."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from dmt_ds.tracking.figures import GREY, PALETTE, new_figure, save

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SHOWN_FROM = 0.5
"""Lowest score of an object that is drawn."""
_MASK_SHARE = 0.45  # of an object's colour in its pixels
_COLUMNS = 4
_CELL_INCHES = 2.6


class PicturedObject(NamedTuple):
    """One object to draw."""

    box: tuple[float, float, float, float]
    """x1, y1, x2, y2 in pixels of its image."""
    label: int
    """Number of its category."""
    score: float | None
    """0 to 1; None where it is a label."""
    mask: Tensor | None
    """[H, W] bool."""


Pictured = tuple[Tensor, Sequence[PicturedObject]]
"""Image [3, H, W] uint8, and what is drawn in it."""


def draw_pairs(
    pairs: Sequence[tuple[Tensor, Sequence[PicturedObject], Sequence[PicturedObject]]],
    class_names: Sequence[str],
    path: Path,
) -> None:
    """A row an image: on the left as it is labelled, on the right what was found.

    Args:
        pairs: image [3, H, W] uint8, its labels, what was found; at least one.
        class_names: by label.
        path: PNG to write.
    """
    figure, axes = new_figure(2, len(pairs), (2 * _CELL_INCHES, 0.8 * _CELL_INCHES * len(pairs) + 0.2))
    for (left, right), (image, labelled, found) in zip(axes, pairs, strict=True):
        _draw(left, image, labelled, class_names)
        _draw(right, image, found, class_names)
    axes[0][0].set_title("labels", fontsize=8, color=GREY)
    axes[0][1].set_title(f"found, score {SHOWN_FROM:g} and more", fontsize=8, color=GREY)
    save(figure, path)


def draw_objects(pictures: Sequence[tuple[str, Pictured]], class_names: Sequence[str], path: Path, title: str) -> None:
    """A contact sheet of images with what was found in each.

    Args:
        pictures: name of the image and what is drawn; at least one.
        class_names: by label.
        path: PNG to write.
        title: above all.
    """
    columns = min(_COLUMNS, len(pictures))
    rows = math.ceil(len(pictures) / columns)
    figure, axes = new_figure(columns, rows, (_CELL_INCHES * columns, (0.8 * _CELL_INCHES + 0.2) * rows + 0.3))
    cells = [axis for row in axes for axis in row]
    for axis in cells:
        axis.set_axis_off()
    for axis, (name, (image, objects)) in zip(cells, pictures, strict=False):
        _draw(axis, image, objects, class_names)
        axis.set_title(_printable(name), fontsize=6.5, color=GREY, parse_math=False)
    figure.suptitle(title, fontsize=9, color=GREY)
    save(figure, path)


def masked(image: Tensor, objects: Sequence[PicturedObject]) -> Tensor:
    """The image with each object's pixels in its category's colour: [3, H, W] uint8 -> the same."""
    pixels = image.float()
    for thing in objects:
        if thing.mask is not None:
            colour = torch.tensor(_rgb(thing.label)).float()[:, None]
            pixels[:, thing.mask] = (1 - _MASK_SHARE) * pixels[:, thing.mask] + _MASK_SHARE * colour
    return pixels.round().to(torch.uint8)


def _draw(axis: "Axes", image: Tensor, objects: Sequence[PicturedObject], class_names: Sequence[str]) -> None:
    from matplotlib.patches import Rectangle

    axis.set_axis_off()
    _, height, width = image.shape  # a box's corners are edges of pixels, not their middles
    pixels = masked(image, objects).permute(1, 2, 0).numpy()
    axis.imshow(pixels, interpolation="nearest", extent=(0, width, height, 0))
    for thing in objects:
        x1, y1, x2, y2 = thing.box
        colour = PALETTE[thing.label % len(PALETTE)]
        axis.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, edgecolor=colour, linewidth=1))
        score = "" if thing.score is None else f" {100 * thing.score:.0f}"
        axis.text(
            x1,
            y1,
            f"{_printable(class_names[thing.label])}{score}",
            fontsize=5,
            color="white",
            va="bottom",
            parse_math=False,
            bbox={"facecolor": colour, "edgecolor": "none", "pad": 0.6, "alpha": 0.8},
        )


def _printable(text: str) -> str:
    return "".join(character if character.isprintable() else "?" for character in text)


def _rgb(label: int) -> tuple[int, int, int]:
    text = PALETTE[label % len(PALETTE)].lstrip("#")
    return int(text[0:2], 16), int(text[2:4], 16), int(text[4:6], 16)
