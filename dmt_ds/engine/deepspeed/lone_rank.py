"""What a single-rank float32 CPU run skips in DeepSpeed's update; knows no training loop.

There is no other rank to average a gradient with. DeepSpeed would copy it into a bucket, divide it by one, reduce it
over one rank and copy it out again, take the norm of a copy in float64, and keep masters beside weights that are
float32 themselves: more time than AdamW takes, and 4 bytes per parameter. In bf16 these buffers provide the float32
copies, so that case is left alone.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from dmt_ds.config.deepspeed import DsConfig, precision, zero_stage


def averages_with_nobody(config: DsConfig, world_size: int) -> bool:
    """Whether an engine of this resolved DeepSpeed JSON can skip that: one float32 CPU rank, where it was measured."""
    return (
        world_size == 1
        and precision(config) == "fp32"
        and zero_stage(config) == 2
        and "offload_optimizer" not in config["zero_optimization"]
        and not torch.cuda.is_available()
    )


def without_buckets(config: DsConfig) -> DsConfig:
    """The JSON by which DeepSpeed leaves a gradient where it is until it reduces it."""
    return {**config, "zero_optimization": {**config["zero_optimization"], "contiguous_gradients": False}}


def spare_copies(engine: Any) -> None:
    """Take the copies of gradients and weights out of an engine that was made from `without_buckets`."""
    zero = engine.optimizer
    zero.buffered_reduce_fallback = _leave_in_place
    zero.get_grad_norm_direct = _norm
    for master, (weights,) in zip(
        zero.single_partition_of_fp32_groups, zero.parallel_partitioned_bit16_groups, strict=True
    ):
        master.data = weights.data
    zero._link_all_hp_params()  # where each parameter's master is


def _leave_in_place(*_arguments: object, **_named: object) -> None:
    return


def _norm(gradients: Iterable[Tensor], _parameters: object, norm_type: float = 2) -> Tensor:
    """Norm of all gradients together: scalar; -1 if it is not finite, as DeepSpeed expects."""
    assert norm_type == 2
    norm = torch.stack(torch._foreach_norm(list(gradients))).double().norm().float()
    return torch.where(norm.isfinite(), norm, -1.0)
