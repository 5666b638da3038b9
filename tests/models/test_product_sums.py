"""A frozen ViT whose residual sums are part of its products gives the ViT's tokens; the kernel, LayerNorm's numbers."""

import importlib.util
import json
from functools import partial
from pathlib import Path

import pytest
import timm
import torch
from timm.layers import GluMlp
from timm.models.vision_transformer import Attention, Block, ParallelThingsBlock, ResPostBlock
from torch import nn

from dmt_ds.config.schema import StudentConfig
from dmt_ds.models.plain_vit import has_plain_attention, has_plain_blocks
from dmt_ds.models.product_sums import _biases_so_far, add_in_products, adding_in_products_pays
from dmt_ds.models.products import fuse_gelu
from dmt_ds.models.vit import build_vit, tokens_of
from tests import processes


def drawn_vit(tag: str, **settings: object) -> nn.Module:
    """Frozen, with weights and biases that all matter."""
    vit = timm.create_model(tag, num_classes=0, img_size=64, depth=3, **settings).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(1)
    for name, parameter in vit.named_parameters():
        scale = 0.3 if parameter.ndim == 1 or "token" in name or "pos" in name else 0.05
        parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale + ("norm" in name))
    return vit


IMAGES = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    "settings", [{}, {"class_token": True, "reg_tokens": 2}, {"no_embed_class": True}, {"patch_size": 32}]
)
def test_tokens_are_those_of_the_vit(settings: dict[str, object]) -> None:
    vit = drawn_vit("vit_tiny_patch16_224", **settings)
    assert has_plain_blocks(vit)
    wanted, names = tokens_of(vit, IMAGES), set(vit.state_dict())
    add_in_products(vit)
    assert set(vit.state_dict()) == names
    torch.testing.assert_close(tokens_of(vit, IMAGES), wanted, atol=2e-5, rtol=1e-5)
    vit.bfloat16()
    torch.testing.assert_close(tokens_of(vit, IMAGES.bfloat16()).float(), wanted, atol=0.25, rtol=0)


def test_biases_are_added_up_in_float32_whatever_the_weights_are() -> None:
    blocks = drawn_vit("vit_tiny_patch16_224").bfloat16().blocks
    biases = [bias.double() for block in blocks for bias in (block.attn.proj.bias, block.mlp.fc2.bias)]
    for number, shift in enumerate(_biases_so_far(blocks)):
        assert shift.dtype is torch.float32
        wanted = sum(biases[:number], torch.zeros(192, dtype=torch.float64))
        torch.testing.assert_close(shift.double(), wanted, atol=1e-6, rtol=0)


def test_it_goes_with_gelus_that_are_part_of_their_products_and_with_a_student_of_ours() -> None:
    vit = build_vit(StudentConfig(arch="vit_tiny", depth=2, drop_path=0.3), 64).eval().requires_grad_(False)
    assert has_plain_blocks(vit)
    wanted = tokens_of(vit, IMAGES)
    assert fuse_gelu(vit) == 2
    add_in_products(vit)
    torch.testing.assert_close(tokens_of(vit, IMAGES), wanted, atol=2e-3, rtol=0)  # tanh's form on CUDA
    assert not has_plain_blocks(vit)  # once is enough


@pytest.mark.parametrize(
    ("tag", "settings"),
    [
        ("vit_tiny_patch16_224", {"init_values": 1e-5}),  # LayerScale
        ("vit_tiny_patch16_224", {"qk_norm": True}),
        ("vit_tiny_patch16_224", {"pre_norm": True}),
        ("vit_tiny_patch16_224", {"scale_mlp_norm": True}),
        ("vit_tiny_patch16_224", {"scale_attn_norm": True}),
        ("vit_tiny_patch16_224", {"proj_bias": False}),
        ("vit_tiny_patch16_224", {"final_norm": False}),
        ("vit_tiny_patch16_224", {"norm_layer": partial(nn.LayerNorm, bias=False)}),
        ("vit_tiny_patch16_224", {"norm_layer": partial(nn.LayerNorm, elementwise_affine=False)}),
        ("vit_tiny_patch16_224", {"pos_embed": "none"}),
        ("beit_base_patch16_224", {}),
        ("deit_tiny_distilled_patch16_224", {}),
    ],
)
def test_other_vits_stay_as_they_are(tag: str, settings: dict[str, object]) -> None:
    assert not has_plain_blocks(drawn_vit(tag, **settings))


class OwnBlock(Block):
    """May do anything."""


class OwnAttention(Attention):
    """May add anything."""


def test_attention_of_another_class_is_looked_at() -> None:
    vit = drawn_vit("vit_tiny_patch16_224")
    vit.blocks[2].attn.__class__ = OwnAttention
    assert not has_plain_blocks(vit)


@pytest.mark.parametrize("name", ["ls1", "ls2", "norm1", "norm2", "mlp.norm", "attn.norm", "attn.q_norm", "attn.gate"])
def test_one_layer_of_another_kind_in_one_block_is_looked_at(name: str) -> None:
    vit = drawn_vit("vit_tiny_patch16_224")
    place, _, last = name.rpartition(".")
    setattr(vit.blocks[2].get_submodule(place), last, nn.Linear(192, 192))
    assert not has_plain_blocks(vit)


@pytest.mark.parametrize("name", ["attn.proj", "mlp.fc2"])
def test_a_product_without_a_bias_is_looked_at(name: str) -> None:
    vit = drawn_vit("vit_tiny_patch16_224")
    vit.blocks[2].get_submodule(name).bias = None
    assert not has_plain_blocks(vit)


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        (OwnBlock, {"block_fn": OwnBlock}),
        (ResPostBlock, {"block_fn": ResPostBlock}),
        (ParallelThingsBlock, {"block_fn": ParallelThingsBlock}),
        (GluMlp, {"mlp_layer": GluMlp}),
    ],
)
def test_blocks_and_mlps_of_other_classes_stay_as_they_are(kind: type, settings: dict[str, object]) -> None:
    vit = drawn_vit("vit_tiny_patch16_224", **settings)
    assert any(type(module) is kind for module in vit.blocks.modules())
    assert not has_plain_blocks(vit)
    assert has_plain_attention(vit.blocks[0]) == hasattr(vit.blocks[0], "attn")


def test_it_is_for_bfloat16_on_cuda_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    dtypes = (torch.float32, torch.float16, torch.bfloat16)
    kinds = [(device, dtype) for device in ("cpu", "cuda") for dtype in dtypes]
    obstacles = {"cpu": "the device is cpu", "cuda": None}
    monkeypatch.setattr("dmt_ds.models.product_sums.obstacle_to_triton", lambda device: obstacles[device.type])
    assert [kind for kind in kinds if adding_in_products_pays(torch.device(kind[0]), kind[1])] == [
        ("cuda", torch.bfloat16)
    ]
    obstacles["cuda"] = "no compiler"
    assert not adding_in_products_pays(torch.device("cuda"), torch.bfloat16)


BY_KERNEL = """
import json, torch
import torch.nn.functional as F
from dmt_ds.models.norm_triton import shifted_norm
facts = []
for shape in ((3, 5, 768), (1, 192), (7, 40)):
    x, (shift, weight, bias) = 5 * torch.randn(shape) + 3, torch.randn(3, shape[-1])
    wanted = F.layer_norm(x + shift, shape[-1:], weight, bias, 1e-6)
    facts.append((shifted_norm(x, shift, weight, bias, 1e-6) - wanted).abs().max().item())
print(json.dumps(facts))
"""


COMPILE = """
import json, triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from dmt_ds.models.norm_triton import _ROWS, _WARPS, _norm
kinds = {"x": "*bf16", "shift": "*fp32", "weight": "*bf16", "bias": "*bf16", "made": "*bf16"}
kinds |= {"num_rows": "i32", "eps": "fp32"}
made = []
for card, width, columns in ((80, 1024, 1024), (90, 768, 1024)):
    constants = {"width": width, "columns": columns, "rows_at_once": _ROWS}
    source = ASTSource(fn=_norm, signature=kinds | dict.fromkeys(constants, "constexpr"), constexprs=constants)
    made.append(len(triton.compile(source, GPUTarget("cuda", card, 32), {"num_warps": _WARPS}).asm["cubin"]))
print(json.dumps(made))
"""
needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")


@needs_triton
def test_the_kernel_compiles_for_ampere_and_hopper_without_a_gpu(tmp_path: Path) -> None:
    done = processes.run(["-c", COMPILE], TRITON_CACHE_DIR=str(tmp_path))
    assert len(json.loads(done.stdout.splitlines()[-1])) == 2


@needs_triton
def test_the_kernel_gives_layer_norm_of_the_sum() -> None:
    done = processes.run(["-c", BY_KERNEL], TRITON_INTERPRET="1")
    assert max(json.loads(done.stdout.splitlines()[-1])) < 2e-5
