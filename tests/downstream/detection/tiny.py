"""A detector so small that a test builds it in no time: patches of 4 pixels, width 24, heads of width 16."""

from typing import Any

import torch
from torch import Tensor

from dmt_ds.config.detection import DetectConfig
from dmt_ds.config.schema import StudentConfig
from dmt_ds.downstream.detection.detector import Detector
from dmt_ds.models.vit import build_vit

STUDENT = StudentConfig(arch="vit_tiny", patch_size=4, embed_dim=24, depth=2, num_heads=3, drop_path=0.0)
IMAGE_SIZE = 16
SIZES = ((48, 60), (64, 40))
SEEDS = torch.tensor([5, 6])


def section(**changes: Any) -> DetectConfig:
    """Settings of a tiny detector."""
    settings: dict[str, Any] = {
        "neck_width": 16,
        "head_width": 32,
        "head_convs": 1,
        "anchor_sizes": (8, 16, 24, 32, 48),
        "anchor_samples": 64,
        "box_samples": 32,
        "num_proposals": 30,
        "score_threshold": 0.0,
        "max_detections": 10,
    }
    return DetectConfig(**{**settings, **changes})


def detector(seed: int = 0, student: StudentConfig = STUDENT, **changes: Any) -> Detector:
    """One with random weights, for two categories."""
    torch.manual_seed(seed)
    return Detector(build_vit(student, IMAGE_SIZE, any_size=True), section(**changes), 2)


def images() -> Tensor:
    """[2, 3, 64, 64]: noise within `SIZES`, zeros beyond."""
    torch.manual_seed(1)
    pixels = torch.randn(2, 3, 64, 64)
    for image, (height, width) in zip(pixels, SIZES, strict=True):
        image[:, height:] = 0
        image[:, :, width:] = 0
    return pixels


def targets() -> list[dict[str, Tensor]]:
    """Two objects in the first image, none in the second."""
    masks = torch.zeros(2, *SIZES[0], dtype=torch.uint8)
    masks[0, 5:25, 4:30] = 1
    masks[1, 20:45, 30:56] = 1
    boxes = torch.tensor([[4.0, 5.0, 30.0, 25.0], [30.0, 20.0, 56.0, 45.0]])
    none = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}
    return [
        {"boxes": boxes, "labels": torch.tensor([1, 2]), "masks": masks},
        {**none, "masks": torch.zeros(0, *SIZES[1], dtype=torch.uint8)},
    ]
