"""A COCO data set so small that a test can count it: coloured rectangles on grey, in pictures of several sizes."""

import json
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

needs_pycocotools = pytest.mark.skipif(find_spec("pycocotools") is None, reason="needs pycocotools")
"""A mark, where a module that others import must not be skipped as a whole."""

CATEGORIES = [{"id": 3, "name": "red"}, {"id": 7, "name": "blue"}]
"""Ids have gaps, as COCO's have."""
_COLOURS = {3: (220, 30, 30), 7: (30, 60, 220)}
_SIZES = ((64, 80), (72, 56), (60, 60))

Change = Callable[[dict[str, Any]], None]


def rectangle(x: float, y: float, width: float, height: float) -> list[list[float]]:
    """A box as a polygon."""
    return [[x, y, x + width, y, x + width, y + height, x, y + height]]


def write_split(root: Path, split: str, num_images: int, change: Change | None = None) -> Path:
    """Pictures of `split`, two objects each, and the JSON, which `change` edits before it is written."""
    rng = np.random.default_rng(len(split))
    images, annotations = [], []
    (root / split).mkdir(parents=True, exist_ok=True)
    for number in range(num_images):
        height, width = _SIZES[number % len(_SIZES)]
        pixels = np.full((height, width, 3), 128, dtype=np.uint8)
        for category, colour in _COLOURS.items():
            box_height, box_width = rng.integers(16, 30, size=2).tolist()
            x, y = int(rng.integers(0, width - box_width)), int(rng.integers(0, height - box_height))
            pixels[y : y + box_height, x : x + box_width] = colour
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": 10 + number,
                    "category_id": category,
                    "bbox": [x, y, box_width, box_height],
                    "area": box_width * box_height,
                    "iscrowd": 0,
                    "segmentation": rectangle(x, y, box_width, box_height),
                }
            )
        name = f"{number:04d}.png"
        Image.fromarray(pixels).save(root / split / name)
        images.append({"id": 10 + number, "file_name": name, "height": height, "width": width})
    content = {"images": images, "annotations": annotations, "categories": CATEGORIES}
    if change is not None:
        change(content)
    path = root / "annotations" / f"instances_{split}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def write_coco(root: Path, num_train: int = 8, num_val: int = 5) -> Path:
    """Both splits, called `train` and `val`."""
    write_split(root, "train", num_train)
    write_split(root, "val", num_val)
    return root
