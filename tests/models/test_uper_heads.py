"""UPerNet's heads and their pyramid: strides, dropout by image, and transformers' own forward."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional

from dmt_ds.models.uper_heads import ImageDropout2d, Pyramid, build_heads, scores_at

WIDTH, CLASSES = 16, 5


def maps(side: int = 4, batch: int = 2) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(batch, WIDTH, side, side, generator=generator) for _ in range(4)]


def test_a_pyramid_has_strides_of_a_quarter_to_two_patches() -> None:
    pyramid = Pyramid(WIDTH, nn.BatchNorm2d)
    given = maps()
    found = pyramid(given)
    assert [tuple(level.shape[2:]) for level in found] == [(16, 16), (8, 8), (4, 4), (2, 2)]
    assert torch.equal(found[2], given[2])
    assert torch.equal(found[3], functional.max_pool2d(given[3], 2))
    # A transposed convolution with stride 2 and kernel 2 makes a pixel a square of 2 x 2, each by its own matrix.
    weight, bias = pyramid.to_half.weight, pyramid.to_half.bias
    for row, column in ((0, 0), (3, 6), (7, 7)):
        expected = given[1][0, :, row // 2, column // 2] @ weight[:, :, row % 2, column % 2] + bias
        torch.testing.assert_close(found[1][0, :, row, column], expected)


def test_a_grid_of_one_patch_is_not_pooled_away() -> None:
    assert Pyramid(WIDTH, nn.BatchNorm2d)(maps(side=1))[3].shape[2:] == (1, 1)


@pytest.mark.parametrize("in_training", [True, False])
def test_without_dropout_heads_are_transformers_own(in_training: bool) -> None:
    from transformers import UperNetConfig
    from transformers.models.upernet.modeling_upernet import UperNetFCNHead, UperNetHead

    main, auxiliary = build_heads(WIDTH, CLASSES, 8, 6, 0.0, nn.BatchNorm2d)
    assert auxiliary is not None
    config = UperNetConfig(num_labels=CLASSES, hidden_size=8, auxiliary_channels=6)
    given = Pyramid(WIDTH, nn.BatchNorm2d)(maps())
    for ours, theirs in (
        (main, UperNetHead(config, [WIDTH] * 4)),
        (auxiliary, UperNetFCNHead(config, [WIDTH] * 4)),
    ):
        state = {key.replace("classifier.1.", "classifier."): value for key, value in ours.state_dict().items()}
        theirs.load_state_dict(state, strict=True)
        torch.testing.assert_close(ours.train(in_training)(given), theirs.train(in_training)(given))


def test_every_batch_norm_is_the_given_one() -> None:
    class Norm(nn.Identity):
        def __init__(self, width: int) -> None:
            super().__init__()

    main, _ = build_heads(WIDTH, CLASSES, 8, None, 0.0, Norm)
    assert not [module for module in main.modules() if isinstance(module, nn.BatchNorm2d)]
    # Four pools, two laterals less one level, as many outputs, and two bottlenecks.
    assert sum(isinstance(module, Norm) for module in main.modules()) == 4 + 3 + 3 + 2


def test_no_auxiliary_head_where_it_has_no_width() -> None:
    assert build_heads(WIDTH, CLASSES, 8, None, 0.1, nn.BatchNorm2d)[1] is None


def test_dropout_takes_channels_by_the_images_own_seed() -> None:
    drop = ImageDropout2d(0.25, "main").train()
    ones, seeds = torch.ones(64, 100, 2, 2), torch.arange(64)
    drop.seeds = seeds
    dropped = drop(ones)
    values = dropped[:, :, 0, 0]
    assert torch.equal(dropped, values[:, :, None, None].expand_as(dropped))
    assert values.unique().tolist() == pytest.approx([0, 1 / 0.75])
    assert (values == 0).float().mean() == pytest.approx(0.25, abs=0.03)
    drop.seeds = seeds[5:7]
    assert torch.equal(drop(ones[5:7]), dropped[5:7])
    assert torch.equal(drop.eval()(ones), ones)


def test_two_heads_drop_other_channels() -> None:
    one, other = ImageDropout2d(0.5, "main"), copy.deepcopy(ImageDropout2d(0.5, "auxiliary"))
    one.seeds = other.seeds = torch.arange(4)
    ones = torch.ones(4, 50, 1, 1)
    assert not torch.equal(one(ones), other(ones))


def test_scores_are_scaled_in_float32() -> None:
    scores = torch.randn(1, 2, 3, 3).bfloat16()
    scaled = scores_at(scores, (6, 9))
    assert scaled.dtype == torch.float32
    expected = functional.interpolate(scores.float(), (6, 9), mode="bilinear", align_corners=False)
    assert torch.equal(scaled, expected)
