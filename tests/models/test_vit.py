import math

import pytest
import torch

from dmt_ds.errors import ConfigError
from dmt_ds.models.positions import sincos_positions
from dmt_ds.models.vit import build_vit, create, prefer_written_attention, shape_of, tokens_of
from tests.models import tiny


def test_sincos_positions_equal_a_loop_over_maes_formula():
    width, grid = 16, 3
    table = sincos_positions(width, grid)
    for row in range(grid):
        for column in range(grid):
            for channel in range(width):
                half, within = divmod(channel, width // 2)
                wave, k = divmod(within, width // 4)
                angle = (column, row)[half] / 10000 ** (k / (width / 4))
                expected = (math.sin, math.cos)[wave](angle)
                assert table[row * grid + column, channel].item() == pytest.approx(expected, abs=1e-6)


def test_sincos_positions_are_fixed_and_leave_the_class_token_at_zero():
    vit = build_vit(tiny.section(), tiny.IMAGE_SIZE)
    assert not vit.pos_embed.requires_grad
    assert torch.equal(vit.pos_embed[0, 0], torch.zeros(tiny.WIDTH))
    assert torch.equal(vit.pos_embed[0, 1:], sincos_positions(tiny.WIDTH, 4))


def test_learned_positions_take_part_in_training():
    assert build_vit(tiny.section(positions="learned"), tiny.IMAGE_SIZE).pos_embed.requires_grad


@pytest.mark.parametrize(
    ("arch", "width", "heads"), [("vit_tiny", 192, 3), ("vit_small", 384, 6), ("vit_base", 768, 12)]
)
def test_short_names_are_the_papers_students(arch, width, heads):
    shape = shape_of(build_vit(tiny.section(arch=arch, embed_dim=None, num_heads=None, depth=1, patch_size=16), 224))
    assert (shape.embed_dim, shape.num_heads, shape.num_tokens) == (width, heads, 197)


def test_all_layer_norms_have_epsilon_one_millionth():
    vit = build_vit(tiny.section(), tiny.IMAGE_SIZE)
    assert {m.eps for m in vit.modules() if isinstance(m, torch.nn.LayerNorm)} == {1e-6}


def test_linear_maps_start_as_xavier_and_the_patch_embedding_as_one_of_them():
    vit = build_vit(tiny.section(embed_dim=128, num_heads=4), tiny.IMAGE_SIZE)
    for weight, fan_in, fan_out in [
        (vit.blocks[0].mlp.fc1.weight, 128, 512),
        (vit.patch_embed.proj.weight, 3 * tiny.PATCH_SIZE**2, 128),
    ]:
        bound = math.sqrt(6 / (fan_in + fan_out))
        assert weight.abs().max().item() == pytest.approx(bound, rel=1e-2)
        assert weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=2e-2)


def test_tokens_are_the_class_token_and_patches_without_registers():
    vit = create(
        "vit_base_patch16_224",
        embed_dim=32,
        depth=1,
        num_heads=2,
        img_size=32,
        patch_size=8,
        reg_tokens=4,
        num_classes=0,
    ).eval()
    with torch.no_grad():
        all_tokens, ours = vit.forward_features(tiny.normalised()), tokens_of(vit, tiny.normalised())
    assert torch.equal(ours, torch.cat([all_tokens[:, :1], all_tokens[:, 5:]], dim=1))


def test_heads_of_the_last_block_alone_cut_the_same_weights_otherwise():
    vit = tiny.vit(last_block_num_heads=4)
    assert (shape_of(vit).num_heads, shape_of(vit).last_block_num_heads) == (tiny.HEADS, 4)
    whole = tiny.vit(num_heads=4)  # an oracle for a last block of four heads
    whole.load_state_dict(vit.state_dict())
    whole.blocks[0] = vit.blocks[0]
    assert torch.equal(tiny.tokens(vit), tiny.tokens(whole))
    prefer_written_attention(vit)
    prefer_written_attention(whole)
    assert torch.equal(tiny.tokens(vit), tiny.tokens(whole))


def test_written_attention_gives_the_same_tokens():
    vit = tiny.vit()
    fused = tiny.tokens(vit)
    prefer_written_attention(vit)
    assert not any(getattr(module, "fused_attn", False) for module in vit.modules())
    torch.testing.assert_close(tiny.tokens(vit), fused, atol=1e-5, rtol=0)


def test_a_vit_of_any_size_gives_the_same_tokens_at_its_own_size_and_takes_smaller_crops():
    vit = tiny.vit()
    any_size = build_vit(tiny.section(), tiny.IMAGE_SIZE, any_size=True).eval()
    any_size.load_state_dict(vit.state_dict())
    assert torch.equal(tiny.tokens(any_size), tiny.tokens(vit))
    assert tiny.tokens(any_size, tiny.normalised()[:, :, :16, :16]).shape == (2, 5, tiny.WIDTH)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"arch": "vit_tinny"}, "Did you mean 'vit_tiny'"),
        ({"arch": "resnet50"}, "not a plain ViT"),
        ({"arch": "beit_base_patch16_224"}, "not a plain ViT"),
        ({"arch": "vit_base_patch32_224", "patch_size": 8}, "student.patch_size=32"),
        ({"patch_size": 7}, "32 is not a multiple of student.patch_size 7: take 28 or 35"),
        ({"patch_size": 64}, "32 is not a multiple of student.patch_size 64: take 64$"),
        ({"num_heads": 5}, "32 is not a multiple of student.num_heads 5"),
        ({"embed_dim": 30, "num_heads": 2}, "not a multiple of 4.*: take 28 or 32, or student.positions=learned"),
        ({"embed_dim": 30, "num_heads": 6}, "not a multiple of 4.*: take 24 or 36, or"),
        ({"embed_dim": 30, "num_heads": 3, "last_block_num_heads": 5}, "not a multiple of 4.*: take 60, or"),
        ({"embed_dim": 2, "num_heads": 2}, "not a multiple of 4.*: take 4, or"),
        ({"embed_dim": 32, "num_heads": None}, "cannot be built"),
        ({"last_block_num_heads": 5}, "student.last_block_num_heads 5 does not divide the student's width 32"),
    ],
)
def test_an_impossible_student_is_refused_with_the_remedy(changes, message):
    with pytest.raises(ConfigError, match=message):
        build_vit(tiny.section(**changes), tiny.IMAGE_SIZE)
