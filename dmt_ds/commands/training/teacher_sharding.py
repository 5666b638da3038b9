"""`teachers.sharding: auto` of a run: what is weighed is measured here, `planning.sharding` weighs it."""

import logging
from collections.abc import Mapping

import torch

from dmt_ds.config.teachers import TeachersConfig
from dmt_ds.engine import dist, rates
from dmt_ds.engine.deepspeed import ds_teachers
from dmt_ds.models.encoders import FrozenEncoder
from dmt_ds.planning.sharding import ShardingCost
from dmt_ds.planning.vit_cost import VitSize, ring_bytes

logger = logging.getLogger(__name__)


def choose_sharding(
    teachers: Mapping[str, FrozenEncoder],
    section: TeachersConfig,
    device: torch.device,
    dtype: torch.dtype,
    micro_batch_size: int,
) -> str:
    """`zero3` or `replicate`, as the section has it; where it says `auto`, all ranks measure and one decides.

    Args:
        dtype: of the teachers' weights.
    """
    if section.sharding != "auto":
        return section.sharding
    cost = _measure(teachers, section, device, dtype, micro_batch_size)
    choice, why = dist.from_main(cost.choose())
    logger.info("teachers.sharding auto -> %s: %s", choice, why)
    return choice


def _measure(
    teachers: Mapping[str, FrozenEncoder],
    section: TeachersConfig,
    device: torch.device,
    dtype: torch.dtype,
    micro_batch_size: int,
) -> ShardingCost:
    group, num_ranks = ds_teachers.shard_group(section.shard_over)
    copies = sum(dtype.itemsize * p.numel() for model in teachers.values() for p in model.parameters())
    memory = _device_memory(device)
    if num_ranks == 1:
        return ShardingCost(1, copies, memory, 0.0, 0.0)
    shapes = [teacher.record.shape for teacher in teachers.values()]
    sizes = [VitSize(shape.embed_dim, shape.depth, shape.patch_size, shape.image_size) for shape in shapes]
    flops = micro_batch_size * sum(size.forward_flops() for size in sizes)
    gather = rates.slowest(rates.gather_bytes_per_second(group, num_ranks, device))
    multiply = rates.slowest(rates.matmul_flops_per_second(device, dtype))
    return ShardingCost(num_ranks, copies, memory, ring_bytes(copies, num_ranks) / gather, flops / multiply)


def _device_memory(device: torch.device) -> float:
    """Bytes that are this rank's: ranks of one machine share a CPU's memory."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    import psutil

    return float(psutil.virtual_memory().total) / dist.local_world_size()
