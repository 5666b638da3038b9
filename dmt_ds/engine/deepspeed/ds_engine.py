"""The door to DeepSpeed, and the engine that trains the student; knows no method.

DeepSpeed is never allowed to compile an op here: optimizers are torch's, and the CPU's shared-memory collective is
switched off, so that neither a compiler nor minutes of waiting are needed.
"""

import importlib
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, redirect_stderr, redirect_stdout
from datetime import timedelta
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from dmt_ds.config.deepspeed import DsConfig
from dmt_ds.engine import dist
from dmt_ds.engine.checkpoints.manifest import unread
from dmt_ds.engine.cpu_memory import keep_freed_memory
from dmt_ds.engine.deepspeed.bucket_reduction import overlap_reduction
from dmt_ds.engine.deepspeed.device_skip import DeviceSkip, can_skip, without_own_check
from dmt_ds.engine.deepspeed.gradient_order import GradientOrder
from dmt_ds.engine.deepspeed.lone_rank import averages_with_nobody, spare_copies, without_buckets
from dmt_ds.engine.deepspeed.masters import norm_of_gradients, own_master
from dmt_ds.engine.deepspeed.own_settings import part_update_counters, settings_kept, torch_optimizer
from dmt_ds.engine.deepspeed.repeated_work import keep_weights_in_place
from dmt_ds.engine.ranks.devices import local_device
from dmt_ds.engine.schedule import ByStep, RateAndDecay
from dmt_ds.errors import CheckpointError, LaunchError
from dmt_ds.storage import is_away
from dmt_ds.tracking.spans import span
from dmt_ds.wording import first_line

logger = logging.getLogger(__name__)


def library() -> ModuleType:
    """DeepSpeed, imported once its accelerator is chosen: it reads DS_ACCELERATOR at import."""
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    with _mlflow_hidden():
        deepspeed: ModuleType = importlib.import_module("deepspeed")
    deepspeed.utils.logger.setLevel(logging.WARNING)
    return deepspeed


@contextmanager
def _mlflow_hidden() -> Iterator[None]:
    """DeepSpeed's autotuner would import MLflow on every rank: a second of each start, for nothing."""
    if "mlflow" in sys.modules:
        yield
        return
    sys.modules["mlflow"] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules["mlflow"]


def start(timeout_seconds: float) -> torch.device:
    """Join the process group (NCCL on CUDA, gloo on CPU) and return this rank's device.

    Args:
        timeout_seconds: how long a collective waits for the slowest rank.

    Raises:
        LaunchError: the ranks can't find each other, or the port is taken.
    """
    environment = dist.launch_environment(os.environ)
    os.environ.update(environment)
    device = local_device(environment)
    if device.type == "cpu":
        keep_freed_memory()
    deepspeed = library()
    _forbid_shared_memory_build(deepspeed)
    timeout = timedelta(seconds=timeout_seconds)
    dist.set_group_timeout(timeout)
    try:
        deepspeed.init_distributed(verbose=False, timeout=timeout)
        # DeepSpeed's engines talk in a copy of the group of all, which it would make without a timeout.
        deepspeed.utils.groups._WORLD_GROUP = dist.new_group(range(dist.world_size()))
    except (RuntimeError, ValueError) as error:
        raise LaunchError(dist.why_apart(environment, error)) from error
    return device


def stop() -> None:
    """Leave the process group."""
    if dist.is_initialized():
        torch.distributed.destroy_process_group()


def _forbid_shared_memory_build(deepspeed: ModuleType) -> None:
    """On CPU, DeepSpeed compiles a shared-memory all-reduce at start; gloo does without."""
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


class StudentEngine:
    """The training engine: called like the module it wraps."""

    def __init__(self, engine: Any, skip: DeviceSkip | None = None) -> None:
        self._engine = engine
        self._skip = skip
        self._norm: Tensor | None = None
        self._order = GradientOrder(engine.module) if engine.zero_optimization_stage() in (1, 2) else None
        self.module: nn.Module = engine.module
        self.device: torch.device = torch.device(engine.device)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Forward, with DeepSpeed's hooks."""
        with span("student forward"):
            return self._engine(*args, **kwargs)

    def backward(self, loss: Tensor) -> None:
        """Add this micro-batch's gradient; DeepSpeed divides by the accumulation steps."""
        with span("backward"):
            self._engine.backward(loss)
        if self._order is not None:
            self._order.check()
            self._order = None

    @property
    def _is_stage_zero(self) -> bool:
        return not self._engine.zero_optimization()

    @property
    def skips_on_device(self) -> bool:
        """Whether an unsound update is left out on the device, so that the host may learn of it later."""
        return self._skip is not None

    def squared_gradient_norm(self) -> Tensor:
        """Squared norm of this rank's part of the gradient, after the last backward: scalar float32, on the device.

        Not finite if a number of it is not; 0 where DeepSpeed itself checks the gradient in `step`.
        """
        if self._skip is not None:
            return self._skip.squared_norm()
        if self._is_stage_zero:  # DeepSpeed looks at none there, and each rank has the whole gradient
            return norm_of_gradients(self.module).square() / dist.world_size()
        return torch.zeros((), device=self.device)

    def prepare_update(self, unsound: Tensor, squared_norm: Tensor) -> None:
        """Have the device leave the coming update out where `unsound`: scalar bool, the same on all ranks.

        Args:
            squared_norm: what the ranks' `squared_gradient_norm` are together.
        """
        if self._skip is not None:
            self._skip.arm(unsound)
        if self._skip is not None or self._is_stage_zero:
            self._norm = squared_norm.sqrt()

    def step(self) -> None:
        """Update the weights where accumulation is complete, else only count the micro-step."""
        with span("optimizer"):
            self._engine.step()

    def train(self) -> None:
        """Switch drop path and batch norm on."""
        self._engine.train()

    @property
    def learning_rate(self) -> float:
        """Of the first parameter group, which has the largest, at the next update."""
        return float(self._engine.get_lr()[0])

    def gradient_norm(self) -> float | None:
        """Norm of the last update's whole gradient before clipping; waits for the device. None before the first."""
        norm = self._engine.get_global_grad_norm() if self._norm is None else self._norm
        return None if norm is None else float(norm)

    @property
    def skipped_steps(self) -> int:
        """Updates that DeepSpeed left out because a gradient was not finite."""
        return int(self._engine.skipped_steps)

    def compile(self) -> None:
        """torch.compile inside the engine: keys of the state dict stay as they are."""
        self._engine.compile()

    def trained_state(self) -> dict[str, Tensor]:
        """float32 masters of all trained parameters, whole, on the CPU; all ranks call, whatever the ZeRO stage."""
        from deepspeed.utils import safe_get_full_fp32_param

        state = {}
        for name, parameter in self.module.named_parameters():
            if parameter.requires_grad:
                master = safe_get_full_fp32_param(parameter)  # a collective
                master = own_master(name, parameter) if master is None else master
                state[name] = master.detach().float().cpu()
        return state

    def save(self, folder: Path, tag: str) -> None:
        """Write weights, masters and moments to folder/tag; all ranks call."""
        self._engine.save_checkpoint(str(folder), tag=tag, save_latest=False, exclude_frozen_parameters=True)

    def load(self, folder: Path, tag: str) -> None:
        """Read what `save` wrote, or its universal form where the engine was built for that; all ranks call.

        The engine's settings stay its own (`own_settings`).

        Raises:
            CheckpointError: the files do not fit this engine.
            StorageError: they can't be read.
        """
        try:
            with settings_kept(self._engine):
                path, _ = self._engine.load_checkpoint(str(folder), tag=tag, load_module_strict=False)
        except (RuntimeError, AssertionError, KeyError, ValueError, OSError, EOFError) as error:
            if is_away(error):
                raise unread(folder / tag, error) from error
            reason = first_line(error)
            raise CheckpointError(f"{folder / tag}: does not load: {reason}") from error
        if path is None:
            raise CheckpointError(f"{folder / tag}: DeepSpeed finds no checkpoint there")
        part_update_counters(torch_optimizer(self._engine))
        if self._engine.zero_optimization_partition_weights():
            # As at a first start: only of cut weights does the first forward note which modules read those of others.
            self._engine.optimizer.checkpoint_event_prologue()


def build_student(
    module: nn.Module,
    optimizer: Optimizer,
    schedule: ByStep | list[ByStep],
    config: DsConfig,
    *,
    decay: ByStep | None = None,
    universal: bool = False,
) -> StudentEngine:
    """Wrap what is trained.

    Args:
        schedule: step -> factor of each group's learning rate; one for all, or one a group.
        config: resolved DeepSpeed JSON.
        decay: step -> weight decay of the groups that have some; None leaves it as it is.
        universal: the engine's `load` will read a checkpoint of another world size.
    """
    assert not any(hasattr(p, "ds_id") for p in module.parameters()), "a student must not be built under zero.Init"
    if not isinstance(optimizer, torch.optim.AdamW):
        config = {**config, "zero_allow_untested_optimizer": True}  # tested here
    if universal:
        config = {**config, "checkpoint": {**config.get("checkpoint", {}), "load_universal": True}}
    alone = averages_with_nobody(config, dist.world_size())
    if alone:
        config = without_buckets(config)
    skips = can_skip(config, optimizer)
    engine, *_ = library().initialize(
        model=module,
        model_parameters=[p for p in module.parameters() if p.requires_grad],
        optimizer=optimizer,
        config=without_own_check(config) if skips else config,
        lr_scheduler=lambda wrapped: RateAndDecay(wrapped, schedule, decay),
    )
    if alone:
        spare_copies(engine)
    overlap_reduction(engine)
    keep_weights_in_place(engine)
    return StudentEngine(engine, DeviceSkip(engine, optimizer) if skips else None)


@contextmanager
def gathered(module: nn.Module) -> Iterator[None]:
    """Parameters that ZeRO-3 cut are whole inside; all ranks enter. Nothing happens to others."""
    cut = [parameter for parameter in module.parameters() if hasattr(parameter, "ds_id")]
    with library().zero.GatheredParameters(cut) if cut else nullcontext():
        yield


def to_universal(source: Path, target: Path) -> None:
    """Convert a checkpoint to DeepSpeed's universal form, which loads at any world size; one process calls."""
    library()
    from argparse import Namespace

    from deepspeed.checkpoint import ds_to_universal

    settings = Namespace(
        input_folder=str(source),
        output_folder=str(target),
        num_extract_workers=1,
        num_merge_workers=1,
        keep_temp_folder=False,
        strict=True,
        inject_missing_state=True,
    )
    with _quiet():
        ds_to_universal.main(settings)


@contextmanager
def _quiet() -> Iterator[None]:
    """DeepSpeed's converter prints bars and greetings; what goes wrong still comes as an exception."""
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        yield
