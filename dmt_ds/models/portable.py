"""A model as it leaves this project: a ViT with what a stranger must know to feed it; knows no run."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dmt_ds.config.section import IMAGENET_MEAN, IMAGENET_STD, Triple
from dmt_ds.models.backbone_folder import load_backbone
from dmt_ds.models.classifier_folder import CLASSES_FILE, load_classifier
from dmt_ds.models.vit import VitShape, shape_of, tokens_of

Answer = Callable[[Tensor], Tensor]
"""Normalised images [B, 3, H, W] -> tokens [B, 1+N, D] of an encoder, or scores [B, C] of a classifier."""


@dataclass(frozen=True)
class Preprocessing:
    """How a picture becomes what the model was trained on.

    Attributes:
        image_size: side of the square that the model takes, in pixels.
        crop_share: that side over the short side to which the picture is scaled before its middle is cut out; 1 scales
            the whole picture to the square.
        interpolation: of that scaling.
        mean: of the pixels in 0..1, taken off.
        std: what they are divided by afterwards.
    """

    image_size: int
    crop_share: float = 1.0
    interpolation: str = "bicubic"
    mean: Triple = IMAGENET_MEAN
    std: Triple = IMAGENET_STD

    @property
    def short_side(self) -> int:
        """What the short side is scaled to, in pixels; timm rounds down."""
        return int(self.image_size / self.crop_share)

    @classmethod
    def of_config(cls, data: dict[str, Any]) -> "Preprocessing":
        """The preprocessing that timm's `pretrained_cfg` says."""
        return cls(
            data["input_size"][-1],
            data.get("crop_pct", 1.0),
            data.get("interpolation", "bicubic"),
            tuple(data.get("mean", IMAGENET_MEAN)),
            tuple(data.get("std", IMAGENET_STD)),
        )


@dataclass(frozen=True)
class PortableModel:
    """An encoder or a classifier, in evaluation, on the CPU.

    Attributes:
        vit: a ViT of timm, with its head where it is a classifier.
        config: of its folder, as timm has it: `architecture`, `model_args`, `pretrained_cfg`, ...
        preprocessing: of its images.
        class_names: in the order of the scores; empty for an encoder.
        provenance: what the run said of it: `task`, `step`, `teachers`, ...
    """

    vit: nn.Module
    config: dict[str, Any]
    preprocessing: Preprocessing
    class_names: tuple[str, ...] = ()
    provenance: dict[str, Any] = field(default_factory=dict)

    @property
    def shape(self) -> VitShape:
        """Shape of the ViT."""
        return shape_of(self.vit)

    @property
    def output(self) -> str:
        """Name of what it answers: `logits` or `tokens`."""
        return "logits" if self.class_names else "tokens"

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Normalised images -> the model's answer."""
        answer: Tensor = self.graph()(images)
        return answer

    def graph(self) -> nn.Module:
        """The computation alone, for files that hold it."""
        return (_Logits if self.class_names else _Tokens)(self.vit)

    def sample(self, count: int) -> Tensor:
        """Images [count, 3, H, W] like normalised ones, always the same, to compare answers on."""
        size = self.preprocessing.image_size
        return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(count))


class _Tokens(nn.Module):
    def __init__(self, vit: nn.Module) -> None:
        super().__init__()
        self.vit = vit

    def forward(self, images: Tensor) -> Tensor:
        return tokens_of(self.vit, images)


class _Logits(nn.Module):
    def __init__(self, vit: nn.Module) -> None:
        super().__init__()
        self.vit = vit

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.vit(images)
        return logits


def read_portable(folder: Path) -> PortableModel:
    """The encoder or classifier of a folder in timm's form.

    Raises:
        WeightsError: a file is missing or damaged, or the tensors are not the config's model.
    """
    class_names: tuple[str, ...] = ()
    if (folder / CLASSES_FILE).is_file():
        vit, config, class_names = load_classifier(folder)
    else:
        vit, config, _ = load_backbone(folder)
    preprocessing = Preprocessing.of_config(config["pretrained_cfg"])
    return PortableModel(vit.eval(), config, preprocessing, class_names, config.get("dmt_ds", {}))
