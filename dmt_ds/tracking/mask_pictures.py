"""Pictures of what a segmenter answers: classes as colours over and beside the images; knows no model."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from dmt_ds.config.segmentation import IGNORED
from dmt_ds.tracking.figures import GREY, INK, new_figure, printable, save

_LEGEND = 30
"""Classes that the legend names: the most frequent ones in the pictures."""
_CELL_INCHES = 2.2
_STRENGTH = 0.6  # of a class's colour over the image

Masks = tuple[Tensor, Tensor | None, Tensor]
"""Image [3, H, W], label map [H, W] or None, answer [H, W], all uint8."""


def class_colours(num_classes: int) -> Tensor:
    """PASCAL VOC's scheme without black, the bits of a class's number spread over red, green, blue: [C, 3] uint8."""
    numbers = torch.arange(1, num_classes + 1)
    colours = torch.zeros(num_classes, 3, dtype=torch.int64)
    for place in range(8):
        for channel in range(3):
            colours[:, channel] |= ((numbers >> (3 * place + channel)) & 1) << (7 - place)
    return colours.to(torch.uint8)


def coloured(classes: Tensor, colours: Tensor) -> Tensor:
    """Class numbers [H, W] uint8 -> [3, H, W] uint8; what has no class is black."""
    with_black = torch.zeros(IGNORED + 1, 3, dtype=torch.uint8)
    with_black[: len(colours)] = colours
    return with_black[classes.long()].permute(2, 0, 1)


def overlaid(image: Tensor, classes: Tensor, colours: Tensor) -> Tensor:
    """The image with its classes' colours over it: [3, H, W] uint8 and [H, W] uint8 -> [3, H, W] uint8."""
    return image.float().lerp(coloured(classes, colours).float(), _STRENGTH).round().to(torch.uint8)


def draw_masks(shown: Sequence[Masks], class_names: Sequence[str], path: Path) -> None:
    """A row an image: itself, its label map where there is one, the answer; below all what the colours mean.

    Args:
        shown: at least one.
        class_names: by class number.
        path: PNG to write.
    """
    colours = class_colours(len(class_names))
    labelled = any(labels is not None for _, labels, _ in shown)
    titles = ["image", *(["label"] if labelled else []), "answer"]
    num_rows, height = len(shown), _CELL_INCHES * 0.8
    figure, axes = new_figure(len(titles), num_rows, (_CELL_INCHES * len(titles), height * num_rows + 1.2))
    for row, (image, labels, answer) in zip(axes, shown, strict=True):
        cells = [
            image,
            *([torch.zeros_like(image) if labels is None else coloured(labels, colours)] if labelled else []),
        ]
        for axis, pixels in zip(row, [*cells, coloured(answer, colours)], strict=True):
            axis.imshow(pixels.permute(1, 2, 0).numpy(), interpolation="nearest")
            axis.set_axis_off()
    for axis, title in zip(axes[0], titles, strict=True):
        axis.set_title(title, fontsize=9, color=GREY)
    _name_colours(figure, shown, class_names, colours)
    save(figure, path)


def _name_colours(figure: object, shown: Sequence[Masks], class_names: Sequence[str], colours: Tensor) -> None:
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    assert isinstance(figure, Figure)
    counts = torch.zeros(IGNORED + 1, dtype=torch.int64)
    for _, labels, answer in shown:
        for classes in (labels, answer):
            if classes is not None:
                counts += torch.bincount(classes.flatten().long(), minlength=IGNORED + 1)
    frequent = counts[: len(class_names)].argsort(descending=True, stable=True)[:_LEGEND].tolist()
    patches = [
        Patch(color=tuple(value / 255 for value in colours[number].tolist()), label=printable(class_names[number])[:22])
        for number in sorted(number for number in frequent if counts[number])
    ]
    legend = figure.legend(
        handles=patches, loc="outside lower center", ncols=5, fontsize=7, frameon=False, labelcolor=INK, handlelength=1
    )
    for text in legend.get_texts():
        text.set_parse_math(False)
