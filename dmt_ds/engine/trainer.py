"""The loop: steps, accumulation, log, checkpoints, stopping; knows a task's verbs, no method, no library but torch."""

import gc
import logging
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum

import torch
from torch import Tensor

from dmt_ds.data.batch import Batch
from dmt_ds.data.loader import TrainLoader
from dmt_ds.engine import dist
from dmt_ds.engine.checkpoints.checkpoint_group import CheckpointGroup
from dmt_ds.engine.data_wait import DataWaitAlarm
from dmt_ds.engine.device_copy import DeviceCopy
from dmt_ds.engine.learner import Learner, gradient_error
from dmt_ds.engine.progress import ProgressView
from dmt_ds.engine.ranks.agreement import Agreement
from dmt_ds.engine.ranks.stopping import StopRequest, Watchdog
from dmt_ds.engine.step_profile import StepProfile
from dmt_ds.engine.task import Progress
from dmt_ds.errors import DivergenceError
from dmt_ds.tracking.meters import Throughput, memory_gib
from dmt_ds.tracking.spans import span

logger = logging.getLogger(__name__)


class Outcome(Enum):
    """How `fit` ended."""

    FINISHED = "finished"
    STOPPED = "saved and stopped; start again to resume"


@dataclass(frozen=True)
class TrainPlan:
    """Numbers of the loop, all resolved."""

    total_steps: int
    global_batch_size: int
    grad_accum_steps: int
    log_every_steps: int
    save_every_steps: int
    stop_after_step: int | None = None
    eval_every_images: float = 0.0
    """Images between two evaluations; 0 has none."""

    def logs_at(self, step: int) -> bool:
        """Whether the update that makes `step` done is a log step: the first, every n-th, the last."""
        return step == 1 or step % self.log_every_steps == 0 or step == self.total_steps

    def saves_at(self, step: int) -> bool:
        """Whether a checkpoint follows that update."""
        return step % self.save_every_steps == 0 or step in (self.total_steps, self.stop_after_step)

    def shows_at(self, step: int) -> bool:
        """Whether what that update leaves is logged, saved or judged, so that it must be known to be sound."""
        return self.logs_at(step) or self.saves_at(step) or self.evaluates_at(step)

    def stops_at(self, step: int) -> bool:
        """Whether to stop early after `step` updates; also true for a run that starts at or past that step."""
        return self.stop_after_step is not None and step >= self.stop_after_step

    def evaluates_at(self, step: int) -> bool:
        """Whether an evaluation follows that update; the one at the end is not the loop's."""
        if not self.eval_every_images or step == self.total_steps:
            return False
        before, now = ((number * self.global_batch_size) // self.eval_every_images for number in (step - 1, step))
        return now > before


@dataclass(frozen=True)
class Surroundings:
    """What the loop reports to and is watched by."""

    view: ProgressView
    stop: StopRequest
    watchdog: Watchdog
    image_name: Callable[[int], str]
    """Row of the data set -> its name in messages."""
    profile: StepProfile | None = None
    """On rank 0, if some steps are to be profiled."""
    evaluate: Callable[[int], object] | None = None
    """Judges what learns at a step and logs it; all ranks call."""


class Trainer:
    """Trains what learns from the same batches: as a rule one model, or several students of the same teachers."""

    def __init__(
        self,
        learners: Sequence[Learner],
        checkpoints: CheckpointGroup,
        loader: TrainLoader,
        plan: TrainPlan,
        around: Surroundings,
        step: int = 0,
    ) -> None:
        """Put the parts together; learners take every micro-batch one after the other, in their order.

        Args:
            checkpoints: all learners'.
            step: updates that are done; the same of all learners.
        """
        self.learners = tuple(learners)
        self.step = step
        self._device = self.learners[0].engine.device
        self._checkpoints = checkpoints
        self._loader = loader
        self._plan = plan
        self._around = around
        self._to_device = DeviceCopy(self._device)
        self._throughput = Throughput()
        self._data_wait = DataWaitAlarm(loader.num_workers, loader.cores, self._device.type == "cuda")
        self._unread: deque[Agreement] = deque()

    def fit(self) -> Outcome:
        """Train to the last step, or to the end of the step in which a signal came."""
        # All that exists by now lives to the end: keep Python's garbage collector from walking it again.
        gc.collect()
        gc.freeze()
        try:
            return self._fit()
        finally:
            gc.unfreeze()
            self._around.view.close()
            if self._around.profile is not None:
                self._around.profile.close(self.step)

    def _fit(self) -> Outcome:
        for learner in self.learners:
            learner.start()
        self._around.view.start(self.step)
        if self._plan.total_steps == 0:
            self.save()  # the encoder as it starts
        batches = self.batches()
        signalled = False
        while self.step < self._plan.total_steps:
            if signalled or self._plan.stops_at(self.step):
                asked = f"train.stop_after_step={self._plan.stop_after_step}"
                reason = self._around.stop.name if signalled else asked
                logger.info("%s: saved at step %d of %d", reason, self.step, self._plan.total_steps)
                return Outcome.STOPPED
            signalled = self._profiled(lambda: self.update(batches))
            self._around.view.advance()
            self._around.watchdog.beat(f"step {self.step}")
            if self._plan.evaluates_at(self.step) and not signalled:
                self._evaluate()
            if self._plan.saves_at(self.step) or signalled:
                self.save()
        return Outcome.FINISHED

    def _evaluate(self) -> None:
        """Before a save of the same step: if it ends on the way, it is made again. A signal leaves no time for it."""
        if self._around.evaluate is not None:
            self._around.evaluate(self.step)
            self._around.watchdog.beat(f"step {self.step}")
            self._throughput.pop()  # nor is this training time

    def save(self) -> None:
        """Write a checkpoint of this step; all ranks."""
        for learner in self.learners:
            self._around.watchdog.beat(f"saving step {self.step}{learner.of_name}")
            learner.save(self.step)
        self._checkpoints.saved(self.step)
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
        rows: list[Tensor] = []
        for micro_step in range(self._plan.grad_accum_steps):
            batch = self._next(batches)
            rows.append(batch.indices)
            batch = self._to_device(batch)
            for learner in self.learners:
                learner.learn(batch, progress, logs)
            if micro_step + 1 == self._plan.grad_accum_steps:
                stop_asked = self._agree(rows)
            for learner in self.learners:
                learner.step()
        looks = stop_asked or self._plan.shows_at(self.step + 1)
        self.step += 1
        for learner in self.learners:
            learner.check_update(self.step, looks)
            learner.task.after_step(Progress(self.step, self._plan.total_steps))
        self._throughput.count(self._plan.global_batch_size)
        if logs:
            self._log()
        return stop_asked

    def _profiled(self, update: Callable[[], bool]) -> bool:
        profile = self._around.profile
        if profile is None:
            return update()
        profile.before(self.step + 1)
        result = update()
        if profile.after(self.step):
            for learner in self.learners:
                learner.tracker.log_artifact(profile.folder)
        return result

    def _next(self, batches: Iterator[Batch]) -> Batch:
        with self._throughput.waiting(), span("data wait"):
            return next(batches)

    def _agree(self, rows: Sequence[Tensor]) -> bool:
        """All ranks learn whether one has a loss that is not finite, or was asked to stop.

        Usually before the update. Where the device itself skips an unsound update, the host reads the flags of the
        previous update, so it never waits for the device. Such a run stops one step late, without harm: the weights
        stay as they were, and the flags of a step that is logged, saved or evaluated are always read first.

        Raises:
            DivergenceError: on all ranks alike.
        """
        engines = [learner.engine for learner in self.learners]
        flaws = torch.stack([learner.flaw for learner in self.learners])  # [L]
        squared_norms = torch.stack([engine.squared_gradient_norm() for engine in engines])  # [L]
        newest = Agreement(self.step + 1, rows, flaws, squared_norms, self._around.stop.requested)
        for engine, squared_norm in zip(engines, newest.squared_norms, strict=True):
            engine.prepare_update(newest.unsound, squared_norm)
        self._unread.append(newest)
        deferred = all(engine.skips_on_device for engine in engines)
        must_know = self._plan.shows_at(newest.step) or not deferred
        stop_asked = False
        while self._unread and (must_know or stop_asked or len(self._unread) > 1):
            stop_asked |= self._settle(self._unread.popleft())
        return stop_asked

    def _settle(self, agreement: Agreement) -> bool:
        """Read the flags of an update, and return whether a rank was asked to stop.

        Raises:
            DivergenceError: the update is unsound; on all ranks alike.
        """
        verdict = agreement.read()
        for number, learner in enumerate(self.learners):
            if verdict.loss_unsound[number]:
                self._raise_divergence(agreement, learner, verdict.loss_unsound_here[number])
            if verdict.gradient_unsound[number]:
                raise gradient_error(agreement.step, learner)
        return verdict.stop_asked

    def _raise_divergence(self, agreement: Agreement, learner: Learner, unsound_here: bool) -> None:
        names = [self._around.image_name(row) for row in agreement.images] if unsound_here else []
        report = {rank: ", ".join(images[:4]) for rank, images in enumerate(dist.gather_objects(names)) if images}
        where = "; ".join(f"rank {rank}: {images}, ..." for rank, images in report.items())
        message = (
            f"step {agreement.step}: the loss{learner.of_name} is not finite on rank {', '.join(map(str, report))}; "
            f"this update was not made. Images of its batch: {where}. {learner.start_again}, "
            "with a lower optim.base_lr or optim.clip_grad_norm=1 if it recurs"
        )
        raise dist.alike_on_all(DivergenceError(message))

    def _log(self) -> None:
        figures = [learner.figures() for learner in self.learners]  # waits for the device, so that rates are true
        of_all = {"train/images_seen": float(self.step * self._plan.global_batch_size), **self._throughput.pop()}
        if dist.is_main():
            self._data_wait.look(of_all)
        of_all["perf/memory_gib"] = memory_gib()
        for learner, own in zip(self.learners, figures, strict=True):
            metrics = own | of_all
            learner.tracker.log_metrics(metrics | {"perf/ranks": float(dist.world_size())}, self.step)
            self._around.view.report(self.step, metrics, learner.name)
