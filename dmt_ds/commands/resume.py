"""Whether, and how, a run goes on from its newest checkpoint; refuses to mix two different runs."""

import logging
from dataclasses import dataclass

from dmt_ds.config.load import flatten_tree
from dmt_ds.config.resume import differences
from dmt_ds.engine import dist, ds_engine
from dmt_ds.engine.checkpoint import Checkpoint, CheckpointFolder, RunState
from dmt_ds.errors import CheckpointError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ResumePlan:
    """A checkpoint to go on from, and how DeepSpeed reads it."""

    checkpoint: Checkpoint
    universal: bool
    """The world size changed: the checkpoint goes through DeepSpeed's universal form."""

    @property
    def tag(self) -> str:
        """DeepSpeed's tag to load."""
        return f"{self.checkpoint.tag}_universal" if self.universal else self.checkpoint.tag


def plan_resume(folder: CheckpointFolder, now: RunState, resume: str) -> ResumePlan | None:
    """The newest complete checkpoint of this run, converted where the world size changed; None to start afresh.

    Args:
        now: what the run is as started now (`step` does not matter).
        resume: `auto` or `never`.

    Raises:
        CheckpointError: there is a checkpoint, but of another run, or `resume` is `never`.
    """
    checkpoint = folder.newest()
    if checkpoint is None:
        return None
    if resume == "never":
        raise CheckpointError(
            f"{checkpoint.folder}: there is a checkpoint and train.resume is 'never': "
            "choose another output_dir, or train.resume=auto"
        )
    refuse_another_run(checkpoint, now)
    plan = ResumePlan(checkpoint, universal=checkpoint.state.world_size != now.world_size)
    if plan.universal:
        _convert(plan, now.world_size)
    logger.info("resuming from %s (step %d)", checkpoint.folder, checkpoint.state.step)
    return plan


def refuse_another_run(checkpoint: Checkpoint, now: RunState) -> None:
    """Compare recipe, teachers, data and engine with those of the checkpoint.

    Raises:
        CheckpointError: one line a difference.
    """
    saved = checkpoint.state
    lines = differences(flatten_tree(saved.config), flatten_tree(now.config))
    lines += [
        f"teacher {name}: weights sha256 {_short(saved.teachers.get(name))} -> {_short(now.teachers.get(name))}"
        for name in sorted({*saved.teachers, *now.teachers})
        if saved.teachers.get(name) != now.teachers.get(name)
    ]
    for what in ("data_fingerprint", "precision", "zero_stage"):
        before, after = getattr(saved, what), getattr(now, what)
        if before != after:
            lines.append(f"{what}: {_short(before)} -> {_short(after)}")
    if lines:
        head = f"{checkpoint.folder}: is of another run (saved -> now); choose another output_dir, or go back to:"
        raise CheckpointError("\n".join([head, *lines]))


def _convert(plan: ResumePlan, world_size: int) -> None:
    folder = plan.checkpoint.folder
    logger.info("%s: converting from %d to %d ranks", folder, plan.checkpoint.state.world_size, world_size)
    problem = None
    if dist.is_main():
        try:
            ds_engine.to_universal(folder, folder.parent / plan.tag)
        except Exception as error:  # whatever it is, the other ranks wait for the answer
            problem = f"{folder}: conversion to {world_size} ranks failed: {type(error).__name__}: {error}"
    problem = dist.from_main(problem)
    if problem is not None:
        raise CheckpointError(problem)


def _short(value: object) -> str:
    return "none" if value is None else str(value)[:12]
