"""What is hidden is a function of the image's seed, exact in number."""

import pytest
import torch

from dmt_ds.methods.masking import hide_patches, patch_order, take_rows
from dmt_ds.sample_rng import image_seeds

SEEDS = image_seeds(0, torch.zeros(2000, dtype=torch.int64), torch.arange(2000))


def test_an_order_is_a_permutation_of_the_patches():
    order = patch_order(SEEDS, "mask", 49)
    assert torch.equal(order.sort(dim=1).values, torch.arange(49).expand(2000, 49))


def test_every_patch_comes_first_equally_often():
    first = patch_order(SEEDS, "mask", 10)[:, 0].bincount(minlength=10)
    assert first.min() > 150 and first.max() < 250  # 200 expected, sd 13


def test_the_masks_of_a_batch_cut_in_two_are_those_of_the_whole():
    whole = hide_patches(SEEDS[:9], "mask", 16, (0.1, 0.5), 0.5)
    cut = [hide_patches(part, "mask", 16, (0.1, 0.5), 0.5) for part in (SEEDS[:4], SEEDS[4:9])]
    for tensor, first, second in zip(whole, *cut, strict=True):
        assert torch.equal(tensor, torch.cat([first, second]))


def test_the_hidden_share_is_within_its_range_for_the_wanted_share_of_images():
    hidden = hide_patches(SEEDS, "mask", 100, (0.1, 0.5), 0.5)
    counts = hidden.mask.sum(dim=1)
    chosen = counts > 0
    assert 0.46 < chosen.float().mean() < 0.54
    assert counts[chosen].min() == 10 and counts[chosen].max() == 50
    assert 28 < counts[chosen].float().mean() < 32


def test_weights_are_one_over_the_number_hidden_at_hidden_slots_and_zero_elsewhere():
    hidden = hide_patches(SEEDS[:50], "mask", 16, (0.1, 0.5), 0.5)
    for mask, slots, weights in zip(*hidden, strict=True):
        expected = [1 / int(mask.sum()) if mask[slot] else 0.0 for slot in slots]
        assert weights.tolist() == pytest.approx(expected)


def test_every_hidden_patch_has_a_slot():
    hidden = hide_patches(SEEDS, "mask", 16, (0.1, 0.5), 1.0)
    assert torch.equal(hidden.mask.sum(dim=1), hidden.mask.gather(1, hidden.slots).sum(dim=1))


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
