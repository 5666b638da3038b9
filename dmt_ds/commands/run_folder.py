"""A run's folder as other commands find it: whose folder it is, its settings, its step, and scores added later."""

import logging
from collections.abc import Mapping
from pathlib import Path

from dmt_ds.config.load import config_from_yaml
from dmt_ds.config.schema import RunConfig
from dmt_ds.engine.checkpoints.checkpoint import CheckpointFolder
from dmt_ds.run_files import CHECKPOINTS_FOLDER, DONE, PUBLISHED, SETTINGS_FILE
from dmt_ds.tracking.mlflow_tracker import add_metrics

logger = logging.getLogger(__name__)


def is_run(folder: Path) -> bool:
    """Whether it is the output folder of a run, finished or not."""
    return (folder / SETTINGS_FILE).is_file()


def run_of(source: str) -> Path | None:
    """The output folder of the run that a source is or lies in: itself, its encoder, a checkpoint; None for others."""
    path = Path(source).expanduser()
    if not path.exists():
        return None
    path = path.absolute()
    if is_run(path):
        return path
    parts = (*PUBLISHED, CHECKPOINTS_FOLDER)
    return next((part.parent for part in (path, *path.parents) if part.name in parts and is_run(part.parent)), None)


def settings_of(folder: Path) -> RunConfig:
    """What the run of a folder was asked for.

    Raises:
        ConfigError: its settings can't be read by this version; names the file.
    """
    path = folder / SETTINGS_FILE
    return config_from_yaml(path.read_text(), str(path))


def step_of_run(folder: Path) -> int:
    """The step at which a run's encoder stands: its last one, or its newest checkpoint's."""
    if (folder / DONE).exists():
        return int((folder / DONE).read_text())
    newest = CheckpointFolder(folder / CHECKPOINTS_FOLDER, keep=1).newest()
    return 0 if newest is None else newest.state.step


def add_to_run(folder: Path, metrics: Mapping[str, float], step: int | None = None) -> None:
    """Add what was measured to the MLflow run of a run's folder.

    Args:
        step: of what was measured; None takes the one at which the run's encoder stands.
    """
    section = settings_of(folder).tracking
    arrived = add_metrics(section, folder, metrics, step_of_run(folder) if step is None else step)
    if section.enabled and not arrived:
        logger.warning(
            "%s: the tracking store is unreachable; the scores are kept in the folder and sent later", folder
        )
