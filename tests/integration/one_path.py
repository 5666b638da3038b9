"""Run by test_optimisations on every rank: `dmt-ds pretrain` with all that makes it fast, or with none of it.

python -m tests.integration.one_path fast|plain RECIPE [KEY=VALUE...]
"""

import sys
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torchvision.transforms.v2.functional as tvf
from torch import Tensor, nn

from dmt_ds.commands.training import pretrain, tasks, teacher_engines
from dmt_ds.config.load import load_config
from dmt_ds.data import batch_maker
from dmt_ds.data.augment import Augment
from dmt_ds.data.views import CropSpec, crop_box
from dmt_ds.distill.fusion import FUSED, TokenFusion
from dmt_ds.engine.deepspeed import ds_engine
from dmt_ds.models.products import PatchProduct
from tests.data.test_augment import jittered_by_torchvision

SETTINGS = {
    "fast": {"distill.kernel": "chunked", "teachers.sharding": "zero3"},
    "plain": {"distill.kernel": "eager", "teachers.sharding": "replicate"},
}


def sum_of_all(fusion: TokenFusion, named_tokens: Iterable[tuple[str, Tensor]], **_: object) -> dict[str, Tensor]:
    """All teachers' tokens first, then their sum."""
    return {FUSED: torch.stack([tokens.float() for _, tokens in named_tokens]).sum(dim=0)}


def crop_by_torchvision(place: Tensor, image: Tensor, spec: CropSpec, numbers: list[float]) -> None:
    box, interpolation = crop_box(*image.shape[-2:], spec, numbers), tvf.InterpolationMode(spec.interpolation)
    crop = tvf.resized_crop(image.contiguous(), *box, [spec.size, spec.size], interpolation, antialias=True)
    place.copy_(tvf.horizontal_flip(crop) if numbers[-2] < spec.flip else crop)


def augment_by_torchvision(augment: Augment, images: Tensor, seeds: Tensor) -> Tensor:
    section = augment.section
    pixels = [jittered_by_torchvision(image, section, seed) for image, seed in zip(images, seeds, strict=True)]
    return tvf.normalize(torch.stack(pixels), list(section.mean), list(section.std))


def replace(place: Any, name: str, by: Callable[..., Any]) -> None:
    assert callable(getattr(place, name))
    setattr(place, name, by)


def settings(way: str, overrides: Iterable[str]) -> list[str]:
    """The way's own, but for those that the caller has, as a recipe takes a key once only."""
    chosen = SETTINGS[way] | dict(override.split("=", 1) for override in overrides)
    return [f"{key}={value}" for key, value in chosen.items()]


def make_plain() -> None:
    replace(TokenFusion, "__call__", sum_of_all)
    replace(batch_maker, "cut_into", crop_by_torchvision)
    replace(Augment, "__call__", augment_by_torchvision)
    replace(tasks, "prefer_written_attention", lambda module: None)
    replace(pretrain, "fusing_pays", lambda *_, **__: False)
    replace(ds_engine, "overlap_reduction", lambda engine: None)
    replace(teacher_engines, "packing_pays", lambda *_: False)
    replace(teacher_engines, "fusing_gelu_pays", lambda *_: False)
    replace(teacher_engines, "adding_in_products_pays", lambda *_: False)
    replace(PatchProduct, "forward", nn.Conv2d.forward)


def make_fast() -> None:
    """What a CPU has by itself, and the updates that are judged a step late on CUDA."""
    replace(pretrain, "fusing_pays", lambda *_, **__: True)


def main() -> int:
    way, recipe, *overrides = sys.argv[1:]
    {"fast": make_fast, "plain": make_plain}[way]()
    build, deferred = ds_engine.build_student, []

    def build_and_look(*args: Any, **settings: Any) -> ds_engine.StudentEngine:
        engine = build(*args, **settings)
        deferred.append(engine.skips_on_device)
        return engine

    replace(ds_engine, "build_student", build_and_look)
    code = pretrain.run(load_config(recipe, settings(way, overrides)))
    sys.stdout.write(f"DEFERRED {deferred}\n")
    return code


if __name__ == "__main__":
    sys.exit(main())
