"""What is hidden is a function of the image's seed, exact in number."""

import math

import pytest
import torch
from torch import Tensor

from dmt_ds.methods.masking import BLOCK_ATTEMPTS, hidden_blocks, hide_patches, patch_order, take_rows
from dmt_ds.sample_rng import image_seeds, uniform

SEEDS = image_seeds(0, torch.zeros(2000, dtype=torch.int64), torch.arange(2000))


def test_an_order_is_a_permutation_of_the_patches():
    order = patch_order(SEEDS, "mask", 49)
    assert torch.equal(order.sort(dim=1).values, torch.arange(49).expand(2000, 49))


def test_every_patch_comes_first_equally_often():
    first = patch_order(SEEDS, "mask", 10)[:, 0].bincount(minlength=10)
    assert first.min() > 150 and first.max() < 250  # 200 expected, sd 13


each_shape = pytest.mark.parametrize("shape", ["block", "random"])


@each_shape
def test_the_masks_of_a_batch_cut_in_two_are_those_of_the_whole(shape):
    whole = hide_patches(SEEDS[:9], "mask", 49, (0.1, 0.5), 0.5, shape)
    cut = [hide_patches(part, "mask", 49, (0.1, 0.5), 0.5, shape) for part in (SEEDS[:4], SEEDS[4:9])]
    for tensor, first, second in zip(whole, *cut, strict=True):
        assert torch.equal(tensor, torch.cat([first, second]))


def test_the_hidden_share_is_within_its_range_for_the_wanted_share_of_images():
    hidden = hide_patches(SEEDS, "mask", 100, (0.1, 0.5), 0.5)
    counts = hidden.mask.sum(dim=1)
    chosen = counts > 0
    assert 0.46 < chosen.float().mean() < 0.54
    assert counts[chosen].min() == 10 and counts[chosen].max() == 50
    assert 28 < counts[chosen].float().mean() < 32


@each_shape
def test_weights_are_one_over_the_number_hidden_at_hidden_slots_and_zero_elsewhere(shape):
    hidden = hide_patches(SEEDS[:50], "mask", 16, (0.1, 0.5), 0.5, shape)
    for mask, slots, weights in zip(*hidden, strict=True):
        expected = [1 / int(mask.sum()) if mask[slot] else 0.0 for slot in slots]
        assert weights.tolist() == pytest.approx(expected)


@each_shape
def test_every_hidden_patch_has_a_slot_and_no_patch_has_two(shape):
    hidden = hide_patches(SEEDS, "mask", 36, (0.1, 0.5), 1.0, shape)
    assert torch.equal(hidden.mask.sum(dim=1), hidden.mask.gather(1, hidden.slots).sum(dim=1))
    assert all(len(set(slots)) == 18 for slots in hidden.slots.tolist())


@each_shape
def test_slots_that_hide_nothing_are_any_patches(shape):
    hidden = hide_patches(SEEDS, "mask", 16, (0.1, 0.5), 0.0, shape)
    often = hidden.slots.flatten().bincount(minlength=16)
    assert often.min() > 900 and often.max() < 1100  # 1000 expected, sd 22


def looped_blocks(seed: Tensor, side: int, count: int) -> Tensor:
    """The authors' loop for one image, one number at a time."""
    numbers = iter(uniform(seed[None], "block", 4 * BLOCK_ATTEMPTS)[0].tolist())
    mask = torch.zeros(side, side, dtype=torch.bool)
    for _ in range(BLOCK_ATTEMPTS):
        left = count - int(mask.sum())
        smallest = (side // 3) ** 2
        area = smallest + (left - smallest) * next(numbers)
        aspect = math.exp(math.log(0.3) + (math.log(1 / 0.3) - math.log(0.3)) * (1 - next(numbers)))
        height, width = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        top, start = int(next(numbers) * (side - height + 1)), int(next(numbers) * (side - width + 1))
        if height < side and width < side:
            rectangle = (slice(top, top + height), slice(start, start + width))
            num_new = height * width - int(mask[rectangle].sum())
            if 0 < num_new <= left:
                mask[rectangle] = True
    return mask.flatten()


@pytest.mark.parametrize("side", [4, 7, 14])
def test_blocks_are_a_loop_over_rectangles(side):
    count = (0.1 * side**2 + 0.4 * side**2 * torch.linspace(0, 1, 60)).round()
    masks = hidden_blocks(SEEDS[:60], "block", side, count)
    for seed, number, mask in zip(SEEDS[:60], count.tolist(), masks, strict=True):
        assert torch.equal(mask, looped_blocks(seed, side, int(number)))


def test_blocks_hide_nearly_all_that_is_wanted_and_never_more():
    count = torch.full((2000,), 60.0)
    hidden = hidden_blocks(SEEDS, "block", 14, count).sum(dim=1)
    assert hidden.max() == 60
    assert hidden.float().mean() > 0.97 * 60


@pytest.mark.parametrize(("ratio", "share"), [((0.1, 0.5), 0.98), ((1.0, 1.0), 0.85), ((0.0, 0.0), 0.3)])
def test_blocks_hide_the_share_of_what_is_wanted_that_is_told(ratio, share):
    hidden = hide_patches(SEEDS, "mask", 196, ratio, 1.0, "block").mask.sum(dim=1).float()
    wanted = max(1, 196 * sum(ratio) / 2)  # at least one
    assert hidden.mean().item() / wanted == pytest.approx(share, abs=0.04)


def hidden_neighbours(shape: str) -> float:
    """Share of the hidden patches' right neighbours that are hidden too."""
    mask = hide_patches(SEEDS, "mask", 196, (0.1, 0.5), 1.0, shape).mask.reshape(-1, 14, 14)
    return (mask[:, :, 1:] & mask[:, :, :-1]).sum().item() / mask[:, :, :-1].sum().item()


def test_blocks_lie_together_and_random_patches_do_not():
    assert hidden_neighbours("block") > 0.75
    assert hidden_neighbours("random") < 0.4


def test_a_chosen_image_hides_at_least_one_patch():
    hidden = hide_patches(SEEDS, "mask", 4, (0.0, 0.1), 1.0)
    assert torch.equal(hidden.mask.sum(dim=1), torch.ones(2000, dtype=torch.int64))


def test_shown_patches_keep_their_slots():
    hidden = hide_patches(SEEDS[:5], "mask", 16, (0.5, 0.5), 1.0)
    assert not hidden.shown().mask.any()
    assert torch.equal(hidden.shown().slots, hidden.slots)


def test_take_rows_is_a_loop_over_images_and_positions():
    tokens, positions = torch.randn(3, 5, 2), torch.tensor([[4, 0], [1, 1], [2, 3]])
    taken = take_rows(tokens, positions)
    for image in range(3):
        for slot in range(2):
            assert torch.equal(taken[image, slot], tokens[image, positions[image, slot]])
