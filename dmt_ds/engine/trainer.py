"""The loop: steps, accumulation, log, checkpoints, stopping; knows a task's verbs, no method, no library but torch."""

import logging
import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

import torch
from torch import Tensor

from dmt_ds.data.batch import Batch
from dmt_ds.data.loader import TrainLoader
from dmt_ds.engine import dist, rng_state
from dmt_ds.engine.agreement import Agreement
from dmt_ds.engine.checkpoint import Checkpoint, CheckpointFolder, RunState
from dmt_ds.engine.ds_engine import StudentEngine
from dmt_ds.engine.fence import Fence
from dmt_ds.engine.progress import ProgressView
from dmt_ds.engine.step_profile import StepProfile
from dmt_ds.engine.stopping import StopRequest, Watchdog
from dmt_ds.engine.task import Progress, Task
from dmt_ds.engine.untrained import restore_untrained, untrained_state
from dmt_ds.errors import DivergenceError, DmtError
from dmt_ds.tracking.meters import MeanMeters, Throughput, memory_gib
from dmt_ds.tracking.spans import span
from dmt_ds.tracking.tracker import Tracker

logger = logging.getLogger(__name__)

TASK_STATE = "task_state.pt"


class Outcome(Enum):
    """How `fit` ended."""

    FINISHED = "finished"
    STOPPED = "saved and stopped; start again to go on"


@dataclass(frozen=True)
class TrainPlan:
    """Numbers of the loop, all resolved."""

    total_steps: int
    global_batch_size: int
    grad_accum_steps: int
    log_every_steps: int
    save_every_steps: int
    stop_after_step: int | None = None

    def logs_at(self, step: int) -> bool:
        """Whether the update that makes `step` done is a log step: the first, every n-th, the last."""
        return step == 1 or step % self.log_every_steps == 0 or step == self.total_steps

    def saves_at(self, step: int) -> bool:
        """Whether a checkpoint follows that update."""
        return step % self.save_every_steps == 0 or step in (self.total_steps, self.stop_after_step)


@dataclass
class Surroundings:
    """What the loop reports to and is watched by."""

    tracker: Tracker
    view: ProgressView
    stop: StopRequest
    watchdog: Watchdog
    image_name: Callable[[int], str]
    """Row of the data set -> its name in messages."""
    fence: Fence | None = None
    """Rank 0's claim on the run folder."""
    profile: StepProfile | None = None
    """On rank 0, where some steps are to be looked at."""


class Trainer:
    """Trains one task in one engine."""

    def __init__(
        self,
        task: Task,
        engine: StudentEngine,
        loader: TrainLoader,
        plan: TrainPlan,
        checkpoints: CheckpointFolder,
        record: Callable[[int], RunState],
        export: Callable[[StudentEngine, Path, int], None],
        around: Surroundings,
    ) -> None:
        """Put the parts together.

        Args:
            record: step -> what a checkpoint says of the run.
            export: (engine, folder, step) -> writes the encoder into a checkpoint's folder; all ranks call.
        """
        self.task = task
        self.engine = engine
        self.step = 0
        self._loader = loader
        self._plan = plan
        self._checkpoints = checkpoints
        self._record = record
        self._export = export
        self._around = around
        self._meters = MeanMeters()
        self._throughput = Throughput()
        self._skipped_steps = 0
        self._unread: deque[Agreement] = deque()

    def resume(self, checkpoint: Checkpoint, tag: str) -> None:
        """Go on from a checkpoint; `tag` is its own, or that of its universal form."""
        self.engine.load(checkpoint.folder.parent, tag)
        state = torch.load(checkpoint.folder / TASK_STATE, map_location=self.engine.device, weights_only=True)
        restore_untrained(self.engine.module, state["untrained"])
        self.task.load_state_dict(state["task"])
        if checkpoint.state.world_size == dist.world_size():
            rng_state.restore(rng_state.path(checkpoint.folder, dist.rank()))
        self.step = checkpoint.state.step

    def fit(self) -> Outcome:
        """Train to the last step, or to the end of the step in which a signal came."""
        self.engine.train()
        self._skipped_steps = self.engine.skipped_steps
        self._around.view.start(self.step)
        if self._plan.total_steps == 0:
            self.save()  # the encoder as it starts
        batches = self.batches()
        while self.step < self._plan.total_steps:
            signalled = self._profiled(lambda: self.update(batches))
            self._around.view.advance()
            self._around.watchdog.beat(f"step {self.step}")
            stops = signalled or self.step == self._plan.stop_after_step
            if self._plan.saves_at(self.step) or signalled:
                self.save()
            if stops and self.step < self._plan.total_steps:
                reason = self._around.stop.name if signalled else "train.stop_after_step"
                logger.info("%s: saved at step %d of %d", reason, self.step, self._plan.total_steps)
                return Outcome.STOPPED
        return Outcome.FINISHED

    def save(self) -> None:
        """Write a checkpoint of this step; all ranks."""
        self._around.watchdog.beat(f"saving step {self.step}")
        self._checkpoints.save(self._record(self.step), self._write_checkpoint)
        self._around.watchdog.beat(f"step {self.step}")
        self._throughput.pop()  # a save is not training time

    def batches(self) -> Iterator[Batch]:
        """This rank's micro-batches from the present step to the last."""
        accumulation = self._plan.grad_accum_steps
        return self._loader.batches(
            start_image=self.step * self._plan.global_batch_size,
            num_micro_steps=(self._plan.total_steps - self.step) * accumulation,
            grad_accum_steps=accumulation,
        )

    def update(self, batches: Iterator[Batch]) -> bool:
        """One optimizer update from `grad_accum_steps` micro-batches; whether some rank was asked to stop."""
        logs = self._plan.logs_at(self.step + 1)
        progress = Progress(self.step, self._plan.total_steps)
        finite = torch.ones((), dtype=torch.bool, device=self.engine.device)
        seen: list[Batch] = []
        for micro_step in range(self._plan.grad_accum_steps):
            batch = self._next(batches)
            seen.append(batch)
            losses = self.task.losses(self.engine, batch.to(self.engine.device), progress, logs)
            self.engine.backward(losses.loss)
            finite &= losses.loss.detach().isfinite()
            if logs:
                self._meters.add({"train/loss": losses.loss.detach(), **losses.metrics})
            if micro_step + 1 == self._plan.grad_accum_steps:
                stop_asked = self._agree(finite, seen, logs)
                learning_rate = self.engine.learning_rate
            self.engine.step()
        self._check_update(looks=logs or stop_asked or self._plan.saves_at(self.step + 1))
        self.step += 1
        self.task.after_step(Progress(self.step, self._plan.total_steps))
        self._throughput.count(self._plan.global_batch_size)
        if logs:
            self._log(learning_rate)
        return stop_asked

    def _profiled(self, update: Callable[[], bool]) -> bool:
        profile = self._around.profile
        if profile is None:
            return update()
        profile.before(self.step + 1)
        result = update()
        if profile.after(self.step):
            self._around.tracker.log_artifact(profile.folder)
        return result

    def _next(self, batches: Iterator[Batch]) -> Batch:
        with self._throughput.waiting(), span("data wait"):
            return next(batches)

    def _agree(self, finite: Tensor, seen: Sequence[Batch], logs: bool) -> bool:
        """All ranks learn whether one has a loss that is not finite, or was asked to stop.

        As a rule before the update. Where the device itself leaves an unsound update out, the host reads what it said
        of the update before: it then waits for nothing that the device has still to do. Such a run ends one step late
        and no worse, for the weights stay as they were, and what is logged or saved is always read first.

        Raises:
            DivergenceError: on all ranks alike.
        """
        newest = Agreement(self.step + 1, seen, finite, self.engine.unsound_gradient(), self._around.stop.requested)
        self.engine.prepare_update(newest.unsound, measure_norm=logs)
        self._unread.append(newest)
        must_know = logs or self._plan.saves_at(newest.step) or not self.engine.skips_on_device
        stop_asked = False
        while self._unread and (must_know or stop_asked or len(self._unread) > 1):
            stop_asked |= self._settle(self._unread.popleft())
        return stop_asked

    def _settle(self, agreement: Agreement) -> bool:
        """Read what the ranks said of an update: whether one was asked to stop.

        Raises:
            DivergenceError: the update is unsound; on all ranks alike.
        """
        verdict = agreement.read()
        if verdict.loss_unsound:
            self._raise_divergence(agreement, verdict.loss_unsound_here)
        if verdict.gradient_unsound:
            raise _gradient_error(agreement.step)
        return verdict.stop_asked

    def _raise_divergence(self, agreement: Agreement, unsound_here: bool) -> None:
        names = [self._around.image_name(row) for row in agreement.images] if unsound_here else []
        report = {rank: ", ".join(images[:4]) for rank, images in enumerate(dist.gather_objects(names)) if images}
        where = "; ".join(f"rank {rank}: {images}, ..." for rank, images in report.items())
        message = (
            f"step {agreement.step}: the loss is not finite on rank {', '.join(map(str, report))}; "
            f"this update was not made. Images of its batch: {where}. Start again to go on from the newest "
            "checkpoint, with a lower optim.base_lr or optim.clip_grad_norm=1 if it comes back"
        )
        raise dist.alike_on_all(DivergenceError(message))

    def _check_update(self, looks: bool) -> None:
        """A finite loss may have a gradient that is not: never log or save what such an update left.

        Args:
            looks: read the norm from the device too; an update that DeepSpeed left out is seen without.

        Raises:
            DivergenceError: on all ranks alike, as the norm is that of all.
        """
        norm = self.engine.gradient_norm() if looks else None
        if self.engine.skipped_steps > self._skipped_steps or (norm is not None and not math.isfinite(norm)):
            raise _gradient_error(self.step + 1)

    def _log(self, learning_rate: float) -> None:
        if self._around.fence is not None:
            self._around.fence.check()
        metrics = self._meters.pop_means(dist.mean_over_ranks)
        metrics["train/lr"] = learning_rate
        norm = self.engine.gradient_norm()
        metrics |= {} if norm is None else {"train/grad_norm": norm}
        metrics["train/images_seen"] = float(self.step * self._plan.global_batch_size)
        metrics |= self._throughput.pop()
        metrics["perf/memory_gib"] = memory_gib()
        self._around.view.report(self.step, metrics)
        self._around.tracker.log_metrics(metrics | {"perf/ranks": float(dist.world_size())}, self.step)

    def _write_checkpoint(self, folder: Path, tag: str) -> None:
        self.engine.save(folder, tag)
        rng_state.save(rng_state.path(folder / tag, dist.rank()))
        if dist.is_main():
            state = {"task": self.task.state_dict(), "untrained": untrained_state(self.engine.module)}
            torch.save(state, folder / tag / TASK_STATE)
        self._export(self.engine, folder / tag, self.step)


def _gradient_error(step: int) -> DmtError:
    message = (
        f"step {step}: the gradient is not finite, though the loss is. Start again to go on from the "
        "newest checkpoint, with a lower optim.base_lr if it comes back"
    )
    return dist.alike_on_all(DivergenceError(message))
