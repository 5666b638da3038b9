"""Random erasing against timm's rule, image by image."""

import math

import pytest
import torch
from torch import Tensor

from dmt_ds import sample_rng
from dmt_ds.data.erasing import erase, erased_boxes, pixel_noise


def box_by_a_loop(seed: Tensor, height: int, width: int) -> Tensor:
    """timm's RandomErasing of one image that is chosen, with the numbers of our stream: [H, W] bool."""
    numbers = sample_rng.uniform(seed[None], "erase/box", 40)[0].tolist()
    mask = torch.zeros(height, width, dtype=torch.bool)
    for attempt in range(10):
        of_area, of_aspect, of_top, of_left = numbers[4 * attempt : 4 * attempt + 4]
        area = (0.02 + (1 / 3 - 0.02) * of_area) * height * width
        log_low, log_high = math.log(1 / 0.3), math.log(0.3)
        aspect = math.exp(log_low + (log_high - log_low) * of_aspect)
        h, w = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if h < height and w < width:
            top, left = int(of_top * (height - h + 1)), int(of_left * (width - w + 1))
            mask[top : top + h, left : left + w] = True
            break
    return mask


@pytest.mark.parametrize(("height", "width"), [(32, 32), (20, 48)])
def test_rectangles_are_timms_with_our_numbers(height: int, width: int) -> None:
    seeds = torch.arange(500)
    expected = torch.stack([box_by_a_loop(seed, height, width) for seed in seeds])
    found = erased_boxes(seeds, height, width, 1.0)
    # float32 and float64 may round a side that lies at a half to different pixels
    assert (found != expected).any(dim=(1, 2)).float().mean() < 0.01
    assert found.any(dim=(1, 2)).float().mean() > 0.99


def test_so_many_images_lose_a_rectangle_of_2_to_33_percent() -> None:
    areas = erased_boxes(torch.arange(4000), 64, 64, 0.25).float().mean(dim=(1, 2))
    assert (areas > 0).float().mean().item() == pytest.approx(0.25, abs=0.02)
    erased = areas[areas > 0]
    assert 0.015 < erased.min() < 0.03 and 0.30 < erased.max() < 0.35


def test_pixels_in_the_rectangle_are_normal_noise_and_all_others_stay() -> None:
    images, seeds = torch.full((200, 3, 32, 32), 7.0), torch.arange(200)
    erased = erase(images, seeds, 0.5)
    boxes = erased_boxes(seeds, 32, 32, 0.5)[:, None].expand_as(images)
    assert (erased[~boxes] == 7).all()
    noise = erased[boxes]
    assert noise.mean().item() == pytest.approx(0, abs=0.02) and noise.std().item() == pytest.approx(1, abs=0.02)


def test_noise_differs_between_neighbouring_pixels_channels_and_images() -> None:
    noise = pixel_noise(torch.arange(4), torch.Size([3, 64, 64]))
    flat = noise.flatten(1)
    assert flat.corrcoef().fill_diagonal_(0).abs().max() < 0.05
    assert torch.stack([noise[:, 0].flatten(), noise[:, 1].flatten()]).corrcoef()[0, 1].abs() < 0.05
    assert torch.stack([flat[:, :-1].flatten(), flat[:, 1:].flatten()]).corrcoef()[0, 1].abs() < 0.05


def test_an_image_loses_the_same_pixels_wherever_it_stands() -> None:
    images, seeds = torch.randn(16, 3, 24, 24), torch.arange(16)
    together = erase(images, seeds, 0.5)
    assert torch.equal(erase(images.flip(0), seeds.flip(0), 0.5).flip(0), together)
    alone = [erase(image[None], seed[None], 0.5) for image, seed in zip(images, seeds, strict=True)]
    assert torch.equal(torch.cat(alone), together)
    assert not torch.equal(together, images)


def test_nothing_is_erased_at_probability_0() -> None:
    images = torch.randn(4, 3, 8, 8)
    assert torch.equal(erase(images, torch.arange(4), 0.0), images)
