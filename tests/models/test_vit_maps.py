"""A ViT's last tokens as a map: timm's own where nothing is cut up, and ViTDet's windows where it is."""

import pytest
import torch
from torch import Tensor, nn

from dmt_ds import sample_rng
from dmt_ds.config.schema import StudentConfig
from dmt_ds.models.drop_path import drop_path_seeds
from dmt_ds.models.vit import build_vit, tokens_of
from dmt_ds.models.vit_maps import feature_map, from_windows, global_blocks, in_windows


def vit(depth: int = 3, drop_path: float = 0.0) -> nn.Module:
    torch.manual_seed(0)
    section = StudentConfig(
        arch="vit_tiny", patch_size=4, embed_dim=24, depth=depth, num_heads=3, drop_path=drop_path, positions="learned"
    )
    made = build_vit(section, 16, any_size=True)
    nn.init.normal_(made.pos_embed, std=0.5)
    return made.eval()


def images(height: int, width: int) -> Tensor:
    torch.manual_seed(1)
    return torch.randn(2, 3, height, width)


@pytest.mark.parametrize("size", [(16, 16), (24, 40)])
def test_a_map_is_timms_own_tokens_in_their_places(size: tuple[int, int]) -> None:
    model = vit()
    tokens = tokens_of(model, images(*size))[:, 1:]  # [B, N, D]
    found = feature_map(model, images(*size))
    assert found.shape == (2, 24, size[0] // 4, size[1] // 4)
    torch.testing.assert_close(found.flatten(2).transpose(1, 2), tokens)


def test_windows_hold_the_maps_squares_and_come_back() -> None:
    grid = torch.arange(2 * 5 * 7 * 3, dtype=torch.float32).view(2, 5, 7, 3)
    windows = in_windows(grid.reshape(2, 35, 3), 5, 7, 3)
    assert windows.shape == (2 * 2 * 3, 9, 3)
    for image in range(2):
        for row in range(2):
            for column in range(3):
                window = windows[(image * 2 + row) * 3 + column].view(3, 3, 3)
                part = grid[image, row * 3 : row * 3 + 3, column * 3 : column * 3 + 3]
                expected = torch.zeros(3, 3, 3)
                expected[: part.shape[0], : part.shape[1]] = part
                assert torch.equal(window, expected)
    assert torch.equal(from_windows(windows, 5, 7, 3), grid.reshape(2, 35, 3))


def test_one_window_over_all_is_global_attention() -> None:
    model = vit()
    windowed = feature_map(model, images(24, 24), window_size=6, num_global_blocks=1)
    everywhere = feature_map(model, images(24, 24), window_size=6, num_global_blocks=3)
    torch.testing.assert_close(windowed, everywhere)


def test_patches_of_other_windows_are_seen_in_global_blocks_alone() -> None:
    model = vit(depth=2)
    one, other = images(32, 32), images(32, 32)
    other[:, :, 16:, 16:] += 1  # the last of four windows
    first = feature_map(model, one, window_size=4, num_global_blocks=1)
    second = feature_map(model, other, window_size=4, num_global_blocks=1)
    assert (first - second)[:, :, :4, :4].abs().max() > 1e-4  # the last block is global
    for block in model.blocks:
        block.attn.proj.weight.data.zero_()  # nothing passes from patch to patch
    first, second = (feature_map(model, x, window_size=4, num_global_blocks=1) for x in (one, other))
    assert torch.equal(first[:, :, :4], second[:, :, :4])


@pytest.mark.parametrize(
    ("depth", "count", "numbers"),
    [(12, 4, {2, 5, 8, 11}), (6, 4, {0, 2, 3, 5}), (3, 9, {0, 1, 2}), (24, 4, {5, 11, 17, 23})],
)
def test_global_blocks_end_equal_parts(depth: int, count: int, numbers: set[int]) -> None:
    assert global_blocks(depth, count) == numbers


def test_drop_path_in_windows_belongs_to_the_image() -> None:
    model = vit(drop_path=0.5).train()
    seeds = sample_rng.image_seeds(0, torch.zeros(2, dtype=torch.int64), torch.arange(2))
    with drop_path_seeds(model, seeds):
        together = feature_map(model, images(24, 24), window_size=3, num_global_blocks=1)
    with drop_path_seeds(model, seeds[1:]):
        alone = feature_map(model, images(24, 24)[1:], window_size=3, num_global_blocks=1)
    torch.testing.assert_close(together[1:], alone)
