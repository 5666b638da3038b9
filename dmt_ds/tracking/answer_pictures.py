"""Pictures of what a classifier answers: which classes it takes for which, and single images; knows no model."""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from dmt_ds.tracking.figures import GREEN, GREY, INK, ORANGE, new_figure, new_grid, printable, save

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_NAMED_CLASSES = 40
_COLUMNS = 8
_CELL_INCHES = 1.3
_LONGEST = 22  # characters of a name below a picture

Answer = tuple[Tensor, str, str, float]
"""Image [3, H, W] uint8, its class, the answer, and the answer's probability."""


def write_confusion(counts: Tensor, class_names: Sequence[str], path: Path) -> None:
    """A line a true class, a column an answer: [C, C] int64 as CSV."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["class \\ answer", *class_names])
        writer.writerows([name, *row] for name, row in zip(class_names, counts.tolist(), strict=True))


def draw_confusion(counts: Tensor, class_names: Sequence[str], path: Path) -> None:
    """Each true class's answers in percent of its images; names and numbers where there is room for them.

    Args:
        counts: [C, C] int64, a row a true class.
        class_names: by class number.
        path: PNG to write.
    """
    share = 100 * counts.double() / counts.sum(dim=1, keepdim=True).clamp(min=1)
    num_classes = len(class_names)
    named = num_classes <= _NAMED_CLASSES
    side = min(14.0, 2.5 + 0.45 * num_classes) if named else 9.0
    figure, ((axis,),) = new_figure(1, 1, (side + 1, side))
    image = axis.imshow(
        share.numpy(), cmap="Blues", vmin=0, vmax=100, interpolation="nearest" if named else "antialiased"
    )
    axis.set_xlabel("answer", fontsize=9, color=GREY)
    axis.set_ylabel("class", fontsize=9, color=GREY)
    axis.tick_params(labelsize=8, colors=INK, length=0)
    if named:
        labels = [_short(name) for name in class_names]
        axis.set_xticks(range(num_classes), labels, rotation=60, ha="right", parse_math=False)
        axis.set_yticks(range(num_classes), labels, parse_math=False)
        for row, column in (share >= 0.5).nonzero().tolist():
            value = share[row, column].item()
            axis.text(
                column, row, f"{value:.0f}", ha="center", va="center", fontsize=7, color="white" if value > 55 else INK
            )
    bar = figure.colorbar(image, shrink=0.6)
    bar.set_label("% of the class", fontsize=8, color=GREY)
    bar.ax.tick_params(labelsize=8, colors=GREY, length=0)
    save(figure, path)


def draw_answers(answers: Sequence[Answer], path: Path) -> None:
    """A sheet of images, below each the answer with its probability, and the true class where the answer is wrong.

    Args:
        answers: at least one.
        path: PNG to write.
    """
    cells = []
    for image, label, answer, probability in answers:
        is_right = label == answer
        text = f"{_short(answer)} {100 * probability:.0f} %" + ("" if is_right else f"\nis {_short(label)}")
        cells.append((image, text, GREEN if is_right else ORANGE))
    save(_sheet(cells), path)


def draw_sheet(pictures: Sequence[tuple[Tensor, str, float, str]], path: Path, title: str) -> None:
    """A contact sheet: images, below each the answer and the name of its file.

    Args:
        pictures: image [3, H, W] uint8, answer, its probability, name; at least one.
        path: PNG to write.
        title: above all.
    """
    cells = [
        (image, f"{_short(answer)} {100 * probability:.0f} %\n{_short(name)}", INK)
        for image, answer, probability, name in pictures
    ]
    figure = _sheet(cells, title_inches=0.3)
    figure.suptitle(title, fontsize=9, color=GREY)
    save(figure, path)


def _sheet(cells: Sequence[tuple[Tensor, str, str]], title_inches: float = 0.0) -> "Figure":
    """Images [3, H, W] uint8, each with the text below it and that text's colour."""
    size = (_CELL_INCHES, _CELL_INCHES + 0.4)
    figure, axes = new_grid(len(cells), _COLUMNS, size, margin_inches=(0.2, title_inches))
    for axis, (image, text, colour) in zip(axes, cells, strict=True):
        axis.set_axis_off()
        axis.imshow(image.permute(1, 2, 0).numpy(), interpolation="nearest")
        axis.set_title(text, fontsize=6.5, color=colour, y=-0.02, va="top", pad=0, parse_math=False)
    return figure


def _short(name: str) -> str:
    name = printable(name)
    return name if len(name) <= _LONGEST else f"{name[: _LONGEST - 1]}…"
