"""`dmt-ds pretrain`: puts a run together, trains it, and leaves the encoder in `<output_dir>/backbone`."""

import logging
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from dmt_ds.commands.annotations.annotated import AnnotatedImages, AnnotatedKind, Scene
from dmt_ds.commands.annotations.annotated_tasks import kind_of
from dmt_ds.commands.annotations.judged_run import JudgedRun
from dmt_ds.commands.training.compiling import compiles
from dmt_ds.commands.training.finished import is_finished, nothing_to_do
from dmt_ds.commands.training.knn_in_training import EncoderInTraining, KnnInTraining
from dmt_ds.commands.training.memory_remedies import what_to_lower
from dmt_ds.commands.training.open_records import OpenRecords
from dmt_ds.commands.training.pretraining_methods import method_of
from dmt_ds.commands.training.publish import export_weights, publish_pictures, publish_weights
from dmt_ds.commands.training.record import run_state, write_text
from dmt_ds.commands.training.run_log import end_noted
from dmt_ds.commands.training.runs import Run, resolve
from dmt_ds.commands.training.take_over import Attempt, ClaimedRun, take_over
from dmt_ds.commands.training.tasks import BuiltTask, build_tasks
from dmt_ds.config.deepspeed import precision
from dmt_ds.config.schema import RunConfig
from dmt_ds.data.batch_maker import BatchMaker, TrainBatchMaker
from dmt_ds.data.labels import LabelledImages, empty_classes
from dmt_ds.data.loader import TrainLoader
from dmt_ds.data.sampling import SampleStream
from dmt_ds.engine import determinism, dist
from dmt_ds.engine.checkpoints.checkpoint import tag_of
from dmt_ds.engine.deepspeed import ds_engine
from dmt_ds.engine.deepspeed.ds_engine import StudentEngine
from dmt_ds.engine.learner import Learner
from dmt_ds.engine.optim import build_optimizer, fusing_pays, learning_rate_schedule, weight_decay_schedule
from dmt_ds.engine.progress import ProgressView
from dmt_ds.engine.ranks.memory_errors import explained
from dmt_ds.engine.ranks.peers import Peers
from dmt_ds.engine.ranks.stopping import StopRequest, Watchdog
from dmt_ds.engine.schedule import with_frozen_groups
from dmt_ds.engine.step_profile import StepProfile
from dmt_ds.engine.task import AnnotatedTask, CroppingTask, Task
from dmt_ds.engine.trainer import Outcome, Surroundings, Trainer, TrainPlan
from dmt_ds.run_files import DONE, LOG_FILE, PROFILE_FOLDER
from dmt_ds.tracking.tracker import Tracker

logger = logging.getLogger(__name__)

Beat = Callable[[str], None]
"""Told what the rank is at, which is alive."""

GROUP_SLACK_SECONDS = 120.0
"""Collectives wait so much longer than the watchdog: it, not they, ends a hanging job."""


def run(config: RunConfig) -> int:
    """Train on all ranks; 0 when finished, or stopped after a save."""
    stop = StopRequest().install()
    hang = config.train.hang_timeout_seconds
    if config.train.deterministic:
        determinism.switch_on()
    # At the end all wait in a collective for what rank 0 still sends.
    device = ds_engine.start(hang + GROUP_SLACK_SECONDS + _store_seconds(config))
    peers = Peers()
    watchdog = Watchdog(hang, dist.rank(), peers).start()
    with end_noted(), peers.together(), explained(partial(what_to_lower, config)):
        runs = resolve(config, device)
        if is_finished(config, runs):
            told = nothing_to_do(config, runs)
        else:
            splits = runs[0].splits
            builts = build_tasks([run.config for run in runs], device, splits.class_names if splits else ())
            watchdog.beat("built teachers")
            told = _train(config, take_over(config, runs, builts), stop, watchdog, peers).value
        watchdog.stop()
    ds_engine.stop()
    logger.info("%s: %s", config.output_dir, told)
    return 0


def _train(config: RunConfig, attempt: Attempt, stop: StopRequest, watchdog: Watchdog, peers: Peers) -> Outcome:
    records = OpenRecords(Path(config.output_dir) / LOG_FILE, _store_seconds(config), watchdog)
    with records.closed_on_failure(peers), explained(partial(what_to_lower, config)):  # explained for the record too
        outcome = _fit(config, attempt, records, stop, watchdog)
    attempt.check_fences()
    records.finish("FINISHED" if outcome is Outcome.FINISHED else "KILLED")
    dist.barrier()
    return outcome


def _fit(config: RunConfig, attempt: Attempt, records: OpenRecords, stop: StopRequest, watchdog: Watchdog) -> Outcome:
    """Train, and publish where it is done."""
    trackers = [records.open(member) for member in attempt.members]
    learners = [_build_learner(*pair) for pair in zip(attempt.members, trackers, strict=True)]
    judge = _judge(attempt, learners, watchdog.beat, stop)
    around = _surroundings(config, attempt, stop, watchdog, judge)
    trainer = _build_trainer(config, attempt, learners, around)
    outcome = trainer.fit()
    if outcome is Outcome.FINISHED:
        if judge is not None:
            judge.finish(trainer.step)
        for member, learner in zip(attempt.members, learners, strict=True):
            watchdog.beat("publishing")
            attempt.check_fences()
            _publish(member, learner, trainer.step)
        attempt.check_fences()
        if dist.is_main():
            write_text(Path(config.output_dir) / DONE, f"{trainer.step}\n")
    return outcome


def _judge(
    attempt: Attempt, learners: Sequence[Learner], beat: Beat, stop: StopRequest
) -> JudgedRun | KnnInTraining | None:
    """What judges the run at its end and, asked by the trainer, every so often; looks at a new run's images first."""
    run, is_new = attempt.members[0].run, not attempt.step
    if run.splits is None:
        return None
    if (kind := kind_of(run.config)) is not None:
        return _judged_run(kind, run, run.splits, learners[0], beat, is_new)
    encoders = [_in_training(*pair) for pair in zip(attempt.members, learners, strict=True)]
    assert isinstance(run.splits, LabelledImages)
    knn = KnnInTraining(encoders, run.splits, beat, stop_asked=lambda: stop.requested)
    if is_new:
        for line in empty_classes(run.splits) if dist.is_main() else ():
            logger.warning("%s", line)
        knn.evaluate(0)
    return knn


def _in_training(claimed: ClaimedRun, learner: Learner) -> EncoderInTraining:
    return EncoderInTraining(claimed.run.config, claimed.built.task, learner.engine, learner.tracker)


def _judged_run(
    kind: AnnotatedKind[Any, Any],
    run: Run,
    splits: AnnotatedImages,
    learner: Learner,
    beat: Beat,
    is_new: bool,
) -> JudgedRun:
    assert isinstance(learner.task, AnnotatedTask)
    judge = kind.build_judge(learner.task, splits.test, Scene(run.config, beat))
    if is_new:
        for line in kind.unseen(splits) if dist.is_main() else ():
            logger.warning("%s", line)
        judge.look_at_images()
    return JudgedRun(judge, learner.engine, run.config, run.folder, learner.tracker, beat)


def _store_seconds(config: RunConfig) -> float:
    """How long the records of all members may take to their end."""
    return max(1, len(config.family)) * config.tracking.drain_seconds


def _build_engine(run: Run, built: BuiltTask, universal: bool) -> StudentEngine:
    config, module = run.config, built.task.module
    fused = fusing_pays(run.device.type, bf16=precision(run.ds_config) == "bf16")
    size, length = config.train.global_batch_size, run.length
    optimizer = build_optimizer(
        module, config.optim, size, fused=fused, layers=built.layers, frozen_until=built.frozen_until
    )
    factor = learning_rate_schedule(config.optim, size, length.warmup_steps, length.total_steps)
    engine = ds_engine.build_student(
        module,
        optimizer,
        with_frozen_groups(optimizer, factor, length.total_steps),
        run.ds_config,
        decay=weight_decay_schedule(config.optim, length.total_steps),
        universal=universal,
    )
    if compiles(config.train.compile, "student", run.device, read_inside=method_of(config).reads_inside):
        engine.compile()
    return engine


def _build_learner(claimed: ClaimedRun, tracker: Tracker) -> Learner:
    run, built, resume = claimed.run, claimed.built, claimed.resume
    learner = Learner(
        built.task,
        _build_engine(run, built, universal=resume is not None and resume.universal),
        claimed.checkpoints,
        lambda step: run_state(run, built, step, tracker.run_id),
        partial(export_weights, run.config, built),
        tracker,
        run.member,
    )
    if resume:
        learner.resume(resume.checkpoint, resume.tag)
    return learner


def _surroundings(
    config: RunConfig,
    attempt: Attempt,
    stop: StopRequest,
    watchdog: Watchdog,
    judge: JudgedRun | KnnInTraining | None,
) -> Surroundings:
    run = attempt.members[0].run
    total_steps = run.length.total_steps
    view = ProgressView(config.name, total_steps, visible=dist.is_main())
    steps = config.train.profile_steps if dist.is_main() else None
    folder = Path(config.output_dir) / PROFILE_FOLDER
    profile = StepProfile(steps, total_steps, folder, run.device, attempt.step) if steps else None
    evaluate = None if judge is None else judge.evaluate
    return Surroundings(view, stop, watchdog, run.source.name, profile, evaluate)


def _build_trainer(config: RunConfig, attempt: Attempt, learners: Sequence[Learner], around: Surroundings) -> Trainer:
    train, first = config.train, attempt.members[0]
    plan = TrainPlan(
        total_steps=first.run.length.total_steps,
        global_batch_size=train.global_batch_size,
        grad_accum_steps=first.run.batch.grad_accum_steps,
        log_every_steps=train.log_every_steps,
        save_every_steps=train.save_every_steps,
        stop_after_step=train.stop_after_step,
        eval_every_images=train.eval_every_epochs * len(first.run.source),
    )
    loader = _loader(first.run, first.built)
    return Trainer(learners, attempt.checkpoints, loader, plan, around, step=attempt.step)


def _loader(run: Run, built: BuiltTask) -> TrainLoader:
    return TrainLoader(
        _train_maker(run, built.task),
        SampleStream(len(run.source), run.config.seed),
        micro_batch_size=run.config.train.micro_batch_size,
        rank=dist.rank(),
        world_size=dist.world_size(),
        local_world_size=dist.local_world_size(),
        num_workers=run.config.data.num_workers,
        pin_memory=run.device.type == "cuda",
    )


def _train_maker(run: Run, task: Task) -> BatchMaker:
    config, kind = run.config, kind_of(run.config)
    if kind is not None:
        return kind.train_maker(config, run.splits, task)
    assert isinstance(task, CroppingTask)
    return TrainBatchMaker(run.source, task.crops(config.data), config.seed, config.data.bad_images)


def _publish(member: ClaimedRun, learner: Learner, step: int) -> None:
    """The encoder, the pictures, and the mark that the run is done."""
    run = member.run
    if dist.is_main():
        publish_weights(run.folder, member.checkpoints.folder / tag_of(step))
    if run.config.tracking.pictures:
        publish_pictures(run.folder, learner, run.source, run.config)
    if dist.is_main():
        write_text(run.folder / DONE, f"{step}\n")
        if kind_of(run.config) is None and run.source.class_names:
            logger.info("`dmt-ds evaluate -e %s` measures its features", run.folder)
