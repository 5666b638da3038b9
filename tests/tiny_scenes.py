"""Street scenes for a child: coloured shapes on a ground, each colour a class, as ADE20K's folder has them."""

import io
import json
from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = ("ground", "red", "green")
COLOURS = np.array([[90, 90, 90], [220, 30, 30], [30, 200, 40]])
"""By class number."""


def scene(seed: int, height: int = 40, width: int = 56) -> tuple[np.ndarray, np.ndarray]:
    """Image [H, W, 3] and raw values [H, W]: 0 is no class, n is class n - 1."""
    generator = np.random.default_rng(seed)
    classes = np.zeros((height, width), dtype=np.int64)
    for number in (1, 2, 1, 2):
        top, left = generator.integers(0, height - 12), generator.integers(0, width - 12)
        tall, wide = generator.integers(8, 20, size=2)
        classes[top : top + tall, left : left + wide] = number
    noise = generator.integers(-20, 21, size=(height, width, 3))
    image = (COLOURS[classes] + noise).clip(0, 255).astype(np.uint8)
    raw = (classes + 1).astype(np.uint8)
    raw[:2] = 0
    return image, raw


def png(pixels: np.ndarray, mode: str | None = None) -> bytes:
    file = io.BytesIO()
    picture = Image.fromarray(pixels)
    if mode == "P":
        picture = Image.fromarray(pixels, mode="P")
        picture.putpalette([channel for value in range(256) for channel in (value, 0, 255 - value)])
    picture.save(file, "PNG")
    return file.getvalue()


def write_ade(folder: Path, num_train: int = 8, num_val: int = 3) -> Path:
    """ADEChallengeData2016's form, validation images of unlike sizes, with a list of classes beside them."""
    sizes = {"training": [(40, 56)] * num_train, "validation": [(40, 56), (33, 50), (45, 37), (40, 40)][:num_val]}
    for split, shapes in sizes.items():
        for part in ("images", "annotations"):
            (folder / part / split).mkdir(parents=True)
        for number, shape in enumerate(shapes):
            image, raw = scene(number + 100 * (split == "validation"), *shape)
            name = f"ADE_{split[:-3]}_{number:08d}"
            Image.fromarray(image).save(folder / "images" / split / f"{name}.jpg", quality=95)
            (folder / "annotations" / split / f"{name}.png").write_bytes(png(raw))
    (folder / "classes.json").write_text(json.dumps(CLASSES))
    return folder
