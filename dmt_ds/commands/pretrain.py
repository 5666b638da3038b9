"""`dmt-ds pretrain`: puts a run together, trains it, and leaves the encoder in `<output_dir>/backbone`."""

import json
import logging
import os
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from dmt_ds.commands.classify import judge, open_images
from dmt_ds.commands.publish import export_weights, publish_pictures, publish_weights
from dmt_ds.commands.resume import ResumePlan, plan_resume, prepare
from dmt_ds.commands.tasks import BuiltTask, build_task
from dmt_ds.config.batch import BatchPlan, LengthPlan, plan_batch, plan_length
from dmt_ds.config.deepspeed import find_ds_config, precision, resolve_student, zero_stage
from dmt_ds.config.load import flatten, to_yaml
from dmt_ds.config.schema import TEACHER_TASKS, RunConfig
from dmt_ds.data.labels import LabelledImages
from dmt_ds.data.loader import TrainLoader
from dmt_ds.data.sampling import SampleStream
from dmt_ds.data.sources import ImageSource
from dmt_ds.downstream.classification import ClassificationTask
from dmt_ds.engine import dist, ds_engine
from dmt_ds.engine.checkpoint import DONE, CheckpointFolder, RunState
from dmt_ds.engine.ds_engine import StudentEngine
from dmt_ds.engine.fence import Fence
from dmt_ds.engine.optim import build_optimizer, warmup_cosine
from dmt_ds.engine.peers import Peers
from dmt_ds.engine.progress import ProgressView
from dmt_ds.engine.step_profile import FOLDER as PROFILE_FOLDER
from dmt_ds.engine.step_profile import StepProfile
from dmt_ds.engine.stopping import StopRequest, Watchdog
from dmt_ds.engine.trainer import Outcome, Surroundings, Trainer, TrainPlan
from dmt_ds.errors import ConfigError
from dmt_ds.tracking.environment import environment_record, environment_tags
from dmt_ds.tracking.mlflow_tracker import open_tracker
from dmt_ds.tracking.tracker import Tracker

logger = logging.getLogger(__name__)

GROUP_SLACK_SECONDS = 120.0
"""Collectives wait so much longer than the watchdog: it, not they, ends a hanging job."""


@dataclass(frozen=True)
class Run:
    """What is resolved before anything large is built."""

    config: RunConfig
    folder: Path
    device: torch.device
    source: ImageSource
    batch: BatchPlan
    length: LengthPlan
    ds_config: dict[str, Any]
    labelled: LabelledImages | None
    """Both splits, where the task learns labels."""


def run(config: RunConfig) -> int:
    """Train on all ranks; 0 when finished, or stopped after a save."""
    stop = StopRequest().install()
    hang = config.train.hang_timeout_seconds
    device = ds_engine.start(hang + GROUP_SLACK_SECONDS)
    peers = Peers()
    watchdog = Watchdog(hang, dist.rank(), peers).start()
    with peers.together():
        resolved = _resolve(config, device)
        built = build_task(config, device, resolved.labelled.class_names if resolved.labelled else ())
        watchdog.beat("built teachers")
        outcome = _train(resolved, built, stop, watchdog)
        watchdog.stop()
    ds_engine.stop()
    logger.info("%s: %s", resolved.folder, outcome.value)
    return 0


def _resolve(config: RunConfig, device: torch.device) -> Run:
    batch = plan_batch(config.train.global_batch_size, config.train.micro_batch_size, dist.world_size())
    ds_config = resolve_student(find_ds_config(config.train.deepspeed), batch, config.optim.clip_grad_norm)
    if zero_stage(ds_config) == 3 and config.task in ("moco_v3", "ibot", "dino"):
        raise ConfigError(
            f"train.deepspeed={config.train.deepspeed} is ZeRO-3, but task {config.task} averages whole weights into "
            "its momentum network: use ZeRO-2 or ZeRO-1, e.g. train.deepspeed=student_zero2_bf16"
        )
    folder = Path(config.output_dir)
    dist.decided_by_main(lambda: _prepare(folder, config))
    source, labelled = open_images(config)
    length = plan_length(config.train, config.optim, len(source))
    logger.info(
        "%d images; %d steps of %d images = %d ranks x %d x %d accumulation",
        len(source),
        length.total_steps,
        config.train.global_batch_size,
        dist.world_size(),
        config.train.micro_batch_size,
        batch.grad_accum_steps,
    )
    return Run(config, folder, device, source, batch, length, ds_config, labelled)


def _prepare(folder: Path, config: RunConfig) -> None:
    """On rank 0, before the others look: the folder, its log, and the data set's cache, which is written once."""
    folder.mkdir(parents=True, exist_ok=True)
    _log_to_file(folder / "train.log")
    open_images(config)


def _train(run: Run, built: BuiltTask, stop: StopRequest, watchdog: Watchdog) -> Outcome:
    checkpoints, resume, fence = _take_over(run, built)
    tracker = _open_tracker(run, built, resume, fence)
    watchdog.last_words = lambda: _record_failure(tracker, fence)
    try:
        engine = _build_engine(run, built, resume)
        around = _surroundings(run, tracker, stop, watchdog, fence)
        trainer = _build_trainer(run, built, engine, checkpoints, around)
        if resume:
            trainer.resume(resume.checkpoint, resume.tag)
        outcome = trainer.fit()
        if outcome is Outcome.FINISHED:
            if isinstance(built.task, ClassificationTask) and run.labelled:
                judge(built.task, engine, run.labelled, run.config, trainer.step, tracker, watchdog.beat)
            _publish(run, built, trainer, tracker)
    except BaseException:
        _record_failure(tracker, fence)
        raise
    watchdog.beat("sending the last metrics")
    tracker.finish("FINISHED" if outcome is Outcome.FINISHED else "KILLED")
    dist.barrier()
    return outcome


def _record_failure(tracker: Tracker, fence: Fence | None) -> None:
    """An attempt whose run was taken over leaves the record to the one that has it now."""
    if fence is None or fence.holds():
        tracker.finish("FAILED")


def _take_over(run: Run, built: BuiltTask) -> tuple[CheckpointFolder, ResumePlan | None, Fence | None]:
    """Refuse what does not belong together while nothing is touched; then claim the run and look again."""
    now = _run_state(run, built, 0, None)
    folder, keep = run.folder / "checkpoints", run.config.train.keep_checkpoints
    plan_resume(CheckpointFolder(folder, keep), now, run.config.train.resume)
    fence = dist.decided_by_main(lambda: Fence.claim(run.folder))
    checkpoints = CheckpointFolder(folder, keep, fence)
    resume = plan_resume(checkpoints, now, run.config.train.resume)  # an older attempt may have saved until now
    if resume:
        prepare(resume, dist.world_size())
    if dist.is_main():
        (run.folder / "config.yaml").write_text(to_yaml(run.config))
    return checkpoints, resume, fence if dist.is_main() else None


def _build_engine(run: Run, built: BuiltTask, resume: ResumePlan | None) -> StudentEngine:
    config, module = run.config, built.task.module
    fused = run.device.type == "cuda"
    engine = ds_engine.build_student(
        module,
        build_optimizer(module, config.optim, config.train.global_batch_size, fused=fused, layers=built.layers),
        warmup_cosine(config.optim, config.train.global_batch_size, run.length.warmup_steps, run.length.total_steps),
        run.ds_config,
        universal=resume is not None and resume.universal,
    )
    if config.train.compile:
        engine.compile()
    return engine


def _surroundings(
    run: Run, tracker: Tracker, stop: StopRequest, watchdog: Watchdog, fence: Fence | None
) -> Surroundings:
    view = ProgressView(run.config.name, run.length.total_steps, visible=dist.is_main())
    steps = run.config.train.profile_steps if dist.is_main() else None
    profile = StepProfile(steps, run.length.total_steps, run.folder / PROFILE_FOLDER, run.device) if steps else None
    return Surroundings(tracker, view, stop, watchdog, run.source.name, fence, profile)


def _build_trainer(
    run: Run, built: BuiltTask, engine: StudentEngine, checkpoints: CheckpointFolder, around: Surroundings
) -> Trainer:
    train = run.config.train
    plan = TrainPlan(
        total_steps=run.length.total_steps,
        global_batch_size=train.global_batch_size,
        grad_accum_steps=run.batch.grad_accum_steps,
        log_every_steps=train.log_every_steps,
        save_every_steps=train.save_every_steps,
        stop_after_step=train.stop_after_step,
    )
    return Trainer(
        built.task,
        engine,
        _loader(run, built),
        plan,
        checkpoints,
        lambda step: _run_state(run, built, step, around.tracker.run_id),
        partial(export_weights, run.config, built),
        around,
    )


def _loader(run: Run, built: BuiltTask) -> TrainLoader:
    data = run.config.data
    return TrainLoader(
        run.source,
        SampleStream(len(run.source), run.config.seed),
        built.task.crops(data),
        run_seed=run.config.seed,
        micro_batch_size=run.config.train.micro_batch_size,
        rank=dist.rank(),
        world_size=dist.world_size(),
        local_world_size=dist.local_world_size(),
        num_workers=data.num_workers,
        pin_memory=run.device.type == "cuda",
        bad_images=data.bad_images,
    )


def _run_state(run: Run, built: BuiltTask, step: int, mlflow_run_id: str | None) -> RunState:
    return RunState(
        step=step,
        images_seen=step * run.config.train.global_batch_size,
        world_size=dist.world_size(),
        zero_stage=zero_stage(run.ds_config),
        precision=precision(run.ds_config),
        config=run.config.model_dump(mode="json"),
        teachers={name: record.sha256 or "unknown" for name, record in built.sources.items()},
        data_fingerprint=run.source.fingerprint,
        parameters=built.parameters,
        mlflow_run_id=mlflow_run_id,
    )


def _open_tracker(run: Run, built: BuiltTask, resume: ResumePlan | None, fence: Fence | None) -> Tracker:
    """The record of the run, on rank 0, with all that describes it."""
    config = run.config
    run_id = resume.checkpoint.state.mlflow_run_id if resume else None
    tracker = open_tracker(config.tracking, run.folder, config.name, run_id, dist.is_main())
    if not dist.is_main():
        return tracker
    attempts = {} if fence is None else {"attempts": str(fence.number)}
    tracker.set_tags({**_tags(run, built), **attempts, **environment_tags(os.environ)})
    records = {f"teachers.{name}": record.as_params() for name, record in built.sources.items()}
    tracker.log_params({**flatten(config), **{f"{t}.{k}": v for t, ps in records.items() for k, v in ps.items()}})
    tracker.log_dataset(config.data.source, config.data.path or config.data.source, run.source.fingerprint, "training")
    described = {
        "deepspeed_student.json": run.ds_config,
        "deepspeed_teachers.json": built.teacher_ds_configs,
        "environment.json": environment_record(),
    }
    for name, content in described.items():
        (run.folder / name).write_text(json.dumps(content, indent=1))
        tracker.log_artifact(run.folder / name)
    tracker.log_artifact(run.folder / "config.yaml")
    return tracker


def _tags(run: Run, built: BuiltTask) -> dict[str, str]:
    """What runs are found and compared by."""
    config = run.config
    return {
        "stage": "distill" if config.task in TEACHER_TASKS else "pretrain",
        "task": config.task,
        "student": config.student.arch,
        "teachers": "+".join(built.teachers) or "none",
        "losses": "+".join(losses_in_use(config)) or config.task,
        "world_size": str(dist.world_size()),
        "device": run.device.type,
        "threads": str(torch.get_num_threads()),
    }


def losses_in_use(config: RunConfig) -> list[str]:
    """Names of a distillation's losses whose weight is not 0."""
    weights = {
        "dmt": {"tfd": config.distill.tfd_weight, "sfd": config.distill.sfd_weight},
        "tinymim": {"qk": config.tinymim.qk_weight, "vv": config.tinymim.vv_weight},
    }
    return [name for name, weight in weights.get(config.task, {}).items() if weight > 0]


def _publish(run: Run, built: BuiltTask, trainer: Trainer, tracker: Tracker) -> None:
    """The encoder, the pictures, and the mark that the run is done."""
    if dist.is_main():
        publish_weights(run.folder, run.folder / "checkpoints" / f"step{trainer.step:08d}")
    if run.config.tracking.pictures:
        publish_pictures(run.folder, built, trainer, run.source, run.config, tracker)
    if dist.is_main():
        (run.folder / DONE).write_text(f"{trainer.step}\n")


def _log_to_file(path: Path) -> None:
    handler = logging.FileHandler(path)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logging.getLogger("dmt_ds").addHandler(handler)
