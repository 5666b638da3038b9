"""Pictures of objects in images: boxes, masks and names, as labelled beside as found; knows no model and no JSON."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from dmt_ds.tracking.figures import GREY, PALETTE, new_figure, printable, save

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from PIL.ImageDraw import ImageDraw
    from PIL.ImageFont import FreeTypeFont

SHOWN_FROM = 0.5
"""Lowest score of an object that is drawn."""
_MASK_SHARE = 0.45  # of an object's colour in its pixels
_CELL_INCHES = 2.6
_LINES, _LETTERS, _SMALLEST_LETTERS = 1 / 300, 1 / 45, 11  # shares of the longer side; pixels
_MARGIN = 2  # pixels around a name


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


def draw_objects(image: Tensor, objects: Sequence[PicturedObject], class_names: Sequence[str], path: Path) -> None:
    """The image at its own size with what was found in it; lines and letters grow with it.

    Args:
        image: [3, H, W] uint8.
        class_names: by label.
        path: PNG to write.
    """
    from PIL import Image, ImageDraw

    picture = Image.fromarray(masked(image, objects).permute(1, 2, 0).numpy())
    longest = max(picture.size)
    pen, font = ImageDraw.Draw(picture), _font(max(_SMALLEST_LETTERS, round(longest * _LETTERS)))
    for thing in objects:
        x1, y1, x2, y2 = thing.box
        last = max(x1, x2 - 1), max(y1, y2 - 1)  # a box's corners are edges of pixels
        pen.rectangle((x1, y1, *last), outline=_rgb(thing.label), width=max(1, round(longest * _LINES)))
    for thing in objects:  # no box goes through a name
        _write(pen, _named(thing, class_names), thing, font, picture.size)
    picture.save(path)


def _write(pen: "ImageDraw", text: str, thing: PicturedObject, font: "FreeTypeFont", size: tuple[int, int]) -> None:
    """White letters on the object's colour, above its box; where the image ends there, within."""
    left, top, right, bottom = (round(number) for number in pen.textbbox((0, 0), text, font=font))
    width, height = right - left + 2 * _MARGIN, bottom - top + 2 * _MARGIN
    x = max(0, min(round(thing.box[0]), size[0] - width))
    y = max(0, min(round(thing.box[1]) - height, size[1] - height))
    pen.rectangle((x, y, x + width - 1, y + height - 1), fill=_rgb(thing.label))
    pen.text((x + _MARGIN - left, y + _MARGIN - top), text, fill="white", font=font)


@cache
def _font(size: int) -> "FreeTypeFont":
    """matplotlib's, as in all other pictures: it has the letters of many languages."""
    import matplotlib
    from PIL import ImageFont

    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSans.ttf"), size)


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
        axis.text(
            x1,
            y1,
            _named(thing, class_names),
            fontsize=5,
            color="white",
            va="bottom",
            parse_math=False,
            bbox={"facecolor": colour, "edgecolor": "none", "pad": 0.6, "alpha": 0.8},
        )


def _named(thing: PicturedObject, class_names: Sequence[str]) -> str:
    """What it is and, where it was found, how sure that is in percent."""
    score = "" if thing.score is None else f" {100 * thing.score:.0f}"
    return f"{printable(class_names[thing.label])}{score}"


def _rgb(label: int) -> tuple[int, int, int]:
    text = PALETTE[label % len(PALETTE)].lstrip("#")
    return int(text[0:2], 16), int(text[2:4], 16), int(text[4:6], 16)
