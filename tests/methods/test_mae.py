"""MAE's loss against loops, and what its encoder sees."""

import pytest
import torch

from dmt_ds.config.methods import MaeConfig
from dmt_ds.engine.task import Progress
from dmt_ds.errors import ConfigError
from dmt_ds.methods.mae import MaeTask, num_kept_patches, patchify, reconstruction_loss
from dmt_ds.methods.masking import patch_order
from tests.methods import tiny


def unpatchify(patches: torch.Tensor, patch_size: int) -> torch.Tensor:
    """Inverse of `patchify` for square images: [B, N, P * P * 3] -> [B, 3, H, W]."""
    batch, num_patches, _ = patches.shape
    side = round(num_patches**0.5)
    grid = patches.reshape(batch, side, side, patch_size, patch_size, 3)
    return grid.permute(0, 5, 1, 3, 2, 4).reshape(batch, 3, side * patch_size, side * patch_size)


def test_patches_put_back_in_their_places_are_the_images():
    images = torch.randn(2, 3, 12, 12)
    assert torch.equal(unpatchify(patchify(images, 4), 4), images)


def test_a_patch_lists_its_pixels_row_by_row_with_the_colour_last():
    images = torch.randn(2, 3, 8, 12)
    patches = patchify(images, 4)
    for row in range(2):
        for column in range(3):
            for y in range(4):
                for x in range(4):
                    pixel = images[:, :, 4 * row + y, 4 * column + x]
                    place = 3 * (4 * y + x)
                    assert torch.equal(patches[:, 3 * row + column, place : place + 3], pixel)


@pytest.mark.parametrize("normalize", [True, False])
def test_the_loss_is_a_loop_over_hidden_patches(normalize):
    predicted, patches = torch.randn(3, 5, 12), torch.randn(3, 5, 12)
    mask = torch.rand(3, 5) < 0.6
    terms = []
    for image in range(3):
        for patch in range(5):
            if mask[image, patch]:
                target = patches[image, patch]
                if normalize:
                    target = (target - target.mean()) / (target.var(unbiased=True) + 1e-6) ** 0.5
                terms.append(sum((predicted[image, patch, k] - target[k]) ** 2 for k in range(12)) / 12)
    torch.testing.assert_close(reconstruction_loss(predicted, patches, mask, normalize), sum(terms) / len(terms))


def test_seen_patches_have_no_part_in_the_loss():
    predicted, patches = torch.randn(1, 4, 12), torch.randn(1, 4, 12)
    mask = torch.tensor([[True, False, True, False]])
    before = reconstruction_loss(predicted, patches, mask, True)
    predicted[:, 1] = 100.0
    assert torch.equal(reconstruction_loss(predicted, patches, mask, True), before)


def guess(task: MaeTask, images: torch.Tensor, order: torch.Tensor) -> torch.Tensor:
    return task.module.eval()(images, order, 4, torch.arange(len(images)))


def test_the_guess_does_not_depend_on_hidden_pixels():
    task = tiny.task("mae")
    images = torch.randn(2, 3, 16, 16)
    order = patch_order(torch.tensor([1, 2]), "mae/order", 16)
    other = patchify(images, 4)
    for image in range(2):
        other[image, order[image, 4:]] = torch.randn(12, 48)
    assert torch.equal(guess(task, images, order), guess(task, unpatchify(other, 4), order))


def test_the_guess_depends_on_seen_pixels_and_comes_in_the_images_order():
    task = tiny.task("mae")
    images = torch.randn(1, 3, 16, 16)
    order = patch_order(torch.tensor([1]), "mae/order", 16)
    assert not torch.equal(guess(task, images, order), guess(task, images + 1, order))
    # The encoder is a set function of what it sees: another order of the same two sets changes nothing.
    reordered = torch.cat([order[:, :4].flip(1), order[:, 4:].flip(1)], dim=1)
    torch.testing.assert_close(guess(task, images, order), guess(task, images, reordered))


def test_the_number_of_seen_patches_is_exact():
    assert num_kept_patches(0.75, 196) == 49
    assert num_kept_patches(0.9, 100) == 10


@pytest.mark.parametrize("ratio", [0.01, 0.99])
def test_a_ratio_that_leaves_nothing_to_see_or_to_guess_is_refused(ratio):
    with pytest.raises(ConfigError, match=r"mae\.mask_ratio .* between 0\.062 and 0\.938"):
        MaeTask(tiny.STUDENT, MaeConfig(mask_ratio=ratio), 16, tiny.PLAIN)


def test_the_loss_is_of_the_patches_that_the_encoder_did_not_see():
    task = MaeTask(tiny.STUDENT, tiny.MAE.model_copy(update={"normalize_pixels": False}), 16, tiny.PLAIN)

    def off_by_3_where_nothing_was_seen(images, order, num_kept, seeds):
        guess = patchify(images, 4)
        for image, places in enumerate(order):
            guess[image, places[num_kept:]] += 3
        return guess

    loss = task.losses(off_by_3_where_nothing_was_seen, tiny.batch(task, 3), Progress(0, 10), False).loss
    assert loss.item() == pytest.approx(9, rel=1e-5)


def test_the_loss_of_a_batch_is_the_mean_of_the_losses_of_its_halves():
    task = tiny.task("mae")
    whole = tiny.batch(task, 8)
    losses = [
        task.losses(task.module, data, Progress(0, 10), False).loss
        for data in (whole, tiny.part(whole, slice(0, 4)), tiny.part(whole, slice(4, 8)))
    ]
    torch.testing.assert_close(losses[0], (losses[1] + losses[2]) / 2)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (
            {"decoder_embed_dim": 96, "decoder_num_heads": 5},
            r"mae.decoder_embed_dim 96 is not a multiple of mae.decoder_num_heads 5 and of 4, .*: take 80 or 100",
        ),
        (
            {"decoder_embed_dim": 30, "decoder_num_heads": 3},
            r"mae.decoder_embed_dim 30 is not a multiple of mae.decoder_num_heads 3 and of 4, .*: take 24 or 36",
        ),
    ],
)
def test_a_decoder_that_can_not_be_built_is_refused_by_its_own_name(settings, told):
    with pytest.raises(ConfigError, match=told):
        MaeTask(tiny.STUDENT, tiny.MAE.model_copy(update=settings), 16, tiny.PLAIN)


def test_an_image_of_one_patch_is_told_to_be_too_small():
    with pytest.raises(ConfigError, match=r"an image is a single patch .*; take a larger data.image_size"):
        num_kept_patches(0.75, 1)
