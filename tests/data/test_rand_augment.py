"""RandAugment against timm's own operations, and its numbers against what they are drawn for."""

import random
from collections import Counter

import pytest
import torch
from PIL import Image
from timm.data.auto_augment import AugmentOp
from torch import Tensor
from torchvision.transforms.v2 import functional as tvf

from dmt_ds import sample_rng
from dmt_ds.config.schema import DataConfig
from dmt_ds.data.batch_maker import TrainBatchMaker
from dmt_ds.data.rand_augment import NAMES, RandAugment, Step
from dmt_ds.data.sources import open_source
from dmt_ds.data.views import CropSpec
from tests.crops import draw_crop
from tests.data.jittered import random_images

TIMM = dict(
    zip(
        NAMES,
        [
            "AutoContrast", "Equalize", "Invert", "Rotate", "PosterizeIncreasing", "SolarizeIncreasing", "SolarizeAdd",
            "ColorIncreasing", "ContrastIncreasing", "BrightnessIncreasing", "SharpnessIncreasing", "ShearX", "ShearY",
            "TranslateXRel", "TranslateYRel",
        ],
        strict=True,
    )
)  # fmt: skip


def by_timm(image: Tensor, name: str, level: float, how: RandAugment) -> Tensor:
    """One operation of timm's, whose direction hangs on Python's random numbers."""
    settings = {"img_mean": how.fill, "interpolation": Image.Resampling[how.interpolation.upper()]}
    operation = AugmentOp(TIMM[name], prob=1.0, magnitude=10 * abs(level), hparams=settings)
    random.seed(0 if level < 0 else 1)
    assert (random.random() > 0.5) == (level < 0), "timm turns a level round where the number is above a half"
    random.seed(0 if level < 0 else 1)
    return tvf.pil_to_tensor(operation(tvf.to_pil_image(image)))


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("level", [-1.0, -0.3, 0.9])
@pytest.mark.parametrize("name", NAMES)
def test_an_operation_is_timms_to_the_last_bit(name: str, level: float, interpolation: str) -> None:
    how = RandAugment(fill=(1, 20, 200), interpolation=interpolation)
    image = random_images(1, size=40)[0, :, :29]  # [3, 29, 40]
    found = how(image, [Step(name, level)])
    if name == "posterize" and abs(level) == 1:
        level *= 0.99  # timm would keep no bit, which Pillow refuses: a black picture has no class
    assert found.dtype == torch.uint8 and found.shape == image.shape
    assert torch.equal(found, by_timm(image, name, level, how))
    assert name == "auto_contrast" or not torch.equal(found, image)


def test_steps_follow_each_other_and_none_leave_the_crop_alone() -> None:
    how, image = RandAugment(), random_images(1)[0]
    steps = [Step("rotate", 0.5), Step("invert", 0.5)]
    assert torch.equal(how(image, steps), how(how(image, steps[:1]), steps[1:]))
    assert how(image, []) is image


def test_each_of_two_operations_is_done_half_the_time_and_any_as_often_as_another() -> None:
    drawn = RandAugment().draw(torch.arange(20_000), view=0)
    assert Counter(map(len, drawn)) == pytest.approx({0: 5000, 1: 10_000, 2: 5000}, rel=0.05)
    names = Counter(step.operation for steps in drawn for step in steps)
    assert names == pytest.approx(dict.fromkeys(NAMES, 20_000 / len(NAMES)), rel=0.1)


def test_levels_are_normal_around_the_magnitude_and_go_both_ways() -> None:
    drawn = RandAugment(magnitude=5.0, std=0.5).draw(torch.arange(20_000), view=0)
    levels = torch.tensor([step.level for steps in drawn for step in steps])
    assert (levels < 0).float().mean().item() == pytest.approx(0.5, abs=0.02)
    magnitudes = 10 * levels.abs()
    assert magnitudes.mean().item() == pytest.approx(5.0, abs=0.02)
    assert magnitudes.std().item() == pytest.approx(0.5, abs=0.02)
    assert ((magnitudes - 5).abs() < 0.5).float().mean().item() == pytest.approx(0.683, abs=0.02)


def test_a_level_ends_where_timms_does() -> None:
    drawn = RandAugment(magnitude=9.0, std=5.0).draw(torch.arange(2000), view=0)
    levels = [abs(step.level) for steps in drawn for step in steps]
    assert (min(levels), max(levels)) == (0.0, 1.0)


def test_an_image_has_its_own_steps_wherever_it_stands() -> None:
    how, seeds = RandAugment(), torch.arange(50)
    together = how.draw(seeds, view=0)
    assert how.draw(seeds.flip(0), view=0) == together[::-1]
    assert [how.draw(seed[None], view=0)[0] for seed in seeds] == together
    assert how.draw(seeds, view=1) != together


def test_a_loader_process_carries_the_steps_out_on_the_crop() -> None:
    source, how = open_source(DataConfig(), "train"), RandAugment(magnitude=9.0, fill=(0, 0, 0))
    specs = (CropSpec(16, rand_augment=how), CropSpec(16))
    epochs, rows = [0] * 20, list(range(20))
    made = TrainBatchMaker(source, specs, run_seed=3, bad_images="stop")[(epochs, rows)]
    assert made.batch is not None
    seeds = sample_rng.image_seeds(3, torch.tensor(epochs), torch.tensor(rows))
    changed = 0
    for row, (seed, steps) in enumerate(zip(seeds, how.draw(seeds, view=0), strict=True)):
        plain = [draw_crop(source.read(row), spec, seed, view) for view, spec in enumerate(specs)]
        assert torch.equal(made.batch.crops[0][row], how(plain[0], steps))
        assert torch.equal(made.batch.crops[1][row], plain[1])
        changed += not torch.equal(made.batch.crops[0][row], plain[0])
    assert 5 < changed < 20
