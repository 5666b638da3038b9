"""Mixup and CutMix against loops, and their distributions against closed forms."""

import math

import pytest
import torch
from torch import Tensor

from dmt_ds import sample_rng
from dmt_ds.downstream.mixing import beta_quantiles, centred_boxes, mix, neighbours, own_weights

SEEDS = torch.arange(64)


def images(count: int = 64, height: int = 12, width: int = 20) -> Tensor:
    return torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(0))


def test_partners_are_neighbours() -> None:
    assert neighbours(torch.arange(6)).tolist() == [1, 0, 3, 2, 5, 4]
    assert torch.equal(neighbours(neighbours(images())), images())


def test_mixup_is_a_weighted_sum_of_two_images() -> None:
    originals = images()
    mixed, share = mix(originals, SEEDS, mixup=0.8, cutmix=0.0, probability=1.0, cutmix_share=0.5)
    numbers = sample_rng.uniform(SEEDS, "mix", 5)[:, 2]
    for row in range(64):
        own = beta_quantiles(numbers[row : row + 1], 0.8)[0]
        other = originals[row + 1 if row % 2 == 0 else row - 1]
        torch.testing.assert_close(mixed[row], own * originals[row] + (1 - own) * other)
        assert share[row].item() == pytest.approx(own.item(), abs=1e-5)


def test_cutmix_takes_a_rectangle_of_the_neighbour_whose_area_it_owes() -> None:
    originals, (height, width) = images(), (12, 20)
    mixed, share = mix(originals, SEEDS, mixup=0.0, cutmix=1.0, probability=1.0, cutmix_share=0.5)
    numbers = sample_rng.uniform(SEEDS, "mix", 5).tolist()
    for row in range(64):
        _, _, own, of_row, of_column = numbers[row]
        side = math.sqrt(1 - own)  # Beta(1, 1) is uniform
        h, w = int(height * side), int(width * side)
        y, x = int(of_row * height), int(of_column * width)
        top, bottom = max(0, y - h // 2), min(height, y + (h + 1) // 2)
        left, right = max(0, x - w // 2), min(width, x + (w + 1) // 2)
        expected = originals[row].clone()
        other = originals[row + 1 if row % 2 == 0 else row - 1]
        expected[:, top:bottom, left:right] = other[:, top:bottom, left:right]
        assert torch.equal(mixed[row], expected)
        area = max(0, bottom - top) * max(0, right - left)
        assert share[row].item() == pytest.approx(1 - area / (height * width), abs=1e-6)


def test_a_rectangle_covers_its_area_where_no_border_cuts_it() -> None:
    area, middle = torch.linspace(0, 1, 101), torch.full((101,), 0.5)
    covered = centred_boxes(area, middle, middle, 1000, 1000).float().mean(dim=(1, 2))
    torch.testing.assert_close(covered, area, atol=3e-3, rtol=0)


def test_so_many_images_are_mixed_and_so_many_of_these_by_rectangle() -> None:
    weights = own_weights(torch.arange(8000), 32, 32, mixup=0.8, cutmix=1.0, probability=0.6, cutmix_share=0.25)
    lowest, highest = weights.amin(dim=(1, 2)), weights.amax(dim=(1, 2))
    rectangles = ((lowest == 0) & (highest == 1)).float().mean().item()
    blends = ((lowest == highest) & (highest < 1)).float().mean().item()
    assert rectangles == pytest.approx(0.6 * 0.25, abs=0.02)  # a few are too small to show, or cover all
    assert blends == pytest.approx(0.6 * 0.75, abs=0.02)


def test_a_mixture_is_the_same_however_the_order_of_images_is_cut_between_pairs() -> None:
    originals = images()
    settings = {"mixup": 0.8, "cutmix": 1.0, "probability": 0.9, "cutmix_share": 0.5}
    whole, shares = mix(originals, SEEDS, **settings)
    for size in (2, 6, 32):
        parts = [mix(a, b, **settings) for a, b in zip(originals.split(size), SEEDS.split(size), strict=True)]
        assert torch.equal(torch.cat([part for part, _ in parts]), whole)
        assert torch.equal(torch.cat([share for _, share in parts]), shares)


@pytest.mark.parametrize(
    ("alpha", "quantile"),
    [
        (1.0, lambda u: u),
        (0.5, lambda u: torch.sin(math.pi * u / 2) ** 2),  # the arcsine law
        (2.0, lambda u: 0.5 - torch.sin(torch.asin(1 - 2 * u) / 3)),  # the root of 3 x^2 - 2 x^3 = u
    ],
)
def test_quantiles_are_those_of_the_closed_forms(alpha: float, quantile) -> None:
    shares = torch.linspace(0, 1, 1001, dtype=torch.float64)
    torch.testing.assert_close(
        beta_quantiles(shares.float(), alpha), quantile(shares).float(), atol=2e-5, rtol=0, check_dtype=False
    )


@pytest.mark.parametrize("alpha", [0.1, 0.2, 0.8, 1.5, 4.0, 32.0])
def test_uniform_numbers_become_numbers_with_the_moments_of_the_beta_distribution(alpha: float) -> None:
    values = beta_quantiles((torch.arange(100_000) + 0.5) / 100_000, alpha).double()
    assert values.min() >= 0 and values.max() <= 1
    assert values.mean().item() == pytest.approx(0.5, abs=1e-4)
    assert values.var().item() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=2e-3)
    fourth = 3 / (4 * (2 * alpha + 3)) / (4 * (2 * alpha + 1))  # E (x - 1/2)^4
    assert ((values - 0.5) ** 4).mean().item() == pytest.approx(fourth, rel=2e-3)
