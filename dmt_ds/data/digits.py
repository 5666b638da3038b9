"""Handwritten digits of scikit-learn: real images that need no download; knows no loader."""

import hashlib
from typing import Literal

import numpy as np
import torch
from torch import Tensor

NUM_VAL_IMAGES = 360
"""Of 1,797; the split is stratified and always the same."""


class DigitsSource:
    """1,437 training and 360 validation images of 8 x 8 grey pixels, given as RGB."""

    class_names = tuple(str(digit) for digit in range(10))

    def __init__(self, split: Literal["train", "val"]) -> None:
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split

        digits = load_digits()
        train, val = train_test_split(
            np.arange(len(digits.target)), test_size=NUM_VAL_IMAGES, stratify=digits.target, random_state=0
        )
        rows = np.sort(train if split == "train" else val)
        self._pixels = np.rint(digits.images[rows] * (255 / 16)).astype(np.uint8)  # [N, 8, 8], from 0..16
        self._labels = digits.target[rows].astype(np.int64)
        self._split = split
        self.fingerprint = hashlib.sha256(self._pixels.tobytes() + self._labels.tobytes()).hexdigest()[:16]

    def __len__(self) -> int:
        """Number of images."""
        return len(self._labels)

    def read(self, index: int) -> Tensor:
        """[3, 8, 8] uint8."""
        return torch.from_numpy(self._pixels[index]).expand(3, 8, 8)

    def label(self, index: int) -> int:
        """The digit."""
        return int(self._labels[index])

    def name(self, index: int) -> str:
        """The name for messages."""
        return f"digits {self._split} image {index}"
