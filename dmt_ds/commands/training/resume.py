"""Whether, and how, a run goes on from its newest checkpoint; refuses to mix two different runs."""

import logging
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from dmt_ds.config.load import flatten_tree
from dmt_ds.config.resume import as_trained, differences
from dmt_ds.config.schema import RunConfig
from dmt_ds.config.section import OF_TRAINED
from dmt_ds.engine import dist
from dmt_ds.engine.checkpoints.checkpoint import Checkpoint, RunState
from dmt_ds.engine.checkpoints.checkpoint_group import CheckpointGroup
from dmt_ds.engine.checkpoints.manifest import unread
from dmt_ds.engine.checkpoints.pickles import refuse_programs
from dmt_ds.engine.deepspeed import ds_engine
from dmt_ds.errors import CheckpointError
from dmt_ds.storage import is_away
from dmt_ds.wording import few_counted

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ResumePlan:
    """A checkpoint to go on from, and how DeepSpeed reads it."""

    checkpoint: Checkpoint
    universal: bool
    """The world size changed: the checkpoint goes through DeepSpeed's universal form, unless ranks hold it whole."""
    is_changed: bool = False
    """It belongs to a different run, which `train.accept_changes` accepts: later losses don't continue earlier ones."""

    @property
    def tag(self) -> str:
        """DeepSpeed's tag to load."""
        return f"{self.checkpoint.tag}_universal" if self.universal else self.checkpoint.tag


def plan_resume(
    checkpoints: CheckpointGroup, now: Sequence[RunState], resume: str, *, warns: bool = True
) -> list[ResumePlan] | None:
    """The newest complete checkpoint of each model, as rank 0 sees it; None to start afresh. All ranks call.

    Args:
        checkpoints: of the run, or of all members of a family, which go on from one step.
        now: what each is as started now (`step` does not matter).
        resume: `auto` or `never`.
        warns: of differences that the run goes on with.

    Raises:
        CheckpointError: there is a checkpoint, but of another run, or one that would run a program, or `resume` is
            `never`; nothing was touched.
        StorageError: one can't be read.
    """
    return dist.decided_by_main(lambda: _plan(checkpoints, now, resume, warns))


def _plan(checkpoints: CheckpointGroup, now: Sequence[RunState], resume: str, warns: bool) -> list[ResumePlan] | None:
    newest = checkpoints.newest()
    if newest is None:
        return None
    if resume == "never":
        raise CheckpointError(
            f"{newest[0].folder}: there is a checkpoint and train.resume is 'never': "
            "choose another output_dir, or train.resume=auto"
        )
    plans = []
    for checkpoint, state in zip(newest, now, strict=True):
        goes_on = refuse_another_run(checkpoint, state)
        if warns:
            for line in goes_on:
                logger.warning("%s: %s", checkpoint.folder, line)
        refuse_programs(checkpoint.folder)
        universal = checkpoint.state.world_size != state.world_size and state.zero_stage > 0
        plans.append(ResumePlan(checkpoint, universal, bool(_differences(checkpoint.state, state))))
    return plans


def refuse_another_run(checkpoint: Checkpoint, now: RunState) -> list[str]:
    """Compare recipe, teachers, data, code, engine and parameters with those of the checkpoint.

    Other versions of libraries are no reason to refuse, for clusters are updated while runs last; they count as other
    code where `train.deterministic` asks for the same bits.

    Returns:
        What differs and is gone on with, one line each.

    Raises:
        CheckpointError: one line a difference that train.accept_changes does not name.
    """
    train = now.config.get("train", {})
    accepted = train.get("accept_changes", ())
    found, goes_on = _differences(checkpoint.state, now), []
    if libraries := _other_libraries(checkpoint.state.libraries, now.libraries):
        if train.get("deterministic"):
            found.append(("code", libraries))
        else:
            goes_on.append(f"resuming; losses may differ because of {libraries}")
    goes_on += [f"resuming despite an accepted difference: {line}" for kind, line in found if kind in accepted]
    refused = [(kind, line) for kind, line in found if kind not in accepted]
    if not refused:
        return goes_on
    kinds = list(dict.fromkeys(kind for kind, _ in refused))
    accept = "" if "engine" in kinds else f", or accept it with train.accept_changes=[{','.join([*accepted, *kinds])}]"
    head = (
        f"{checkpoint.folder}: belongs to a different run (saved -> now); "
        f"choose another output_dir{accept}, or restore:"
    )
    raise CheckpointError("\n".join([head, *(line for _, line in refused)]))


def _differences(saved: RunState, now: RunState) -> list[tuple[str, str]]:
    """(what train.accept_changes calls it, or `engine` for what no run can go on with; one line) each."""
    settings = differences(flatten_tree(in_todays_settings(saved.config)), flatten_tree(now.config))
    found = [("recipe", line) for line in settings]
    found += [
        ("teachers", f"teacher {name}: weights sha256 {_short(before)} -> {_short(after)}")
        for name in sorted({*saved.teachers, *now.teachers})
        if (before := saved.teachers.get(name)) != (after := now.teachers.get(name))
    ]
    for what in ("data_fingerprint", "precision", "zero_stage", "parameters"):
        before, after = getattr(saved, what), getattr(now, what)
        if before != after:
            kind = "data" if what == "data_fingerprint" else "engine"
            why = ", a hash of the names and shapes of all that is trained" if what == "parameters" else ""
            found.append((kind, f"{what}: {_short(before)} -> {_short(after)}{why}"))
    if saved.code and (others := sorted(dict(saved.code.items() ^ now.code.items()))):
        found.append(("code", f"code: {few_counted(others, 4)} of dmt_ds differ"))
    return found


def _other_libraries(saved: Mapping[str, str], now: Mapping[str, str]) -> str:
    """What differs in one line; empty where nothing does, or where the checkpoint kept none."""
    changed = [
        f"{library} {before or 'none'} -> {after or 'none'}"
        for library in sorted({*saved, *now})
        if (before := saved.get(library)) != (after := now.get(library))
    ]
    return f"libraries: {', '.join(changed)}" if saved and changed else ""


def in_todays_settings(saved: Mapping[str, Any]) -> Mapping[str, Any]:
    """A checkpoint's settings with the defaults of those that are newer than it: an update of dmt_ds ends no run."""
    try:
        return RunConfig.model_validate(as_trained(saved), context=OF_TRAINED).model_dump(mode="json")
    except ValidationError:
        return saved  # a setting is gone: the comparison names it


def prepare(plan: ResumePlan, world_size: int) -> None:
    """Convert the checkpoint where the world size changed; all ranks call.

    Raises:
        CheckpointError: DeepSpeed can't convert it.
        StorageError: it can't be read.
    """
    folder = plan.checkpoint.folder
    logger.info("resuming from %s (step %d)", folder, plan.checkpoint.state.step)
    if not plan.universal:
        return
    logger.info("%s: converting from %d to %d ranks", folder, plan.checkpoint.state.world_size, world_size)

    def convert() -> None:
        try:
            shutil.rmtree(folder.parent / plan.tag, ignore_errors=True)
            ds_engine.to_universal(folder, folder.parent / plan.tag)
        except Exception as error:
            if is_away(error):
                raise unread(folder, error) from error
            reason = f"{type(error).__name__}: {error}"
            raise CheckpointError(f"{folder}: conversion to {world_size} ranks failed: {reason}") from error

    dist.decided_by_main(convert)


def _short(value: object) -> str:
    """The beginning of a hash, and in brackets how many images of it are used, as the source's fingerprint has it."""
    head, bracket, part = ("none" if value is None else str(value)).partition("[")
    return head[:12] + bracket + part
