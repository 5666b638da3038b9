"""Weights to start from, at the encoder's own grid or at another one."""

from pathlib import Path

import pytest
import torch
from timm.layers import resample_abs_pos_embed

from dmt_ds.config.schema import StudentConfig
from dmt_ds.errors import WeightsError
from dmt_ds.models.patch_grid import resized_positions
from dmt_ds.models.start import origin_of, start_from
from dmt_ds.models.vit import build_vit
from tests.tiny_run import TEACHER, make_teacher


def test_positions_are_resampled_as_timm_does_without_antialiasing() -> None:
    table = torch.randn(1, 1 + 16, 8, generator=torch.Generator().manual_seed(0))
    expected = resample_abs_pos_embed(table, [7, 7], num_prefix_tokens=1, antialias=False)
    torch.testing.assert_close(resized_positions(table, 1, 7), expected)
    assert resized_positions(table, 1, 4) is table


def test_an_encoder_of_another_image_size_is_taken_where_positions_may_be_resized(tmp_path: Path) -> None:
    teacher = make_teacher(tmp_path / "teacher", 3)
    vit = build_vit(TEACHER, 32, any_size=True)
    with pytest.raises(WeightsError, match=r"set data.image_size=16"):
        start_from(vit, str(teacher), 32)
    assert origin_of(vit) is None
    start_from(vit, str(teacher), None)
    assert origin_of(vit).shape.image_size == 16
    own = build_vit(TEACHER, 16)
    start_from(own, str(teacher), 16)
    small, large = own.state_dict(), vit.state_dict()
    assert torch.equal(small["blocks.1.mlp.fc1.weight"], large["blocks.1.mlp.fc1.weight"])
    assert large["pos_embed"].shape == (1, 1 + 64, 48)
    assert torch.equal(resized_positions(small["pos_embed"], 1, 8), large["pos_embed"])


def test_another_patch_is_refused_all_the_same(tmp_path: Path) -> None:
    teacher = make_teacher(tmp_path / "teacher", 3)
    vit = build_vit(TEACHER.model_copy(update={"patch_size": 8}), 32)
    with pytest.raises(WeightsError, match="patch_size 8 against 4"):
        start_from(vit, str(teacher), None)


def test_an_image_of_the_same_grid_sees_the_same_tokens(tmp_path: Path) -> None:
    """A ViT built for any size gives an image of its own size what the plain one gives."""
    teacher = make_teacher(tmp_path / "teacher", 3)
    plain, flexible = (
        build_vit(StudentConfig(**TEACHER.model_dump()), 16, any_size=any_size) for any_size in (False, True)
    )
    for vit in (plain, flexible):
        start_from(vit.eval(), str(teacher), None)
    images = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        assert torch.equal(plain.forward_features(images), flexible.forward_features(images))
