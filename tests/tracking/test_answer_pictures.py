"""Pictures of a classifier's answers, held against the numbers that went in."""

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dmt_ds.tracking.answer_pictures import draw_answers, draw_confusion, draw_sheet, write_confusion
from dmt_ds.tracking.mask_pictures import draw_masks


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB")).astype(int)


def dark_blue(path: Path) -> float:
    """Share of the picture that stands for 100 %."""
    red, green, blue = (pixels(path)[..., channel] for channel in range(3))
    return float(((abs(red - 8) < 12) & (abs(green - 48) < 12) & (abs(blue - 107) < 12)).mean())


def test_the_table_has_a_line_a_class_with_its_answers(tmp_path: Path) -> None:
    counts = torch.tensor([[5, 1, 0], [2, 7, 3], [0, 0, 4]])
    write_confusion(counts, ("cat", 'dog, "big"', "Löffel"), tmp_path / "new" / "confusion.csv")
    with (tmp_path / "new" / "confusion.csv").open(newline="", encoding="utf-8") as file:
        head, *lines = list(csv.reader(file))
    assert head[1:] == ["cat", 'dog, "big"', "Löffel"] == [line[0] for line in lines]
    assert [[int(number) for number in line[1:]] for line in lines] == counts.tolist()


@pytest.mark.parametrize("num_classes", [4, 200])
def test_the_matrix_is_dark_where_the_answers_are(tmp_path: Path, num_classes: int) -> None:
    names = [f"class number {number}" for number in range(num_classes)]
    right, all_one = torch.eye(num_classes).long() * 9, torch.zeros(num_classes, num_classes).long()
    all_one[:, 0] = 9
    spread = torch.ones(num_classes, num_classes).long()
    for name, counts in (("right", right), ("all_one", all_one), ("spread", spread)):
        draw_confusion(counts, names, tmp_path / f"{name}.png")
    if num_classes == 4:  # of 200 classes a cell is a pixel or two, which the drawing blends
        assert dark_blue(tmp_path / "right.png") == pytest.approx(dark_blue(tmp_path / "all_one.png"), rel=0.1)
        assert dark_blue(tmp_path / "right.png") > 0.05
    assert dark_blue(tmp_path / "spread.png") < 0.02
    assert (pixels(tmp_path / "right.png") != pixels(tmp_path / "all_one.png")).any()


def test_a_class_without_images_has_an_empty_row(tmp_path: Path) -> None:
    draw_confusion(torch.tensor([[3, 0], [0, 0]]), ("cat", "dog"), tmp_path / "confusion.png")
    assert dark_blue(tmp_path / "confusion.png") > 0.05


@pytest.mark.parametrize("name", ["no formula: $\\frac{$", "two\nlines"])
def test_a_class_may_have_any_name(tmp_path: Path, name: str) -> None:
    image, plain = torch.full((3, 16, 16), 128, dtype=torch.uint8), name.replace("\n", "?")
    classes = torch.tensor([[0, 1], [1, 0]], dtype=torch.uint8)
    for kind, text in (("as it is", name), ("plain", plain)):
        draw_answers([(image, text, "cat", 0.5), (image, text, text, 0.5)], tmp_path / f"answers {kind}.png")
        draw_sheet([(image, text, 0.5, text)], tmp_path / f"sheet {kind}.png", "title")
        draw_confusion(torch.eye(2).long(), ("cat", text), tmp_path / f"confusion {kind}.png")
        draw_masks([(image, None, classes)], ("cat", text), tmp_path / f"masks {kind}.png")
    for picture in ("answers", "sheet", "confusion", "masks"):
        assert (pixels(tmp_path / f"{picture} as it is.png") == pixels(tmp_path / f"{picture} plain.png")).all()


@pytest.mark.parametrize("count", [1, 9])
def test_a_sheet_has_every_image(tmp_path: Path, count: int) -> None:
    images = torch.zeros(count, 3, 16, 16, dtype=torch.uint8)
    images[:, 0] = 255
    draw_answers([(image, "cat", "a dog with a very long name", 0.5) for image in images], tmp_path / "sheet.png")
    sheet = pixels(tmp_path / "sheet.png")
    red = (sheet[..., 0] > 250) & (sheet[..., 1:].max(axis=-1) < 5)
    of_one_image = (1.3 * 150) ** 2  # inches times dots, about
    assert 0.7 * count * of_one_image < red.sum() < 1.2 * count * of_one_image
