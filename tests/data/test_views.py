"""Crops: torchvision's distribution, exact geometry, and nothing but the seed decides."""

import math

import numpy as np
import PIL
import pytest
import torch
import torchvision
import torchvision.transforms.v2.functional as tvf
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms import InterpolationMode, RandomResizedCrop

from dmt_ds.config.schema import DataConfig
from dmt_ds.data.views import (
    CropSpec,
    _without_far_ends,
    center_crop,
    crop_box,
    crop_numbers,
    cut_into,
    resize_into,
)
from tests.crops import draw_crop

PLAIN = CropSpec(64, flip=0.0)


def coordinate_image(height: int, width: int) -> torch.Tensor:
    """Red counts columns, green rows: each pixel says where it was."""
    red = torch.arange(width).expand(height, width)
    green = torch.arange(height)[:, None].expand(height, width)
    return torch.stack([red, green, torch.zeros_like(red)]).to(torch.uint8)


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("seed", range(10))
def test_a_coordinate_image_shows_that_the_box_is_what_is_cut(interpolation: str, seed: int) -> None:
    image, spec = coordinate_image(200, 250), CropSpec(64, flip=0.0, interpolation=interpolation)  # type: ignore[arg-type]
    top, left, height, width = crop_box(200, 250, spec, crop_numbers(torch.tensor([seed]), 0)[0])
    crop = draw_crop(image, spec, seed, 0).float()
    centres = (torch.arange(64) + 0.5) / 64
    assert (crop[0] - (left + centres * width - 0.5)[None, :]).abs()[:, 2:-2].max() <= 1
    assert (crop[1] - (top + centres * height - 0.5)[:, None]).abs()[2:-2].max() <= 1


@pytest.mark.parametrize("seed", range(5))
def test_a_flip_mirrors_the_very_same_crop(seed: int) -> None:
    image = coordinate_image(200, 250)
    flipped = draw_crop(image, CropSpec(64, flip=1.0), seed, 0)
    assert torch.equal(flipped.flip(-1), draw_crop(image, PLAIN, seed, 0))


def test_half_of_the_crops_are_flipped() -> None:
    numbers = torch.tensor(crop_numbers(torch.arange(4000), 0))
    assert abs((numbers[:, -2] < 0.5).float().mean() - 0.5) < 0.03


def test_a_crop_turns_by_at_most_the_given_angle() -> None:
    image = torch.zeros(3, 64, 64, dtype=torch.uint8)
    image[:, :32] = 255  # a horizontal edge through the middle
    whole = CropSpec(64, scale=(1, 1), ratio=(1, 1), flip=0.0, rotation_degrees=30.0)
    angles = []
    for seed in range(50):
        crop = draw_crop(image, whole, seed, 0)
        left_edge, right_edge = (crop[0, :, column].float().sum() / 255 for column in (20, 43))
        angles.append(math.degrees(math.atan2(float(right_edge - left_edge), 23)))
    assert max(map(abs, angles)) <= 32 and min(angles) < -15 and max(angles) > 15


USUAL = (3 / 4, 4 / 3)


@pytest.mark.parametrize(
    ("height", "width", "scale", "ratio"),
    [
        (300, 400, (0.2, 1.0), USUAL),
        (500, 120, (0.2, 1.0), USUAL),
        (64, 64, (0.05, 0.25), USUAL),
        (400, 400, (0.05, 0.1), (1 / 4, 4.0)),
    ],
)
def test_boxes_are_distributed_as_torchvisions(
    height: int, width: int, scale: tuple[float, float], ratio: tuple[float, float]
) -> None:
    count = 3000
    spec = CropSpec(64, scale=scale, ratio=ratio)
    mine = [crop_box(height, width, spec, numbers) for numbers in crop_numbers(torch.arange(count), 0)]
    torch.manual_seed(0)
    image = torch.empty(3, height, width)
    theirs = [RandomResizedCrop.get_params(image, list(scale), list(ratio)) for _ in range(count)]
    mine_sorted = torch.tensor(mine, dtype=torch.float64).sort(dim=0).values
    theirs_sorted = torch.tensor(theirs, dtype=torch.float64).sort(dim=0).values
    for column, side in enumerate((height, width, height, width)):
        distance = (mine_sorted[:, column] - theirs_sorted[:, column]).abs().mean() / side  # Wasserstein
        assert distance < 0.015, ("top", "left", "height", "width")[column]


def test_place_area_and_shape_of_a_box_tell_nothing_of_each_other() -> None:
    spec = CropSpec(64, scale=(0.1, 0.3))
    boxes = torch.tensor([crop_box(1000, 1000, spec, numbers) for numbers in crop_numbers(torch.arange(3000), 0)])
    top, left, height, width = boxes.double().unbind(dim=1)
    facts = torch.stack([top / (1000 - height), left / (1000 - width), height * width, (width / height).log()])
    correlations = torch.corrcoef(facts) - torch.eye(4)
    assert correlations.abs().max() < 0.08  # of 3000 pairs by chance: 0.018 as a rule


@pytest.mark.parametrize(("height", "width"), [(1000, 10), (10, 1000)])
def test_an_image_too_slim_for_any_crop_gives_its_middle(height: int, width: int) -> None:
    spec = CropSpec(64, scale=(0.9, 1.0))
    box = crop_box(height, width, spec, crop_numbers(torch.tensor([0]), 0)[0])
    assert box == ((493, 0, 13, 10) if height > width else (0, 493, 10, 13))


def test_a_box_never_leaves_the_image() -> None:
    for seed, numbers in enumerate(crop_numbers(torch.arange(500), 0)):
        height, width = 1 + seed % 37, 1 + seed % 23
        top, left, crop_height, crop_width = crop_box(height, width, PLAIN, numbers)
        assert 0 <= top <= top + crop_height <= height and 0 <= left <= left + crop_width <= width
        assert crop_height > 0 and crop_width > 0


def test_a_box_reaches_the_last_row_and_column() -> None:
    quarter = CropSpec(64, scale=(0.25, 0.25), ratio=(1.0, 1.0))
    for place, first in ((0.0, 0), (1 - 2**-24, 5)):  # the smallest and the largest number that is drawn
        assert crop_box(10, 10, quarter, [0.5] * 20 + [place, place, 0.0, 0.0]) == (first, first, 5, 5)


def test_a_ratio_is_width_over_height() -> None:
    wide = CropSpec(64, scale=(0.25, 0.25), ratio=(4.0, 4.0))
    assert crop_box(100, 100, wide, [0.5] * 24)[2:] == (25, 100)


def photograph(height: int, width: int) -> torch.Tensor:
    """Smooth colours with hard edges, which make bicubic overshoot; channels-last, as a decoder gives it."""
    generator = torch.Generator().manual_seed(height * width)
    coarse = torch.rand(1, 3, height // 8, width // 8, generator=generator) * 255
    image = torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic").clamp(0, 255)[0]
    image[:, ::7, : width // 3] = 255
    image[:, height // 2 :, ::5] = 0
    return image.to(torch.uint8).permute(1, 2, 0).contiguous().permute(2, 0, 1)


@pytest.mark.skipif(int(PIL.__version__.split(".")[0]) < 13, reason="Pillow before 13 has another order of axes")
@pytest.mark.parametrize("shape", [(375, 500), (500, 333), (112, 112), (60, 90), (900, 300)])
@pytest.mark.parametrize("size", [224, 48])
def test_a_crop_is_pillows_bicubic(shape: tuple[int, int], size: int) -> None:
    image = photograph(*shape)
    errors = []
    for seed in range(8):
        top, left, height, width = crop_box(*shape, PLAIN, crop_numbers(torch.tensor([seed]), 0)[0])
        crop = Image.fromarray(image.permute(1, 2, 0).numpy()).crop((left, top, left + width, top + height))
        by_pillow = crop.resize((size, size), Image.Resampling.BICUBIC)
        mine = draw_crop(image, CropSpec(size, flip=0.0), seed, 0).permute(1, 2, 0)
        errors.append((mine.int() - torch.from_numpy(np.array(by_pillow)).int()).abs())
    assert torch.cat(errors).max() <= 2 and torch.cat(errors).float().mean() <= 0.05


# torchvision 0.23 resizes in floats where a CPU has AVX-512, and so rounds once less.
ROUNDED = {"bicubic": 0, "bilinear": 2 if torchvision.__version__.startswith("0.23.") else 0}
LAYOUTS = {
    "planes": lambda image: image.contiguous(),
    "colours together": lambda image: image[None].contiguous(memory_format=torch.channels_last)[0],
    "one plane thrice": lambda image: image[:1].expand(3, -1, -1),
    "part of a picture": lambda image: torch.nn.functional.pad(image, [2, 3, 1, 4])[:, 1:-4, 2:-3],
}


@given(
    st.integers(1, 70),
    st.integers(1, 70),
    st.integers(8, 80),
    st.sampled_from(["bicubic", "bilinear"]),
    st.sampled_from(list(LAYOUTS)),
    st.booleans(),
    st.integers(0, 2**40),
)
@settings(max_examples=200)
def test_a_crop_is_resized_by_torchvisions_arithmetic_whatever_is_read_and_wherever_it_is_written(
    height: int, width: int, size: int, interpolation: str, layout: str, mirrored: bool, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    image = LAYOUTS[layout](torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=generator))
    numbers = crop_numbers(torch.tensor([seed]), 0)[0]
    spec = CropSpec(size, interpolation=interpolation, flip=float(mirrored))  # type: ignore[arg-type]
    box = crop_box(height, width, spec, numbers)
    expected = tvf.crop(image, *box)
    if box[2] > size and box[2] - size > 2 * (box[3] - size):  # Pillow's condition for the height before the width
        expected = tvf.resize(expected, [size, box[3]], InterpolationMode(interpolation), antialias=True)
    expected = tvf.resize(expected, [size, size], InterpolationMode(interpolation), antialias=True)
    expected = expected.flip(-1) if mirrored else expected
    for format_ in (torch.contiguous_format, torch.channels_last):
        batch = torch.zeros(2, 3, size, size, dtype=torch.uint8).to(memory_format=format_)
        cut_into(batch[1], image, spec, numbers)
        assert (batch[1].int() - expected.int()).abs().max() <= ROUNDED[interpolation] and not batch[0].any()


def test_a_crop_that_is_squeezed_before_it_is_widened_writes_nowhere_else() -> None:
    image = LAYOUTS["colours together"](torch.randint(0, 256, (3, 57, 9), dtype=torch.uint8))
    memory = torch.full((3 * 100 + 2 * 300,), 7, dtype=torch.uint8)
    resize_into(memory[300:600].view(10, 10, 3).permute(2, 0, 1), image, "bicubic")
    assert (memory[:300] == 7).all() and (memory[600:] == 7).all()


def test_the_same_seed_gives_the_same_crop_and_another_view_another() -> None:
    image = coordinate_image(200, 250)
    assert torch.equal(draw_crop(image, PLAIN, 7, 0), draw_crop(image, PLAIN, torch.tensor(7), 0))
    assert not torch.equal(draw_crop(image, PLAIN, 7, 0), draw_crop(image, PLAIN, 7, 1))


def test_numbers_do_not_depend_on_the_batch_they_are_drawn_in() -> None:
    together = crop_numbers(torch.arange(10), 0)
    assert together == [crop_numbers(torch.tensor([seed]), 0)[0] for seed in range(10)]


def test_an_8_pixel_image_is_scaled_up() -> None:
    assert draw_crop(coordinate_image(8, 8), CropSpec(32), 0, 0).shape == (3, 32, 32)


def test_the_shared_crop_is_what_the_recipe_says() -> None:
    section = DataConfig(
        image_size=96,
        crop_scale=(0.3, 0.9),
        crop_ratio=(1, 1),
        interpolation="bilinear",
        horizontal_flip=0.25,
        rotation_degrees=5,
    )
    assert CropSpec.from_section(section) == CropSpec(96, (0.3, 0.9), (1, 1), "bilinear", 0.25, 5)


def test_the_middle_at_224_is_that_of_resize_256_and_crop_224() -> None:
    image = torch.randint(0, 256, (3, 300, 400), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    expected = tvf.center_crop(tvf.resize(image, [256], InterpolationMode.BICUBIC, antialias=True), [224, 224])
    assert torch.equal(center_crop(image, 224), expected)


@pytest.mark.parametrize("shape", [(8, 8), (5, 100), (100, 5), (1, 1)])
@pytest.mark.parametrize("size", [32, 64, 224])
def test_the_middle_has_the_size_asked_for(shape: tuple[int, int], size: int) -> None:
    assert center_crop(coordinate_image(*shape), size).shape == (3, size, size)


def scaled_as_a_whole(image: torch.Tensor) -> torch.Tensor:
    return tvf.center_crop(tvf.resize(image, [256], InterpolationMode.BICUBIC, antialias=True), [224, 224])


@pytest.mark.parametrize("shape", [(20, 333), (20, 480), (481, 20), (600, 30)])
def test_the_middle_of_a_very_long_image_is_that_of_the_whole(shape: tuple[int, int]) -> None:
    image = photograph(*shape)
    difference = (center_crop(image, 224).float() - scaled_as_a_whole(image).float()).abs()
    assert difference.mean() < 2 and difference.max() <= 32  # scaled lengths are whole pixels: half of one, at most


def test_up_to_sixteen_times_as_long_nothing_is_cut_before_it_is_scaled() -> None:
    for shape in ((20, 320), (320, 20)):
        image = photograph(*shape)
        assert _without_far_ends(image).shape == image.shape


def test_an_image_of_few_rows_and_many_columns_is_not_scaled_as_a_whole() -> None:
    assert _without_far_ends(torch.zeros(3, 4, 8000, dtype=torch.uint8)).shape == (3, 4, 64)
    assert _without_far_ends(torch.zeros(3, 8001, 4, dtype=torch.uint8)).shape == (3, 65, 4)
    assert center_crop(torch.zeros(3, 1, 100_000, dtype=torch.uint8), 224).shape == (3, 224, 224)


def test_a_small_evaluation_crop_keeps_the_whole_image() -> None:
    crop = center_crop(coordinate_image(128, 128), 32).float()
    assert crop[0].min() < 3 and crop[0].max() > 124
