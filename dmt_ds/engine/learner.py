"""One model in training: its task, engine, checkpoints and record; knows no loop, no method, no library but torch."""

import math
from collections.abc import Callable
from pathlib import Path

import torch

from dmt_ds.data.batch import Batch
from dmt_ds.engine import dist
from dmt_ds.engine.checkpoints import rng_state
from dmt_ds.engine.checkpoints.checkpoint import Checkpoint, CheckpointFolder, RunState
from dmt_ds.engine.checkpoints.manifest import answering
from dmt_ds.engine.checkpoints.untrained import restore_untrained, untrained_state
from dmt_ds.engine.deepspeed.ds_engine import StudentEngine
from dmt_ds.engine.task import Progress, Task
from dmt_ds.errors import DivergenceError, DmtError
from dmt_ds.tracking.meters import MeanMeters
from dmt_ds.tracking.tracker import Tracker

TASK_STATE = "task_state.pt"


class Learner:
    """What the loop trains; it decides when, this knows how.

    Attributes:
        name: in messages, of one among several; empty where it is alone.
        flaw: 0 while all losses since the last update are finite, else NaN: scalar float32 on the device.
    """

    def __init__(
        self,
        task: Task,
        engine: StudentEngine,
        checkpoints: CheckpointFolder,
        record: Callable[[int], RunState],
        export: Callable[[StudentEngine, Path, int], None],
        tracker: Tracker,
        name: str = "",
    ) -> None:
        """Put the parts together.

        Args:
            record: step -> what a checkpoint says of the run.
            export: (engine, folder, step) -> writes the encoder into a checkpoint's folder; all ranks call.
        """
        self.task = task
        self.engine = engine
        self.tracker = tracker
        self.name = name
        self.flaw = torch.zeros((), device=engine.device)
        self._checkpoints = checkpoints
        self._record = record
        self._export = export
        self._meters = MeanMeters()
        self._learning_rate = 0.0
        self._skipped_steps = 0
        self._has_checkpoint = False

    def resume(self, checkpoint: Checkpoint, tag: str) -> None:
        """Go on from a checkpoint; `tag` is its own, or that of its universal form.

        Raises:
            CheckpointError: it does not fit.
            StorageError: it can't be read.
        """
        self.engine.load(checkpoint.folder.parent, tag)
        with answering(checkpoint.folder):
            state = torch.load(checkpoint.folder / TASK_STATE, map_location=self.engine.device, weights_only=True)
        restore_untrained(self.engine.module, state["untrained"])
        self.task.load_state_dict(state["task"])
        self._has_checkpoint = True
        if checkpoint.state.world_size == dist.world_size():
            with answering(checkpoint.folder):
                rng_state.restore(rng_state.path(checkpoint.folder, dist.rank()))

    def start(self) -> None:
        """Prepare for this process's first update."""
        self.engine.train()
        self._skipped_steps = self.engine.skipped_steps

    def learn(self, batch: Batch, progress: Progress, logs: bool) -> None:
        """Add one micro-batch's gradient; the batch lies on the device."""
        losses = self.task.losses(self.engine, batch, progress, logs)
        self.engine.backward(losses.loss)
        self.flaw = self.flaw + losses.loss.detach() * 0
        if logs:
            self._meters.add({"train/loss": losses.loss.detach(), **losses.metrics})

    def step(self) -> None:
        """Update the weights where accumulation is complete, else only count the micro-step."""
        self._learning_rate = self.engine.learning_rate
        self.engine.step()

    def check_update(self, step: int, looks: bool) -> None:
        """Raise if the gradient was not finite, which a finite loss doesn't rule out: never log or save such an update.

        Args:
            step: the update that was made.
            looks: read the norm from the device too; an update that DeepSpeed skipped is noticed without.

        Raises:
            DivergenceError: on all ranks alike, as the norm is that of all.
        """
        self.flaw = torch.zeros((), device=self.engine.device)
        norm = self.engine.gradient_norm() if looks else None
        if self.engine.skipped_steps > self._skipped_steps or (norm is not None and not math.isfinite(norm)):
            raise gradient_error(step, self)

    @property
    def of_name(self) -> str:
        """` of NAME` in messages."""
        return f" of {self.name}" if self.name else ""

    @property
    def start_again(self) -> str:
        """What can be done after a failure, as the beginning of a sentence."""
        if self._has_checkpoint:
            return "Start again to resume from the newest checkpoint"
        return "There is no checkpoint yet: start again"

    def figures(self) -> dict[str, float]:
        """Means since the last call over micro-batches and ranks, learning rate, gradient; waits for the device."""
        metrics = self._meters.pop_means(dist.mean_over_ranks)
        metrics["train/lr"] = self._learning_rate
        norm = self.engine.gradient_norm()
        return metrics if norm is None else metrics | {"train/grad_norm": norm}

    def save(self, step: int) -> None:
        """Write a checkpoint of this step; all ranks. Metrics are flushed first: these steps will not be repeated."""
        self.tracker.sync()
        self._checkpoints.save(self._record(step), lambda folder, tag: self._write(folder, tag, step))
        self._has_checkpoint = True

    def _write(self, folder: Path, tag: str, step: int) -> None:
        self.engine.save(folder, tag)
        rng_state.save(rng_state.path(folder / tag, dist.rank()))
        state = {"task": self.task.state_dict(), "untrained": untrained_state(self.engine.module)}
        if dist.is_main():
            torch.save(state, folder / tag / TASK_STATE)
        self._export(self.engine, folder / tag, step)


def gradient_error(step: int, learner: Learner) -> DmtError:
    """What each rank raises when the gradient of an update is not finite."""
    message = (
        f"step {step}: the gradient{learner.of_name} is not finite, though the loss is. {learner.start_again}, "
        "with a lower optim.base_lr if it recurs"
    )
    return dist.alike_on_all(DivergenceError(message))
