"""Where the model lies that a person names, and the run that it comes from; reads no weights."""

from dataclasses import dataclass
from pathlib import Path

from dmt_ds.commands.run_folder import is_run
from dmt_ds.engine.checkpoints.checkpoint import CheckpointFolder
from dmt_ds.errors import ExportError
from dmt_ds.models.backbone_folder import CONFIG_FILE, family_members
from dmt_ds.run_files import CHECKPOINTS_FOLDER, DONE, PUBLISHED

_WHAT_TO_NAME = f"name a run's output folder, one of its checkpoints, or a folder with {CONFIG_FILE}"


@dataclass(frozen=True)
class ModelSource:
    """A folder in timm's form, and what is known of its origin.

    Attributes:
        folder: with config.json and model.safetensors.
        run: output folder of the run that made it; None where it lies in none.
    """

    folder: Path
    run: Path | None


def find_model(text: str) -> ModelSource:
    """The model of a run, of one of its checkpoints, or of a folder with a model: what learned labels, if anything did.

    Raises:
        ExportError: there is no such folder, no model in it, or the run has not finished.
    """
    path = Path(text).expanduser()
    if not path.exists():
        raise ExportError(f"{text}: no such folder; {_WHAT_TO_NAME}")
    if not path.is_dir():
        raise ExportError(f"{text}: is a file; {_WHAT_TO_NAME}")
    path = path.resolve()
    if is_run(path):
        if members := family_members(path):
            names = ", ".join(f"{text.rstrip('/')}/{member.name}" for member in members)
            raise ExportError(f"{text}: is a family's folder; name a member: {names}")
        _check_finished(path, text)
    for folder in (*(path / name for name in reversed(PUBLISHED)), path):
        if (folder / CONFIG_FILE).is_file():
            return ModelSource(folder, next(filter(is_run, (folder, *folder.parents[:3])), None))
    raise ExportError(f"{text}: there is no model in it; {_WHAT_TO_NAME}")


def find_own_form(text: str, name: str) -> Path | None:
    """The folder of a model that is no model of timm, of a run, a checkpoint, or itself; None where it is not there.

    Args:
        name: of the folder in a run; the file NAME.json in it describes the model.

    Raises:
        ExportError: the run has not finished.
    """
    path = Path(text).expanduser()
    if not path.is_dir():
        return None
    path = path.resolve()
    folder = next((found for found in (path / name, path) if (found / f"{name}.json").is_file()), None)
    if folder is not None and is_run(path):
        _check_finished(path, text)
    return folder


def _check_finished(run: Path, text: str) -> None:
    """A model from the middle of a run is taken only where it is named: its scores are others."""
    if (run / DONE).exists():
        return
    newest = CheckpointFolder(run / CHECKPOINTS_FOLDER, keep=1).newest()
    if newest is None:
        raise ExportError(f"{text}: the run has not finished, and has saved nothing yet")
    remedy = f"to take it, name {text.rstrip('/')}/{CHECKPOINTS_FOLDER}/{newest.tag}"
    raise ExportError(
        f"{text}: the run has not finished (its newest checkpoint is of step {newest.state.step}); {remedy}"
    )
