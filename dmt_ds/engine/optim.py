"""AdamW's parameter groups and the learning rate over steps; knows no method."""

import math
from collections.abc import Callable, Iterable

from torch import nn
from torch.optim import AdamW, Optimizer

from dmt_ds.config.schema import OptimConfig

_TOKENS = ("cls_token", "pos_embed", "mask_token", "reg_token", "masked_embed")


def peak_learning_rate(section: OptimConfig, global_batch_size: int) -> float:
    """The linear scaling rule: base_lr is for 256 images."""
    return section.base_lr * global_batch_size / 256


def parameter_groups(module: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """Matrices with weight decay; biases, norms, tokens and positions without."""
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for name, parameter in module.named_parameters():
        if not parameter.requires_grad:
            continue
        is_plain = parameter.ndim < 2 or name.rsplit(".", 1)[-1] in _TOKENS
        (plain if is_plain else decayed).append(parameter)
    groups: Iterable[dict[str, object]] = (
        {"params": decayed, "weight_decay": weight_decay},
        {"params": plain, "weight_decay": 0.0},
    )
    return [group for group in groups if group["params"]]


def build_optimizer(module: nn.Module, section: OptimConfig, global_batch_size: int, *, fused: bool) -> Optimizer:
    """Torch's AdamW: nothing to compile, and parameter groups are ours. `fused`: one kernel, on CUDA."""
    return AdamW(
        parameter_groups(module, section.weight_decay),
        lr=peak_learning_rate(section, global_batch_size),
        betas=section.betas,
        eps=section.eps,
        fused=fused,
    )


def warmup_cosine(
    section: OptimConfig, global_batch_size: int, warmup_steps: int, total_steps: int
) -> Callable[[int], float]:
    """Step (from 0) -> factor of the peak: linear over `warmup_steps`, then half a cosine to min_lr at the end."""
    floor = section.min_lr / peak_learning_rate(section, global_batch_size)

    def factor(step: int) -> float:
        if step < warmup_steps:
            return (step + 1) / warmup_steps
        done = (step - warmup_steps) / max(1, total_steps - warmup_steps)
        return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))

    return factor
