"""Queries, keys and values against the block's own weights, written out; which models are taken and which refused."""

import copy

import pytest
import torch
from torch import nn

from dmt_ds.config.section import IMAGENET_MEAN, IMAGENET_STD
from dmt_ds.errors import ConfigError, WeightsError
from dmt_ds.models.encoders import EncoderRecord, FrozenEncoder
from dmt_ds.models.relations import RelationEncoder, RelationStudent, last_qkv, with_heads_of
from dmt_ds.models.vit import create, prefer_written_attention, shape_of
from tests.models import tiny

SIZES = {
    "embed_dim": tiny.WIDTH,
    "depth": 2,
    "num_heads": tiny.HEADS,
    "img_size": 32,
    "patch_size": 8,
    "num_classes": 0,
}


def teacher_of(vit: nn.Module) -> FrozenEncoder:
    return FrozenEncoder(vit.eval(), EncoderRecord("some.pth", "timm", shape_of(vit), IMAGENET_MEAN, IMAGENET_STD))


def timm_vit(arch: str, **changes: object) -> nn.Module:
    torch.manual_seed(0)
    vit = create(arch, **(SIZES | changes)).eval()
    tiny.randomise(vit)
    return vit


def qkv_by_hand(vit: nn.Module) -> torch.Tensor:
    """[B, 3, heads, tokens, d] of all tokens, by slices of the last block's one weight matrix."""
    seen: list[torch.Tensor] = []
    block = vit.blocks[-1]
    hook = block.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    tiny.tokens(vit)
    hook.remove()
    normed = nn.functional.layer_norm(seen[0], (tiny.WIDTH,), block.norm1.weight, block.norm1.bias, 1e-6)
    heads = block.attn.num_heads
    width = tiny.WIDTH // heads
    rows = []
    for part in range(3):
        for head in range(heads):
            first = part * tiny.WIDTH + head * width
            weight, bias = (value[first : first + width] for value in (block.attn.qkv.weight, block.attn.qkv.bias))
            rows.append(normed @ weight.T + bias)
    return torch.stack(rows, dim=1).unflatten(1, (3, heads)).detach()


@torch.no_grad()
def qkv_of(vit: nn.Module) -> torch.Tensor:
    return last_qkv(vit, tiny.normalised())


@pytest.mark.parametrize("last_heads", [None, 4])
def test_queries_keys_and_values_are_the_last_blocks_by_head(last_heads: int | None) -> None:
    vit = tiny.vit(last_block_num_heads=last_heads)
    assert qkv_of(vit).shape == (
        2,
        3,
        last_heads or tiny.HEADS,
        tiny.NUM_TOKENS,
        tiny.WIDTH // (last_heads or tiny.HEADS),
    )
    torch.testing.assert_close(qkv_of(vit), qkv_by_hand(vit), atol=1e-5, rtol=0)


def test_they_are_the_same_whichever_way_attention_is_computed() -> None:
    vit = tiny.vit()
    fused = qkv_of(vit)
    prefer_written_attention(vit)
    torch.testing.assert_close(qkv_of(vit), fused, atol=1e-5, rtol=0)


def test_reading_them_leaves_the_vit_as_it_was() -> None:
    vit = tiny.vit()
    before = tiny.tokens(vit)
    qkv_of(vit)
    assert not vit.blocks[-1].attn.qkv._forward_hooks
    assert torch.equal(tiny.tokens(vit), before)


@pytest.mark.parametrize(
    ("arch", "changes"), [("deit_base_distilled_patch16_224", {}), ("vit_base_patch16_224", {"reg_tokens": 3})]
)
def test_distillation_and_register_tokens_are_left_out(arch: str, changes: dict[str, object]) -> None:
    vit = timm_vit(arch, **changes)
    by_hand = qkv_by_hand(vit)
    first_patch = by_hand.shape[3] - (tiny.NUM_TOKENS - 1)
    assert first_patch > 1
    expected = torch.cat([by_hand[..., :1, :], by_hand[..., first_patch:, :]], dim=3)
    torch.testing.assert_close(qkv_of(vit), expected, atol=1e-5, rtol=0)


def test_a_relation_teacher_gives_the_same_as_the_whole_vit_and_holds_less() -> None:
    whole = teacher_of(tiny.vit())
    cut = RelationEncoder(copy.deepcopy(whole))
    expected = last_qkv(whole.vit, whole.normalised(tiny.pictures()))
    assert torch.equal(cut(tiny.pictures()), expected)
    held, of_whole = (sum(value.numel() for value in model.parameters()) for model in (cut, whole))
    after_qkv = tiny.WIDTH * (9 * tiny.WIDTH + 10)  # projection, norm, MLP, final norm
    assert of_whole - held == after_qkv


def test_a_relation_teacher_stays_frozen_in_evaluation_and_normalises_in_float32() -> None:
    teacher = RelationEncoder(teacher_of(tiny.vit())).train().to(torch.bfloat16)
    assert not teacher.training and not any(value.requires_grad for value in teacher.parameters())
    assert teacher.scale.dtype == torch.float32
    assert teacher(tiny.pictures()).dtype == torch.bfloat16


def test_only_what_leads_to_the_last_qkv_is_trained() -> None:
    student = RelationStudent(tiny.vit())
    seeds = torch.zeros(2, dtype=torch.int64)
    student(tiny.normalised(), seeds).square().sum().backward()
    with_gradient = {name for name, value in student.vit.named_parameters() if value.grad is not None}
    frozen = {name for name, value in student.vit.named_parameters() if not value.requires_grad}
    assert with_gradient | frozen == {name for name, _ in student.vit.named_parameters()}
    assert not with_gradient & frozen
    last = {
        f"blocks.1.{part}.{kind}"
        for part in ("attn.proj", "norm2", "mlp.fc1", "mlp.fc2")
        for kind in ("weight", "bias")
    }
    assert frozen == last | {"norm.weight", "norm.bias", "pos_embed"}


@pytest.mark.parametrize("positions", [{"use_rel_pos_bias": True}, {"use_shared_rel_pos_bias": True}, {}])
def test_beit_is_refused_by_name(positions: dict[str, bool]) -> None:
    teachers = {"mae": teacher_of(tiny.vit()), "beit": teacher_of(timm_vit("beit_base_patch16_224", **positions))}
    with pytest.raises(WeightsError, match=r"teacher 'beit': some\.pth: its last block's attention.*teachers\.use"):
        with_heads_of(tiny.section(), teachers)


def test_normalised_queries_are_refused() -> None:
    vit = timm_vit("vit_base_patch16_224", qk_norm=True)
    with pytest.raises(WeightsError, match="norms, positions or biases"):
        with_heads_of(tiny.section(), {"odd": teacher_of(vit)})
    with pytest.raises(ConfigError, match="TinyMIM needs plain attention"):
        RelationStudent(vit)


def test_the_student_gets_its_teachers_heads() -> None:
    teachers = {name: teacher_of(tiny.vit(num_heads=4)) for name in ("red", "blue")}
    assert with_heads_of(tiny.section(), teachers).last_block_num_heads == 4
    assert with_heads_of(tiny.section(last_block_num_heads=4), teachers).last_block_num_heads == 4


def test_a_student_of_tinymim_is_a_teacher_with_the_heads_of_its_last_block() -> None:
    teacher = teacher_of(tiny.vit(last_block_num_heads=8))
    assert with_heads_of(tiny.section(), {"tiny": teacher}).last_block_num_heads == 8
    assert RelationEncoder(teacher)(tiny.pictures()).shape[2] == 8


def test_teachers_of_different_heads_are_refused_with_both_names() -> None:
    teachers = {"red": teacher_of(tiny.vit(num_heads=4)), "blue": teacher_of(tiny.vit(num_heads=2))}
    with pytest.raises(ConfigError, match=r"'red' and 'blue' have 4 and 2 heads.*teachers\.use"):
        with_heads_of(tiny.section(), teachers)


def test_heads_that_are_asked_for_and_are_not_the_teachers_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"student\.last_block_num_heads 2: teacher 'red' has 4 heads.*leave"):
        with_heads_of(tiny.section(last_block_num_heads=2), {"red": teacher_of(tiny.vit(num_heads=4))})
