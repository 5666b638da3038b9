"""Frozen teachers on the devices: an engine each that cuts its weights over ranks, or whole copies; knows no method."""

from collections.abc import Callable, Iterator
from functools import cache
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dmt_ds.config.deepspeed import DsConfig, precision
from dmt_ds.engine import dist
from dmt_ds.engine.deepspeed import ds_engine


def build_teacher(
    module: nn.Module,
    config: DsConfig,
    device: torch.device,
    *,
    shard_over: str,
    compile_backend: str | None = None,
) -> Callable[..., Tensor]:
    """An inference engine around one frozen teacher, its parameters cut over ranks (ZeRO-3).

    All ranks must call all teachers equally often and in one order: gathering is a collective. On a group of one rank
    there is nothing to cut and the plain module is returned.

    Args:
        module: frozen; everything goes through its `forward`. Parameters take the JSON's precision, not buffers.
        shard_over: `node` cuts over the ranks of this node, `world` over all.
        compile_backend: of torch.compile, such as `inductor`; None does not compile.
    """
    group, group_size = shard_group(shard_over)
    if group_size == 1:
        return replicate_teacher(module, config, device, compile_backend=compile_backend)
    cast_parameters(module, weights_dtype(config))
    deepspeed = ds_engine.library()
    linear_before = F.linear
    _move_buffers(module, device)
    _mark_blocks_as_leaves(deepspeed, module)
    deepspeed.zero.Init(
        module=module,
        config_dict_or_path=config,
        dtype=next(module.parameters()).dtype,
        mem_efficient_linear=False,
        data_parallel_group=group,
    )
    engine = deepspeed.initialize(model=module, config=config)[0]
    engine.eval()
    if compile_backend is not None:
        compile_blocks(module, compile_backend)
    assert F.linear is linear_before, "a teacher's config patched F.linear for the whole process"
    return lambda images: engine(images)


def replicate_teacher(
    module: nn.Module, config: DsConfig, device: torch.device, *, compile_backend: str | None = None
) -> Callable[..., Tensor]:
    """A whole copy of a frozen teacher on this rank, in the JSON's precision."""
    cast_parameters(module, weights_dtype(config))
    module.to(device)
    if compile_backend is None:
        return module
    return torch.compile(module.forward, backend=compile_backend)  # equal teachers share one graph


def compile_blocks(module: nn.Module, backend: str) -> None:
    """Have torch.compile make each transformer block's forward; equal blocks of all teachers share one graph.

    For a teacher that is cut: the graph of the whole would break at every hook of ZeRO-3. A leaf block's hooks stand
    outside of its `forward`, where the compiler finds whole weights.
    """
    for block in _blocks(module):
        block.forward = torch.compile(block.forward, backend=backend)


def weights_dtype(config: DsConfig) -> torch.dtype:
    """What a DeepSpeed JSON has weights in."""
    return torch.bfloat16 if precision(config) == "bf16" else torch.float32


def cast_parameters(module: nn.Module, dtype: torch.dtype) -> None:
    """Parameters to `dtype`; buffers (normalisation constants) stay float32. zero.Init does not cast by itself."""
    for parameter in module.parameters():
        parameter.data = parameter.data.to(dtype)


def _move_buffers(module: nn.Module, device: torch.device) -> None:
    """zero.Init moves parameters only, and an engine does not move a module that is already cut."""
    for child in module.modules():
        for name, buffer in child.named_buffers(recurse=False):
            child._buffers[name] = buffer.to(device)


def held_bytes(module: nn.Module) -> tuple[int, int]:
    """(bytes this rank keeps, bytes of the whole) of a module's parameters, sharded or not."""
    held = full = 0
    for parameter in module.parameters():
        shard: Tensor = getattr(parameter, "ds_tensor", parameter)
        held += shard.numel() * shard.element_size()
        full += getattr(parameter, "ds_numel", parameter.numel()) * shard.element_size()
    return held, full


def _mark_blocks_as_leaves(deepspeed: ModuleType, module: nn.Module) -> None:
    """One gather a transformer block instead of one a layer: a third of the hooks' time."""
    kinds = {type(block) for block in _blocks(module)}
    if kinds:
        deepspeed.utils.set_z3_leaf_modules(module, list(kinds))


def _blocks(module: nn.Module) -> Iterator[nn.Module]:
    for child in module.modules():
        blocks = getattr(child, "blocks", None)
        if isinstance(blocks, nn.Sequential | nn.ModuleList):
            yield from blocks


@cache  # a group is a communicator: one for all teachers
def shard_group(shard_over: str) -> tuple[Any, int]:
    """(process group that shares a cut copy, its size); None is the group of all."""
    world, local = dist.world_size(), dist.local_world_size()
    if shard_over == "world" or local >= world or world % local:
        return None, world
    groups = [dist.new_group(range(first, first + local)) for first in range(0, world, local)]
    return groups[dist.rank() // local], local
