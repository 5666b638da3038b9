"""What a suite refuses before anything is started: looks at settings, folders, images and weights, and trains nothing.

Finished runs that are not what it asks for now, images and teachers that are not there, batches that its processes
can't share, and what would stop its follow-ups at their start, hours later.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

from dmt_ds.commands.annotations.annotated_tasks import kind_of
from dmt_ds.commands.suites.suite_state import changed, changed_follow_up, is_judged, is_trained, is_tuned, left_of
from dmt_ds.commands.training.runs import check_zero_stage, open_images
from dmt_ds.commands.training.tasks import image_size_of_start
from dmt_ds.config.batch import plan_batch
from dmt_ds.config.deepspeed import named_ds_config
from dmt_ds.config.images import WHERE_IMAGES_ARE
from dmt_ds.config.schema import TEACHER_TASKS, DataConfig, RunConfig
from dmt_ds.config.suite_follow_ups import KINDS, FollowUp
from dmt_ds.config.suite_plan import SuitePlan
from dmt_ds.config.suite_run import SuiteRun
from dmt_ds.config.train import TrainConfig
from dmt_ds.data.folder import existing
from dmt_ds.data.sources import open_source
from dmt_ds.data.splits import split_files
from dmt_ds.errors import ConfigError, DataError, WeightsError
from dmt_ds.models.encoders import load_encoder, load_teacher


def check_finished(plan: SuitePlan, runs: Sequence[SuiteRun], only_what_is_here: bool = False) -> None:
    """Whether what is finished, and will be kept, is what the suite asks for now; a tuned run waits for its value.

    Args:
        plan: all of the suite.
        runs: those to make.
        only_what_is_here: pass over images and weights that can't be looked at here, for others will look.

    Raises:
        ConfigError: one line for each run that is not.
    """
    found = [(changed_follow_up if is_tuned(plan, run) else changed)(run, only_what_is_here) for run in runs]
    if lines := [line for line in found if line is not None]:
        raise ConfigError("\n".join(lines))


def check_inputs(plan: SuitePlan, runs: Sequence[SuiteRun]) -> None:
    """Whether images and teachers of what is not done yet can be opened, each once; not the teachers that it makes.

    Raises:
        ConfigError: one line for each that can't, whatever the number of runs.
    """
    looks = {key: look for run in runs if not is_judged(run) for key, look in _inputs(plan, run)}
    found: list[str] = []
    for look in looks.values():
        try:
            look()
        except (ConfigError, DataError, WeightsError) as error:
            found += str(error).splitlines()
    if found:
        raise ConfigError("\n".join(f"{plan.file.label}: {line}" for line in dict.fromkeys(found)))


def check_batches(plan: SuitePlan, runs: Sequence[SuiteRun], ranks_of: Callable[[str], int | None]) -> None:
    """Whether the global batch of what is to be trained can be cut for so many processes.

    Args:
        plan: all of the suite.
        runs: those to make.
        ranks_of: processes of runs by their role, of what is done with their encoders by its command; None where nobody
            knows yet.

    Raises:
        ConfigError: one line for each batch that can't, whatever the number of runs.
    """
    to_train: list[tuple[str, TrainConfig]] = [(run.role, run.config.train) for run in runs if not is_trained(run)]
    to_train += [(follow_up.kind.name, follow_up.config.train) for run in runs for follow_up in left_of(run)]
    follow_ups, found = {kind.name for kind in KINDS}, []
    for what, train in to_train:
        ranks = ranks_of(what)
        try:
            if ranks is not None:
                plan_batch(train.global_batch_size, train.micro_batch_size, ranks)
        except ConfigError as error:
            of_it = f"{what}: {error}; for it alone: {what}.set.train.micro_batch_size=..."
            found.append(f"{plan.file.label}: {of_it if what in follow_ups else error}")
    if found:
        raise ConfigError("\n".join(dict.fromkeys(found)))


def _inputs(plan: SuitePlan, run: SuiteRun) -> Iterator[tuple[object, Callable[[], object]]]:
    """What a run still reads, and how to see whether it can be read: one that is trained is judged without teachers."""
    config, section = run.config, run.config.data
    kind = kind_of(config)
    where = section.model_dump_json(include=set(WHERE_IMAGES_ARE))
    yield (where, kind and config.task), partial(_open_images, config)
    if is_trained(run):
        return
    teachers = config.teachers.used() if config.task in TEACHER_TASKS else {}
    for name, teacher in teachers.items():
        if not Path(teacher.source).is_relative_to(plan.teachers_folder):
            key = (name, teacher.model_dump_json(), section.image_size)
            yield key, partial(load_teacher, name, teacher, section.image_size)
    start = config.student.init_from
    if start is not None and not Path(start).is_relative_to(plan.teachers_folder):
        size = image_size_of_start(config)
        yield (start, size), partial(load_encoder, start, size, "student.init_from")


def _open_images(config: RunConfig) -> None:
    _, splits = open_images(config)
    if splits is None:
        open_source(config.data, "val")  # frozen encoders are judged there


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
        check_zero_stage(config, named_ds_config(config.train.deepspeed))
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
