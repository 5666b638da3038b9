"""What `dmt-ds judge` is asked to judge: which run, which of its models, by which settings; reads no weights."""

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dmt_ds.commands.annotations.annotated import AnnotatedKind
from dmt_ds.commands.annotations.annotated_tasks import kind_of
from dmt_ds.commands.readouts.frozen_encoders import shown_value
from dmt_ds.commands.run_folder import run_of, settings_of, step_of_run
from dmt_ds.config.load import COMMAND_LINE, flatten, load_layers
from dmt_ds.config.schema import RunConfig
from dmt_ds.engine.checkpoints.checkpoint import CheckpointFolder, unusable
from dmt_ds.errors import ConfigError
from dmt_ds.run_files import BACKBONE_FOLDER, CHECKPOINTS_FOLDER, DONE, PUBLISHED, SETTINGS_FILE

logger = logging.getLogger(__name__)

_SHAPE_OF_ALL = ("task", "data.image_size", "augment.mean", "augment.std")
"""Settings that the weights of every kind are of, beside the whole section `student`."""


@dataclass(frozen=True)
class JudgedModel:
    """A run's model and the settings by which it is judged.

    Attributes:
        source: as it was asked for.
        run: output folder of the run.
        folder: of the model, with its head.
        config: the run's settings, and over them those of the command line.
        step: that its weights are of.
        is_running_mean: whether they are the running mean of the run's weights.
        overrides: those of the command line.
    """

    source: str
    run: Path
    folder: Path
    config: RunConfig
    step: int
    is_running_mean: bool
    overrides: tuple[str, ...]

    @property
    def kind(self) -> AnnotatedKind[Any, Any]:
        """What the run's task does with annotations."""
        kind = kind_of(self.config)
        assert kind is not None
        return kind

    @property
    def called(self) -> str:
        """What people call the model."""
        return PUBLISHED[self.kind.folder]


def find_model_to_judge(source: str, overrides: Sequence[str]) -> JudgedModel:
    """The model of a run, of one of its checkpoints, or of a model's folder in either.

    Args:
        overrides: KEY=VALUE, which win over the run's settings.

    Raises:
        ConfigError: there is no such model, it has no head, or a setting would be another model's.
    """
    run = run_of(source)
    if run is None:
        raise ConfigError(_not_of_a_run(source))
    own = settings_of(run)
    kind = kind_of(own)
    asked = Path(source).expanduser().absolute().relative_to(run).parts
    if kind is None or asked[-1:] == (BACKBONE_FOLDER,):
        raise ConfigError(
            f"{source}: is an encoder without a head, so there are no answers to judge: `dmt-ds evaluate -e {source}` "
            "judges its features"
        )
    folder = _folder_of_model(source, run, asked, kind)
    config = load_layers(str(run / SETTINGS_FILE), [(COMMAND_LINE, overrides)], new=False)
    _refuse_another_model(own, config, kind)
    step = _step_of(folder / kind.described_in)
    step = step_of_run(run) if step is None else step
    return JudgedModel(source, run, folder, config, step, kind.averages(own), tuple(overrides))


def _not_of_a_run(source: str) -> str:
    if not Path(source).expanduser().exists():
        return f"{source}: no such folder; name a run's output folder, a checkpoint in it, or its model's folder"
    return (
        f"{source}: lies in no run, whose {SETTINGS_FILE} would say how it is judged; name the run that it comes from "
        f"(`dmt-ds evaluate -e {source}` judges the features of any encoder)"
    )


def _folder_of_model(source: str, run: Path, asked: Sequence[str], kind: AnnotatedKind[Any, Any]) -> Path:
    """Where the model lies; `asked` are the names that lead to it from the run's folder."""
    holder = run
    if asked[:1] == (CHECKPOINTS_FOLDER,):
        holder, asked = run.joinpath(*asked[:2]), asked[2:]
        if problem := unusable(holder):
            raise ConfigError(f"{source}: is no complete checkpoint ({problem}); name another one")
    elif not asked and not (run / DONE).exists():
        holder = _newest_checkpoint(source, run)
    folder = holder / kind.folder
    if tuple(asked) not in ((), (kind.folder,)) or not (folder / kind.described_in).is_file():
        raise ConfigError(
            f"{source}: there is no {PUBLISHED[kind.folder]} in it; name the run, {run}, or one of its checkpoints"
        )
    return folder


def _newest_checkpoint(source: str, run: Path) -> Path:
    newest = CheckpointFolder(run / CHECKPOINTS_FOLDER, keep=1).newest()
    if newest is None:
        raise ConfigError(f"{source}: the run has not finished, and has saved nothing yet; wait for a checkpoint")
    logger.warning("%s: the run has not finished: its newest checkpoint, of step %d, is judged", run, newest.state.step)
    return newest.folder


def _refuse_another_model(own: RunConfig, given: RunConfig, kind: AnnotatedKind[Any, Any]) -> None:
    """What was trained can't be had otherwise; what only training looks at does not matter here."""
    before, after = flatten(own), flatten(given)
    keys = [key for key in before if key in (*_SHAPE_OF_ALL, *kind.shaped_by) or key.startswith("student.")]
    findings = [
        f"{key}={shown_value(after[key])}: the model was trained with {shown_value(before[key])}; leave the setting out"
        for key in keys
        if before[key] != after[key]
    ]
    if given.data.source == "digits" and given.data.val_split != own.data.val_split:
        findings.append(f"data.val_split={given.data.val_split}: data.source=digits has no other split: leave it out")
    if findings:
        raise ConfigError("\n".join(findings))


def _step_of(file: Path) -> int | None:
    """The step that a model's own folder says; None where it does not."""
    try:
        step = json.loads(file.read_text(encoding="utf-8"))["dmt_ds"]["step"]
    except (ValueError, KeyError, TypeError):
        return None
    return step if isinstance(step, int) else None
