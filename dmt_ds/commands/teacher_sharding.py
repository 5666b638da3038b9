"""`teachers.sharding: auto`: cut the teachers or keep whole copies, by memory and by what gathering costs."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch

from dmt_ds.config.schema import TeachersConfig
from dmt_ds.engine import dist, ds_teachers, rates
from dmt_ds.models.teachers import TeacherModel
from dmt_ds.planning.vit_cost import VitSize, ring_bytes

logger = logging.getLogger(__name__)

SMALL_SHARE = 0.1
"""Whole copies below this share of a device's memory stay whole: memory is no reason to cut them."""
LARGE_SHARE = 0.5
"""Above this one they are cut at any price: the student needs the rest."""


@dataclass(frozen=True)
class ShardingCost:
    """What is weighed; times are of one micro-batch.

    Attributes:
        num_ranks: that would share one cut copy.
        copy_bytes: of whole copies of all teachers, on each rank.
        memory_bytes: of a rank's device.
        gather_seconds: to gather all teachers once.
        forward_seconds: of the teachers' arithmetic, behind which gathering may hide.
    """

    num_ranks: int
    copy_bytes: float
    memory_bytes: float
    gather_seconds: float
    forward_seconds: float

    def choose(self) -> tuple[Literal["zero3", "replicate"], str]:
        """The choice, and its reason in one line."""
        share = self.copy_bytes / self.memory_bytes
        size = f"whole copies take {self.copy_bytes / 2**30:.2f} GiB of {self.memory_bytes / 2**30:.0f} GiB"
        size += f" ({100 * share:.1f} %)"
        if self.num_ranks == 1:
            return "replicate", f"{size}; there is one rank, nothing to cut over"
        gather, forward = (f"{1000 * seconds:.3g} ms" for seconds in (self.gather_seconds, self.forward_seconds))
        cost = (
            f"{size}; cut over {self.num_ranks} ranks, each micro-batch would gather for {gather} beside {forward} of "
            "arithmetic (modelled from measured rates)"
        )
        if share <= SMALL_SHARE:
            return "replicate", f"{cost}; up to {100 * SMALL_SHARE:.0f} % memory is no reason to cut"
        if share > LARGE_SHARE:
            return "zero3", f"{cost}; above {100 * LARGE_SHARE:.0f} % the student needs the memory"
        if self.gather_seconds <= self.forward_seconds:
            return "zero3", f"{cost}; gathering hides behind the arithmetic"
        return "replicate", f"{cost}; gathering does not hide behind the arithmetic"


def choose_sharding(
    teachers: Mapping[str, TeacherModel],
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
    teachers: Mapping[str, TeacherModel],
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
