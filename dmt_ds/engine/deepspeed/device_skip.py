"""Leaving an unsound update out on the device, so that the host need not look at it first; knows no training loop.

DeepSpeed asks the device before every update whether a gradient is not finite, and the host waits for the answer: the
device runs dry once a step. A fused AdamW of torch can leave an update out by itself (`found_inf`, made for loss
scaling), so the same question stays on the device. It holds for ZeRO-2 in bf16 without clipping: there nothing else of
DeepSpeed's update waits. In all other cases DeepSpeed's own check stays.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from dmt_ds.config.deepspeed import DsConfig, precision, zero_stage


def can_skip(config: DsConfig, optimizer: Optimizer) -> bool:
    """Whether an engine of this resolved DeepSpeed JSON gets a `DeviceSkip`.

    Only a fused optimizer has the switch, and in bf16 it is fused on CUDA only: on a CPU, looking costs nothing.
    """
    zero = config.get("zero_optimization", {})
    return (
        bool(optimizer.defaults.get("fused"))
        and precision(config) == "bf16"
        and zero_stage(config) == 2
        and "offload_optimizer" not in zero
        and not config.get("gradient_clipping")
    )


def without_own_check(config: DsConfig) -> DsConfig:
    """The JSON without DeepSpeed's look at the gradient, which `DeviceSkip` takes over."""
    return {**config, "bf16": {**config["bf16"], "check_grad_overflow": False}}


class DeviceSkip:
    """The switch of one engine's optimizer.

    Args:
        engine: DeepSpeed's, of ZeRO stage 2, made from `without_own_check`.
        optimizer: torch's fused AdamW inside it.
    """

    def __init__(self, engine: Any, optimizer: Optimizer) -> None:
        self._zero = engine.optimizer
        self._zero.compute_grad_norm = False  # by a copy in float64 of each gradient; and the host would wait for it
        self._optimizer: Any = optimizer

    def squared_norm(self) -> Tensor:
        """Of this rank's part of the averaged gradient: scalar float32 on the device.

        A sum of squares, so it is not finite as soon as one number is not. Call it between the last backward and the
        update.
        """
        # a few kernels for all parameters
        return torch.stack(torch._foreach_norm(list(self._gradients()), dtype=torch.float32)).square().sum()

    def _gradients(self) -> Iterator[Tensor]:
        for group in self._zero.averaged_gradients.values():
            whole = getattr(group, "flat_partition", None)  # where the group's gradients lie in one piece
            yield from (part for part in (group if whole is None else [whole]) if part is not None)

    def arm(self, unsound: Tensor) -> None:
        """The next update is left out where `unsound`: scalar bool, the same on all ranks."""
        self._optimizer.found_inf = unsound.float()
