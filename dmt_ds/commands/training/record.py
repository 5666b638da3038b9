"""What a run says of itself: in its checkpoints, and in its MLflow run with all that describes it."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from dmt_ds.commands.annotations.annotated_tasks import kind_of
from dmt_ds.commands.run_folder import run_of, settings_of
from dmt_ds.commands.training.fenced_tracker import FencedTracker
from dmt_ds.commands.training.pretraining_methods import losses_in_use
from dmt_ds.commands.training.resume import ResumePlan
from dmt_ds.commands.training.run_record import data_name, recorded_settings
from dmt_ds.commands.training.runs import Run
from dmt_ds.commands.training.tasks import BuiltTask
from dmt_ds.config.deepspeed import DsConfig, precision, zero_stage
from dmt_ds.config.schema import TEACHER_TASKS, RunConfig
from dmt_ds.engine import dist
from dmt_ds.engine.checkpoints.checkpoint import RunState
from dmt_ds.engine.checkpoints.fence import Fence
from dmt_ds.models.encoders import EncoderRecord
from dmt_ds.run_files import (
    ATTEMPTS_FOLDER,
    CHANGES_FILE,
    ENVIRONMENT_FILE,
    SETTINGS_FILE,
    STUDENT_ENGINE_FILE,
    TEACHER_ENGINES_FILE,
)
from dmt_ds.storage import holds, unwritten
from dmt_ds.tracking.environment import (
    code_changes,
    code_fingerprint,
    environment_record,
    environment_tags,
    library_versions,
)
from dmt_ds.tracking.journal import remove_leftovers, write_atomically
from dmt_ds.tracking.mlflow_tracker import open_tracker
from dmt_ds.tracking.spool import known_run
from dmt_ds.tracking.tracker import Tracker

FAILURE_TAG = "failure"
"""Why the newest attempt failed, in one line."""


def run_state(run: Run, built: BuiltTask, step: int, mlflow_run_id: str | None) -> RunState:
    """What a checkpoint of this step says of the run."""
    fingerprint, ranks = run.source.fingerprint, dist.world_size()
    state = checkpoint_state(run.config, run.ds_config, built.sources, fingerprint, built.parameters, ranks, step)
    return replace(state, mlflow_run_id=mlflow_run_id)


def checkpoint_state(
    config: RunConfig,
    ds_config: DsConfig,
    sources: Mapping[str, EncoderRecord],
    data_fingerprint: str,
    parameters: str,
    world_size: int,
    step: int = 0,
) -> RunState:
    """What checkpoints say of a run that is like this, and what `refuse_another_run` holds them against.

    Args:
        ds_config: the student's, resolved.
        sources: all weights that the result derives from, by the name of the teacher, or `init_from`.
        data_fingerprint: of the training images.
        parameters: as `hash_of_parameters` gives it.
    """
    return RunState(
        step=step,
        images_seen=step * config.train.global_batch_size,
        world_size=world_size,
        zero_stage=zero_stage(ds_config),
        precision=precision(ds_config),
        config=config.model_dump(mode="json"),
        teachers={name: record.sha256 or "unknown" for name, record in sources.items()},
        data_fingerprint=data_fingerprint,
        parameters=parameters,
        code=code_fingerprint(),
        libraries=library_versions(),
    )


def open_record(run: Run, resume: ResumePlan | None, fence: Fence | None) -> Tracker:
    """The record of the run, on rank 0; nobody writes it but whoever has the run, and from now on it is to be closed.

    Raises:
        TrackingError: the store can't be used at all.
    """
    run_id = resume.checkpoint.state.mlflow_run_id if resume else None
    tracker = open_tracker(run.config.tracking, run.folder, run.config.name, run_id, dist.is_main())
    return tracker if fence is None else FencedTracker(tracker, fence)


def describe(tracker: Tracker, run: Run, built: BuiltTask, fence: Fence | None, resume: ResumePlan | None) -> None:
    """Put all that describes the run into its record, on rank 0.

    Raises:
        CheckpointError: a file of it can't be written, or a newer attempt has taken the run over.
    """
    if not dist.is_main():
        return
    config = run.config
    attempts = {} if fence is None else {"attempts": str(fence.number)}
    # The store has each point once: of steps that are made again by other settings it keeps what they were.
    changed = {"changed_at_step": str(resume.checkpoint.state.step)} if resume and resume.is_changed else {}
    tracker.set_tags({**_tags(run, built), FAILURE_TAG: "", **attempts, **changed, **environment_tags(os.environ)})
    records = {name: record.as_params() for name, record in built.sources.items()}
    weights = {f"teachers.{name}.{key}": value for name, told in records.items() for key, value in told.items()}
    tracker.log_params({**recorded_settings(config), **_derived(run), **weights})
    data = config.data
    tracker.log_dataset(data_name(data), data.path or data.source, run.source.fingerprint, "training")
    described = {
        STUDENT_ENGINE_FILE: run.ds_config,
        **({TEACHER_ENGINES_FILE: built.teacher_ds_configs} if built.teacher_ds_configs else {}),
        ENVIRONMENT_FILE: environment_record(),
    }
    texts = {name: json.dumps(content, indent=1) for name, content in described.items()}
    if (changes := code_changes()) or (run.folder / CHANGES_FILE).exists():
        texts[CHANGES_FILE] = changes
    for name, text in texts.items():
        keep(run.folder, name, text, fence)
    _log_files(tracker, run.folder, [*texts, SETTINGS_FILE], fence)


def keep(folder: Path, name: str, text: str, fence: Fence | None) -> None:
    """A file that describes the run, as it is now; what it was in earlier attempts stays in folders of theirs.

    An attempt that has no such file of its own has that of the attempt before.

    Raises:
        CheckpointError: it can't be written, or a newer attempt has taken the run over.
    """
    if fence is not None:
        fence.check()
        if not holds(folder / name, text):
            write_text(_own_folder(folder, fence) / name, text)
    write_text(folder / name, text)


def _log_files(tracker: Tracker, folder: Path, names: Sequence[str], fence: Fence | None) -> None:
    for name in names:
        tracker.log_artifact(folder / name)
    if fence is not None and _own_folder(folder, fence).exists():
        tracker.log_artifact(_own_folder(folder, fence), ATTEMPTS_FOLDER)


def _own_folder(folder: Path, fence: Fence) -> Path:
    return folder / ATTEMPTS_FOLDER / f"{fence.number:04d}"


def write_text(path: Path, text: str) -> None:
    """A small file of a run's folder, which is replaced as a whole.

    Raises:
        CheckpointError: the disk is full, or the folder can't be written; what was there still is.
        StorageError: the disk or file server does not answer.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(path.parent, f"{path.name}.*.tmp")
        write_atomically(path, text)
    except OSError as error:
        raise unwritten(f"{path}: can't be written ({error.strerror})", error) from error


def _tags(run: Run, built: BuiltTask) -> dict[str, str]:
    """What runs are found and compared by."""
    config = run.config
    return {
        "stage": stage_of(config),
        "task": config.task,
        "student": config.student.arch,
        "teachers": "+".join(built.teachers) or "none",
        "losses": "+".join(losses_in_use(config)) or config.task,
        "world_size": str(dist.world_size()),
        "device": run.device.type,
        "threads": str(torch.get_num_threads()),
        **({} if built.kernel is None else {"kernel": built.kernel}),
        **({} if config.student.init_from is None else origin_tags(config.student.init_from)),
    }


def _derived(run: Run) -> dict[str, float]:
    """What follows from settings and the number of images; no settings, which `derived.` says."""
    size = run.config.train.global_batch_size
    return {
        "derived.steps": run.length.total_steps,
        "derived.images": run.length.total_steps * size,
        "derived.peak_lr": run.config.optim.peak_lr(size),
    }


def stage_of(config: RunConfig) -> str:
    """Which part of the work a run is, for MLflow: `distill`, `pretrain`, `linear`, `finetune`, ..."""
    if config.task in TEACHER_TASKS:
        return "distill"
    kind = kind_of(config)
    return "pretrain" if kind is None else kind.stage(config)


def origin_tags(source: str) -> dict[str, str]:
    """Tags by which a run is found from the one that its weights come from, and the other way round."""
    run = run_of(source)
    if run is None:
        return {"init_from": source}
    run_id = known_run(run)
    found = {"init_from": source, "init_from.run_name": settings_of(run).name}
    return found if run_id is None else {**found, "init_from.run_id": run_id}
