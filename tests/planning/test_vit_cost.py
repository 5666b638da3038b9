"""Formulas of a ViT's cost against the ViT itself: parameters, torch's count of operations, what memory holds."""

import weakref
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from dmt_ds.config.schema import StudentConfig
from dmt_ds.models.student import build_adapter
from dmt_ds.models.vit import build_vit, tokens_of
from dmt_ds.planning.vit_cost import AdapterSize, VitSize, ring_bytes

SIZES = [VitSize(48, 2, 4, 16), VitSize(64, 3, 8, 48), VitSize(192, 12, 16, 224)]


def vit_of(size: VitSize, positions: str = "sincos") -> torch.nn.Module:
    section = StudentConfig(
        patch_size=size.patch_size,
        embed_dim=size.embed_dim,
        depth=size.depth,
        num_heads=size.embed_dim // 16,
        drop_path=0.0,
        positions=positions,
    )
    return build_vit(section, size.image_size)


def images_of(size: VitSize, count: int) -> Tensor:
    return torch.randn(count, 3, size.image_size, size.image_size)


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_parameters_are_those_of_the_vit(size: VitSize) -> None:
    learned, fixed = vit_of(size, "learned"), vit_of(size, "sincos")
    assert size.parameters() == sum(p.numel() for p in learned.parameters())
    trained = sum(p.numel() for p in fixed.parameters() if p.requires_grad)
    assert size.parameters(trained_positions=False) == trained
    assert size.block_parameters == sum(p.numel() for p in fixed.blocks[0].parameters())


def test_a_vit_b_costs_what_timms_table_says() -> None:
    size = VitSize(768, 12, 16, 224)
    assert size.parameters() == 85_798_656
    assert size.forward_flops() / 2 == pytest.approx(17.58e9, rel=2e-3)  # 17.58 GMACs in timm's results, with a head


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_operations_are_those_that_torch_counts(size: VitSize) -> None:
    vit, images = vit_of(size), images_of(size, 2)
    for block in vit.blocks:  # of fused attention torch counts a backward's recomputed scores, and 2.8 nothing forward
        block.attn.fused_attn = False
    with FlopCounterMode(display=False) as forward, torch.no_grad():
        tokens_of(vit, images)
    assert forward.get_total_flops() == 2 * size.forward_flops()
    with FlopCounterMode(display=False) as both:
        tokens_of(vit, images).sum().backward()
    assert both.get_total_flops() == 2 * size.training_flops()


@pytest.mark.parametrize("kind", ["linear", "ln_linear", "mlp"])
def test_an_adapters_parameters_and_operations_are_those_that_torch_counts(kind: str) -> None:
    adapter, tokens = build_adapter(kind, 24, 48), torch.randn(2, 17, 24, requires_grad=True)
    size = AdapterSize(24, 48, has_norm=kind == "ln_linear", has_second=kind == "mlp")
    assert size.parameters() == sum(p.numel() for p in adapter.parameters())
    with FlopCounterMode(display=False) as counter:
        adapter(tokens).sum().backward()
    assert counter.get_total_flops() == 2 * size.training_flops(17)


@pytest.mark.parametrize(("dtype", "size_of_number"), [(torch.float32, 4), (torch.bfloat16, 2)])
def test_autograd_keeps_what_the_formula_says(dtype: torch.dtype, size_of_number: int) -> None:
    size = VitSize(192, 4, 16, 224)
    vit = vit_of(size).to(dtype)
    parameters = {p.untyped_storage().data_ptr() for p in vit.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        tokens = tokens_of(vit, images_of(size, 2).to(dtype))
    del tokens
    # Norms' means and deviations, attention's row sums, patches and the last norm come on top.
    assert sum(kept.values()) == pytest.approx(2 * size.saved_bytes(size_of_number), rel=0.10)
    assert sum(kept.values()) >= 2 * size.saved_bytes(size_of_number)


class Alive(TorchDispatchMode):
    """The most bytes that the tensors an operation made have held at once."""

    def __init__(self) -> None:
        super().__init__()
        self.made: list[weakref.ref[Tensor]] = []
        self.most = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        found = func(*args, **(kwargs or {}))
        self.made = [each for each in self.made if each() is not None]
        self.made += [weakref.ref(each) for each in tree_leaves(found) if isinstance(each, Tensor)]
        there = [each.untyped_storage() for reference in self.made if (each := reference()) is not None]
        self.most = max(self.most, sum({storage.data_ptr(): storage.nbytes() for storage in there}.values()))
        return found


@pytest.mark.parametrize(("dtype", "size_of_number"), [(torch.float32, 4), (torch.bfloat16, 2)])
def test_a_forward_without_gradient_holds_what_the_formula_says(dtype: torch.dtype, size_of_number: int) -> None:
    size = VitSize(192, 4, 16, 224)
    vit, images = vit_of(size).to(dtype), images_of(size, 2).to(dtype)
    with torch.no_grad(), Alive() as alive:
        tokens_of(vit, images)
    # Python's frames hold two widths on top, which the formula leaves out: what the first block got, and this one.
    held = 2 * 2 * size.num_tokens * size.embed_dim * size_of_number
    assert alive.most == pytest.approx(2 * size.alive_bytes(size_of_number) + held, rel=0.01)


def test_a_ring_sends_what_each_rank_lacks() -> None:
    assert ring_bytes(800, 1) == 0
    assert ring_bytes(800, 4) == 600
    assert ring_bytes(800, 4, reduces=True) == 1200
