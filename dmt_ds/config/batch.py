"""Arithmetic of batches and steps: what a recipe's numbers mean on so many ranks and images; plain integers only."""

import math
from dataclasses import dataclass

from dmt_ds.config.optim import OptimConfig
from dmt_ds.config.train import TrainConfig
from dmt_ds.errors import ConfigError, DataError


@dataclass(frozen=True)
class BatchPlan:
    """How one update's images are cut: global = micro * grad_accum_steps * world_size, exactly."""

    global_batch_size: int
    micro_batch_size: int
    world_size: int
    grad_accum_steps: int


@dataclass(frozen=True)
class LengthPlan:
    """How long a run is, in updates; a trial run may end within its warm-up."""

    total_steps: int
    warmup_steps: int


def plan_batch(global_batch_size: int, micro_batch_size: int, world_size: int) -> BatchPlan:
    """Accumulation that makes the global batch exact.

    Raises:
        ConfigError: it can't be exact; the arithmetic and the nearest sizes that can are shown.
    """
    images = micro_batch_size * world_size
    if global_batch_size % images == 0:
        return BatchPlan(global_batch_size, micro_batch_size, world_size, global_batch_size // images)
    below = global_batch_size // images * images
    nearest = ", ".join(str(size) for size in (below, below + images) if size > 0)
    ranks = f"{world_size} rank{'s' if world_size > 1 else ''}"
    raise ConfigError(
        f"train.global_batch_size: {global_batch_size} is not divisible by"
        f" micro_batch_size {micro_batch_size} x {ranks} = {images}; nearest: {nearest}"
        + _other_micro_batch(global_batch_size, micro_batch_size, world_size)
    )


def plan_length(train: TrainConfig, optim: OptimConfig, num_images: int) -> LengthPlan:
    """Updates of the run and of its warm-up; `steps` wins over `epochs`, whose last update may reach over the end.

    Raises:
        DataError: there are no images.
    """
    if num_images < 1:
        raise DataError("data: the training split has no images; check data.path and data.train_split")
    steps_per_epoch = num_images / train.global_batch_size
    total_steps = train.steps
    if total_steps is None:
        total_steps = max(1, math.ceil((train.epochs or 0) * steps_per_epoch - 1e-9))
    warmup_steps = optim.warmup_steps
    if warmup_steps is None:
        warmup_steps = round(optim.warmup_epochs * steps_per_epoch)
    return LengthPlan(total_steps, warmup_steps)


def _other_micro_batch(global_batch_size: int, micro_batch_size: int, world_size: int) -> str:
    """The largest smaller micro-batch that keeps the global batch, where there is one."""
    per_rank, left = divmod(global_batch_size, world_size)
    fitting = [size for size in range(1, micro_batch_size) if left == 0 and per_rank % size == 0]
    return f"; or train.micro_batch_size={fitting[-1]}" if fitting else ""
