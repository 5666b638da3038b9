import pytest
import timm
import torch
from torch import nn

from dmt_ds.models.drop_path import ImageDropPath, drop_path_seeds
from dmt_ds.models.student import Student
from tests.models import tiny

SEEDS = torch.arange(6) * 7919


def _student() -> Student:
    vit = tiny.vit(drop_path=0.4, depth=4)
    return Student(vit, {"fused": tiny.WIDTH}, "auto")


def test_a_batch_whole_and_cut_in_two_drops_the_same_branches():
    student, images = _student().train(), tiny.normalised(6)
    whole = student(images, SEEDS)["fused"]
    parts = [student(images[i], SEEDS[i])["fused"] for i in (slice(0, 1), slice(1, 6))]
    torch.testing.assert_close(torch.cat(parts), whole, atol=1e-5, rtol=0)
    assert not torch.allclose(student(images, SEEDS + 1)["fused"], whole, atol=1e-2)


def test_branches_of_a_block_and_blocks_draw_independently():
    drops = nn.ModuleList(ImageDropPath(0.5, branch) for branch in range(3)).train()
    with drop_path_seeds(drops, torch.arange(4000)):
        kept = torch.stack([drop(torch.ones(4000, 1))[:, 0] > 0 for drop in drops]).float()
    assert (torch.corrcoef(kept) - torch.eye(3)).abs().max() < 0.06


def test_no_two_branches_of_a_vit_have_the_same_number():
    drops = [module for module in _student().modules() if isinstance(module, ImageDropPath)]
    assert len({drop.branch for drop in drops}) == len(drops) == 6  # two in each block but the last


def test_kept_branches_are_scaled_so_that_the_mean_stays():
    drop = ImageDropPath(0.25, 0).train()
    with drop_path_seeds(drop, torch.arange(8000)):
        out = drop(torch.ones(8000, 2, 3))
    assert set(out.unique().tolist()) == {0.0, torch.tensor(1 / 0.75).item()}
    assert abs(out.mean().item() - 1) < 0.02


def test_a_mask_holds_for_all_tokens_of_an_image():
    drop = ImageDropPath(0.5, 0).train()
    with drop_path_seeds(drop, torch.arange(50)):
        out = drop(torch.ones(50, 5, 7)).flatten(1)
    assert torch.equal(out.amin(1), out.amax(1))


def test_evaluation_drops_nothing():
    student, images = _student().eval(), tiny.normalised(2)
    assert torch.equal(student(images, SEEDS[:2])["fused"], student(images, SEEDS[2:4])["fused"])


def test_the_probability_is_the_same_in_all_blocks_and_zero_in_the_last():
    blocks = tiny.vit(drop_path=0.4, depth=4).blocks
    probabilities = [
        [getattr(getattr(block, f"drop_path{branch}"), "probability", 0.0) for branch in (1, 2)] for block in blocks
    ]
    assert probabilities == [[0.4, 0.4]] * 3 + [[0.0, 0.0]]


@pytest.mark.parametrize("depth", [1, 2, 12])
def test_a_linear_rule_is_timms(depth):
    ours = tiny.vit(drop_path=0.4, depth=depth, drop_path_rule="linear").blocks
    theirs = timm.create_model("vit_tiny_patch16_224", depth=depth, drop_path_rate=0.4).blocks
    for block, other in zip(ours, theirs, strict=True):
        for branch in ("drop_path1", "drop_path2"):
            wanted = getattr(getattr(other, branch), "drop_prob", 0.0)
            assert getattr(getattr(block, branch), "probability", 0.0) == pytest.approx(wanted)


def test_drop_path_keeps_the_type_of_its_input():
    drop = ImageDropPath(0.5, 0).train()
    with drop_path_seeds(drop, SEEDS):
        assert drop(torch.ones(6, 2, dtype=torch.bfloat16)).dtype == torch.bfloat16


def test_a_forward_after_an_error_inside_does_not_reuse_old_seeds():
    drop = ImageDropPath(0.5, 0).train()
    try:
        with drop_path_seeds(drop, SEEDS):
            raise ValueError
    except ValueError:
        pass
    assert drop.scales is None
