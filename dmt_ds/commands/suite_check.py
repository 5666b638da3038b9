"""What a suite refuses before anything is started: looks at settings and folders only.

Finished runs that are not what it asks for now, and what would stop its follow-ups at their start, hours later.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

from dmt_ds.commands.runs import check_zero_stage
from dmt_ds.commands.suite_state import changed, changed_follow_up, is_tuned, left_of
from dmt_ds.config.deepspeed import find_ds_config, read_ds_config
from dmt_ds.config.schema import DataConfig
from dmt_ds.config.suite_follow_ups import FollowUp
from dmt_ds.config.suite_plan import SuitePlan
from dmt_ds.config.suite_run import SuiteRun
from dmt_ds.data.folder import existing
from dmt_ds.data.splits import split_files
from dmt_ds.errors import ConfigError, DataError


def check_finished(plan: SuitePlan, runs: Sequence[SuiteRun]) -> None:
    """Whether what is finished, and will be kept, is what the suite asks for now; a tuned run waits for its value.

    Raises:
        ConfigError: one line for each run that is not.
    """
    found = [changed_follow_up(run) if is_tuned(plan, run) else changed(run) for run in runs]
    if lines := [line for line in found if line is not None]:
        raise ConfigError("\n".join(lines))


def check_follow_ups(runs: Sequence[SuiteRun]) -> None:
    """Whether what is left to do with the runs' encoders can be done.

    Raises:
        ConfigError: one line for each that can't, whatever the number of runs.
    """
    found = [finding for run in runs for follow_up in left_of(run) for finding in _findings(follow_up)]
    if found:
        raise ConfigError("\n".join(dict.fromkeys(found)))


def _findings(follow_up: FollowUp) -> Iterator[str]:
    config, kind = follow_up.config, follow_up.kind.name
    before = f"{follow_up.run.file.label}: {kind}: "
    try:
        check_zero_stage(config, read_ds_config(find_ds_config(config.train.deepspeed)))
    except ConfigError as error:
        yield f"{before}{error}; for it alone: {kind}.set.train.deepspeed=..."
    if config.data.path == follow_up.run.config.data.path:
        return  # the run itself says what is wrong there, at its start
    try:
        _look_for(config.data)
    except DataError as error:
        yield f"{before}{error}; give {kind}.set.data.path=..."


def _look_for(section: DataConfig) -> None:
    """Find the images' folder or files, and open none."""
    if section.source == "folder":
        existing(Path(section.path or "").expanduser().absolute(), "data.path")
    elif section.source in ("parquet", "webdataset"):
        split_files(section, "train")
        split_files(section, "val")
