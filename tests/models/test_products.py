"""Layers as matrix products give what the layers give; weights keep their names."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from dmt_ds.config.schema import StudentConfig
from dmt_ds.models.products import GeluLinear, PatchProduct, fuse_gelu, fusing_gelu_pays, patches_as_product
from dmt_ds.models.vit import build_vit, tokens_of


def tiny_vit() -> nn.Module:
    torch.manual_seed(0)
    return build_vit(StudentConfig(arch="vit_tiny", depth=2, patch_size=16, drop_path=0.0), 64).eval()


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("size", [(64, 64), (48, 80), (50, 70)])  # the last leaves a margin, as a convolution does
def test_a_patch_embedding_is_one_product_of_all_patches_and_so_is_its_gradient(size: tuple[int, int]) -> None:
    layer = tiny_vit().patch_embed.proj
    assert isinstance(layer, PatchProduct)
    images, slope = drawn(2, 3, *size), drawn(2, 192, size[0] // 16, size[1] // 16, seed=1)
    made = []
    for forward in (layer.product, lambda x: F.conv2d(x, layer.weight, layer.bias, stride=16)):
        layer.zero_grad()
        tokens = forward(images)
        (tokens * slope).sum().backward()
        made.append((tokens, layer.weight.grad.clone(), layer.bias.grad.clone()))
    for found, wanted in zip(*made, strict=True):
        torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)


def test_the_product_of_patches_needs_no_copy_to_become_tokens() -> None:
    layer = tiny_vit().patch_embed.proj
    made = layer.product(drawn(2, 3, 64, 64))
    tokens = made.flatten(2).transpose(1, 2)  # as timm goes on
    assert tokens.is_contiguous() and tokens.data_ptr() == made.data_ptr()


@pytest.mark.parametrize("other", [{"stride": 8}, {"padding": 1}, {"dilation": 2}, {"groups": 3}])
def test_other_convolutions_stay(other: dict[str, int]) -> None:
    vit = nn.Module()
    vit.patch_embed = nn.Module()
    vit.patch_embed.proj = nn.Conv2d(3, 6, 16, **({"stride": 16} | other))
    patches_as_product(vit)
    assert type(vit.patch_embed.proj) is nn.Conv2d


def test_frozen_mlps_take_gelu_with_their_product_and_tokens_stay() -> None:
    vit, images = tiny_vit().requires_grad_(False), drawn(2, 3, 64, 64)
    expected, names = tokens_of(vit, images), set(vit.state_dict())
    assert fuse_gelu(vit) == 2
    assert [type(block.mlp.fc1) for block in vit.blocks] == [GeluLinear] * 2
    assert set(vit.state_dict()) == names
    torch.testing.assert_close(tokens_of(vit, images), expected, atol=2e-3, rtol=0)  # tanh's form on CUDA
    compiled = torch.compile(tokens_of, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(vit, images), tokens_of(vit, images), atol=1e-6, rtol=0)


def test_gelu_is_fused_for_bfloat16_on_cuda_alone() -> None:
    kinds = [(device, dtype) for device in ("cpu", "cuda") for dtype in (torch.float32, torch.bfloat16)]
    assert [kind for kind in kinds if fusing_gelu_pays(torch.device(kind[0]), kind[1])] == [("cuda", torch.bfloat16)]


def test_a_trained_mlp_stays_as_it_is() -> None:
    vit = tiny_vit()
    assert fuse_gelu(vit) == 0 and all(type(block.mlp.fc1) is nn.Linear for block in vit.blocks)
