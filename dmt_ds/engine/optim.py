"""The optimizer, its parameter groups, and the learning rate over layers and steps; knows no method."""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from torch import nn
from torch.optim import AdamW, Optimizer

from dmt_ds.config.optim import OptimConfig
from dmt_ds.engine.momentum_sgd import MomentumSgd
from dmt_ds.engine.schedule import FROZEN_UNTIL

_TOKENS = ("cls_token", "pos_embed", "mask_token", "reg_token", "masked_embed")


def learning_rate_scales(layers: Mapping[str, int], layer_decay: float) -> dict[str, float]:
    """Parameter name -> factor of its learning rate: 1 in the last layer, `layer_decay` times less a layer below.

    Args:
        layers: parameter name -> number of its layer, 0 the embedding.
    """
    last = max(layers.values(), default=0)
    return {name: layer_decay ** (last - number) for name, number in layers.items()}


class _Group(NamedTuple):
    """What the parameters of a group have in common."""

    frozen_until: float
    scale: float
    decays: bool


def parameter_groups(
    module: nn.Module,
    weight_decay: float,
    peak: float,
    scales: Mapping[str, float] | None = None,
    frozen_until: Mapping[str, float] | None = None,
) -> list[dict[str, Any]]:
    """Matrices with weight decay; biases, norms, tokens and positions without; the largest learning rate first.

    A layer's rate is the group's own `lr`, which every scheduler multiplies: timm's key `lr_scale` is known to timm's
    schedulers alone.

    Args:
        peak: learning rate where the scale is 1.
        scales: parameter name -> factor of its learning rate; None is 1 for all.
        frozen_until: parameter name -> share of the run until which it stays as it is: groups of their own, the last.
    """
    groups: dict[_Group, list[nn.Parameter]] = {}
    for name, parameter in module.named_parameters():
        if not parameter.requires_grad:
            continue
        is_plain = parameter.ndim < 2 or name.rsplit(".", 1)[-1] in _TOKENS
        frozen, scale = (frozen_until or {}).get(name, 0.0), 1.0 if scales is None else scales[name]
        groups.setdefault(_Group(frozen, scale, not is_plain), []).append(parameter)
    return [
        {"params": groups[group], "lr": peak * group.scale, "weight_decay": weight_decay if group.decays else 0.0}
        | ({FROZEN_UNTIL: group.frozen_until} if group.frozen_until else {})
        for group in sorted(groups, key=lambda group: (group.frozen_until, -group.scale, not group.decays))
    ]


def fusing_pays(device_type: str, bf16: bool) -> bool:
    """Whether a fused optimizer is the quicker one for a student on `cuda` or `cpu`.

    On a CPU in bf16 it would have updates judged a step late (`device_skip`), where looking at once costs nothing.
    """
    return device_type == "cuda" or not bf16


def build_optimizer(
    module: nn.Module,
    section: OptimConfig,
    global_batch_size: int,
    *,
    fused: bool,
    layers: Mapping[str, int] | None = None,
    frozen_until: Mapping[str, float] | None = None,
) -> Optimizer:
    """AdamW, torch's own so that there is nothing to compile, or SGD; parameter groups are ours.

    Args:
        fused: AdamW in one kernel, on CUDA.
        layers: parameter name -> number of its layer, for `layer_decay`.
        frozen_until: parameter name -> share of the run until which it stays as it is; `with_frozen_groups` sees to it.
    """
    peak = section.peak_lr(global_batch_size)
    scales = None if layers is None or section.layer_decay == 1 else learning_rate_scales(layers, section.layer_decay)
    groups = parameter_groups(module, section.weight_decay, peak, scales, frozen_until)
    if section.name == "sgd":
        return MomentumSgd(groups, section.momentum)
    return AdamW(groups, lr=peak, betas=section.betas, eps=section.eps, fused=fused)


def learning_rate_schedule(
    section: OptimConfig, global_batch_size: int, warmup_steps: int, total_steps: int
) -> Callable[[int], float]:
    """Step (from 0) -> factor of the peak: linear over `warmup_steps`, then as `schedule` towards min_lr."""
    floor = section.min_lr / section.peak_lr(global_batch_size)
    decay_steps = [round(share * total_steps) for share in section.decay_at]

    def left(step: int) -> float:
        done = min(1.0, (step - warmup_steps) / max(1, total_steps - warmup_steps))
        if section.schedule == "steps":
            return float(0.1 ** sum(step >= decay_step for decay_step in decay_steps))
        return 1 - done if section.schedule == "linear" else 0.5 * (1 + math.cos(math.pi * done))

    def factor(step: int) -> float:
        if step < warmup_steps:
            return (step + 1) / warmup_steps
        return floor + (1 - floor) * left(step)

    return factor


def weight_decay_schedule(section: OptimConfig, total_steps: int) -> Callable[[int], float] | None:
    """Step (from 0) -> weight decay, by half a cosine to `weight_decay_end`; None where it stays as it is."""
    start, end = section.weight_decay, section.weight_decay_end
    if end is None:
        return None
    return lambda step: end + (start - end) * 0.5 * (1 + math.cos(math.pi * min(1.0, step / max(1, total_steps))))
