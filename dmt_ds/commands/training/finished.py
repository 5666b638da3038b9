"""Whether a start has anything left to do; looks at a run's folder, and touches nothing."""

from collections.abc import Sequence
from pathlib import Path

from dmt_ds.commands.training.runs import Run
from dmt_ds.config.load import to_yaml
from dmt_ds.config.schema import RunConfig
from dmt_ds.engine import dist
from dmt_ds.engine.checkpoints.checkpoint import read_run_state, tag_of
from dmt_ds.engine.checkpoints.manifest import sizes_in
from dmt_ds.errors import CheckpointError
from dmt_ds.run_files import CHECKPOINTS_FOLDER, DONE, PUBLISHED, SETTINGS_FILE
from dmt_ds.storage import holds
from dmt_ds.tracking.environment import code_fingerprint
from dmt_ds.tracking.spool import is_at_rest


def is_finished(config: RunConfig, runs: Sequence[Run]) -> bool:
    """Whether just this was trained to its last step, published and recorded; all ranks call.

    Called before teachers are loaded, so their files are not compared. If anything else differs from what the run
    left, a normal start finds out, and completes or refuses the run.

    Args:
        config: the run as it is started now.
        runs: it, or the members of its family.
    """
    return dist.decided_by_main(lambda: _is_finished(config, runs))


def nothing_to_do(config: RunConfig, runs: Sequence[Run]) -> str:
    """The message for a start of such a run."""
    elsewhere = "; `dmt-ds mlflow sync` copies its record to another store" if config.tracking.enabled else ""
    return f"finished at step {runs[0].length.total_steps} already; nothing to do{elsewhere}"


def _is_finished(config: RunConfig, runs: Sequence[Run]) -> bool:
    folder = Path(config.output_dir)
    return (
        config.train.resume == "auto"
        and holds(folder / DONE, f"{runs[0].length.total_steps}\n")
        and holds(folder / SETTINGS_FILE, to_yaml(config))
        and all(_is_complete(run) for run in runs)
    )


def _is_complete(run: Run) -> bool:
    step = run.length.total_steps
    checkpoint = run.folder / CHECKPOINTS_FOLDER / tag_of(step)
    try:
        state = read_run_state(checkpoint)
    except CheckpointError:
        return False
    return (
        holds(run.folder / DONE, f"{step}\n")
        and all(sizes_in(run.folder / name) == sizes_in(checkpoint / name) for name in PUBLISHED)
        and state.data_fingerprint == run.source.fingerprint
        and state.code == code_fingerprint()
        and (not run.config.tracking.enabled or is_at_rest(run.folder))
    )
