"""What the trainer asks of a task; knows no method and no library but torch.

A task owns what is trained and how a batch becomes losses; the trainer owns steps, accumulation, schedule, logging,
checkpoints and stopping.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from dmt_ds.config.schema import DataConfig
from dmt_ds.data.batch import Batch
from dmt_ds.data.views import CropSpec

Model = Callable[..., Any]
"""The engine around `Task.module`: called like the module, it also fires DeepSpeed's hooks."""


@dataclass(frozen=True)
class Progress:
    """Where the run is: `step` updates of `total_steps` are done."""

    step: int
    total_steps: int

    @property
    def fraction(self) -> float:
        """Done share of the run, 0 to 1."""
        return self.step / self.total_steps


class TaskLosses(NamedTuple):
    """What one micro-batch gives."""

    loss: Tensor
    """Scalar, float32, with its graph: the mean over this rank's micro-batch."""
    metrics: Mapping[str, Tensor]
    """Detached scalars on the device, by name (`train/loss_tfd`); the trainer averages over micro-batches and ranks."""


class Task(Protocol):
    """A method of pretraining, or a downstream task."""

    @property
    def module(self) -> nn.Module:
        """What is trained: all of its parameters that require a gradient, and nothing else of size."""
        ...

    def backbone(self) -> nn.Module:
        """The ViT that is the result of the run, without heads."""
        ...

    def losses(self, model: Model, batch: Batch, progress: Progress, diagnose: bool) -> TaskLosses:
        """Forward of one micro-batch already on the device. `diagnose`: also give the costlier metrics of log steps."""
        ...

    def after_step(self, progress: Progress) -> None:
        """Let momentum networks and running means follow an update; all ranks call. `progress.step` counts it."""
        ...

    def state_dict(self) -> dict[str, Tensor]:
        """What must survive a restart beside `module`'s weights; the same on every rank, and all ranks call."""
        ...

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Inverse of `state_dict`."""
        ...

    def to(self, device: torch.device) -> None:
        """Move what lies outside `module` (momentum networks, running means)."""
        ...


@runtime_checkable
class CroppingTask(Task, Protocol):
    """A task that sees crops of images, and nothing that would have to be cut with them."""

    def crops(self, data: DataConfig) -> tuple[CropSpec, ...]:
        """The crops that the loader draws of each image."""
        ...


@runtime_checkable
class AnnotatedTask(Task, Protocol):
    """A task that learns what people say of images, and is judged by it."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names by class number."""
        ...

    @property
    def untouched(self) -> Mapping[str, Tensor]:
        """Weights of `module`, by name, in float32, that are not trained; an engine may round its own copy."""
        ...

    def layers(self) -> dict[str, int]:
        """Name of each parameter of `module` -> its layer, the embedding first, for learning rates by depth."""
        ...


@runtime_checkable
class FreezingTask(Task, Protocol):
    """A task that starts to train some of its weights later than the others."""

    @property
    def frozen_until(self) -> Mapping[str, float]:
        """Name of a parameter of `module` -> share of the run until which it does not move."""
        ...


def frozen_weights(module: nn.Module) -> dict[str, Tensor]:
    """What a module does not train, by name: copies in float32 on the CPU, for `AnnotatedTask.untouched`."""
    return {
        name: parameter.detach().float().cpu().clone()
        for name, parameter in module.named_parameters()
        if not parameter.requires_grad
    }


class StatelessTask:
    """A task without state outside `module`."""

    def after_step(self, progress: Progress) -> None:
        """Nothing moves but the weights."""

    def to(self, device: torch.device) -> None:
        """Nothing lies outside of the module."""

    def state_dict(self) -> dict[str, Tensor]:
        """Nothing: all of it is in the module."""
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Nothing to load."""
