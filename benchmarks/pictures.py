"""JPEG files to read, made on the spot, where no photographs are at hand."""

from itertools import cycle
from pathlib import Path

import numpy as np
from PIL import Image


def make_pictures(root: Path, count: int) -> None:
    """Colour noise with the spectrum of photographs (amplitude 1/f), 500 x 375, JPEG quality 92, 4:2:0."""
    rng = np.random.default_rng(0)
    down, across = np.fft.fftfreq(375)[:, None], np.fft.rfftfreq(500)[None, :]
    amplitude = 1 / np.maximum(np.hypot(down, across), 1 / 500)
    folders = [root / "train" / name for name in "ab"]
    for folder in folders:
        folder.mkdir(parents=True)
    for number, folder in zip(range(count), cycle(folders)):
        spectrum = amplitude * np.exp(2j * np.pi * rng.random((3, 375, 251)))
        grey, *tints = np.fft.irfft2(spectrum, s=(375, 500))
        pixels = np.stack([grey + 0.2 * tint for tint in (*tints, -tints[0])], axis=-1)
        pixels = 128 + 55 * (pixels - pixels.mean()) / pixels.std()
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"{number}.jpg", quality=92)
