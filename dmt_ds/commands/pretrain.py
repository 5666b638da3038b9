"""`dmt-ds pretrain`: puts a run together, trains it, and leaves the encoder in `<output_dir>/backbone`."""

import logging
from functools import partial

from dmt_ds.commands.classify import Judge
from dmt_ds.commands.publish import export_weights, publish_pictures, publish_weights
from dmt_ds.commands.record import open_record, run_state
from dmt_ds.commands.resume import ResumePlan, plan_resume, prepare
from dmt_ds.commands.runs import Run, resolve
from dmt_ds.commands.tasks import BuiltTask, build_task
from dmt_ds.config.load import to_yaml
from dmt_ds.config.schema import RunConfig
from dmt_ds.data.loader import TrainLoader
from dmt_ds.data.sampling import SampleStream
from dmt_ds.downstream.classification import ClassificationTask
from dmt_ds.engine import dist, ds_engine
from dmt_ds.engine.checkpoint import DONE, CheckpointFolder
from dmt_ds.engine.ds_engine import StudentEngine
from dmt_ds.engine.fence import Fence
from dmt_ds.engine.learner import Learner
from dmt_ds.engine.optim import build_optimizer, warmup_cosine
from dmt_ds.engine.peers import Peers
from dmt_ds.engine.progress import ProgressView
from dmt_ds.engine.step_profile import FOLDER as PROFILE_FOLDER
from dmt_ds.engine.step_profile import StepProfile
from dmt_ds.engine.stopping import StopRequest, Watchdog
from dmt_ds.engine.trainer import Outcome, Surroundings, Trainer, TrainPlan
from dmt_ds.tracking.tracker import Tracker

logger = logging.getLogger(__name__)

GROUP_SLACK_SECONDS = 120.0
"""Collectives wait so much longer than the watchdog: it, not they, ends a hanging job."""


def run(config: RunConfig) -> int:
    """Train on all ranks; 0 when finished, or stopped after a save."""
    stop = StopRequest().install()
    hang = config.train.hang_timeout_seconds
    device = ds_engine.start(hang + GROUP_SLACK_SECONDS)
    peers = Peers()
    watchdog = Watchdog(hang, dist.rank(), peers).start()
    with peers.together():
        resolved = resolve(config, device)
        built = build_task(config, device, resolved.labelled.class_names if resolved.labelled else ())
        watchdog.beat("built teachers")
        outcome = _train(resolved, built, stop, watchdog)
        watchdog.stop()
    ds_engine.stop()
    logger.info("%s: %s", resolved.folder, outcome.value)
    return 0


def _train(run: Run, built: BuiltTask, stop: StopRequest, watchdog: Watchdog) -> Outcome:
    checkpoints, resume, fence = _take_over(run, built)
    tracker = open_record(run, built, resume, fence)
    watchdog.last_words = lambda: _record_failure(tracker, fence)
    try:
        learner = _build_learner(run, built, checkpoints, resume, tracker, fence)
        around = _surroundings(run, stop, watchdog)
        judge = _judge(run, built, learner, around)
        if judge and resume is None:
            judge.look_at_images()
        trainer = _build_trainer(run, built, learner, resume, around)
        outcome = trainer.fit()
        if outcome is Outcome.FINISHED:
            if judge:
                judge.finish(trainer.step)
            _publish(run, built, learner, trainer.step)
    except BaseException:
        _record_failure(tracker, fence)
        raise
    watchdog.beat("sending the last metrics")
    tracker.finish("FINISHED" if outcome is Outcome.FINISHED else "KILLED")
    dist.barrier()
    return outcome


def _judge(run: Run, built: BuiltTask, learner: Learner, around: Surroundings) -> Judge | None:
    """What judges a task with labels; the trainer asks it every so often."""
    if not isinstance(built.task, ClassificationTask) or run.labelled is None:
        return None
    beat = around.watchdog.beat
    judge = Judge(built.task, learner.engine, run.labelled, run.config, run.folder, learner.tracker, beat)
    around.evaluate = judge.judge
    return judge


def _record_failure(tracker: Tracker, fence: Fence | None) -> None:
    """An attempt whose run was taken over leaves the record to the one that has it now."""
    if fence is None or fence.holds():
        tracker.finish("FAILED")


def _take_over(run: Run, built: BuiltTask) -> tuple[CheckpointFolder, ResumePlan | None, Fence | None]:
    """Refuse what does not belong together while nothing is touched; then claim the run and look again."""
    now = run_state(run, built, 0, None)
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


def _build_learner(
    run: Run,
    built: BuiltTask,
    checkpoints: CheckpointFolder,
    resume: ResumePlan | None,
    tracker: Tracker,
    fence: Fence | None,
) -> Learner:
    learner = Learner(
        built.task,
        _build_engine(run, built, resume),
        checkpoints,
        lambda step: run_state(run, built, step, tracker.run_id),
        partial(export_weights, run.config, built),
        tracker,
        fence,
    )
    if resume:
        learner.resume(resume.checkpoint, resume.tag)
    return learner


def _surroundings(run: Run, stop: StopRequest, watchdog: Watchdog) -> Surroundings:
    view = ProgressView(run.config.name, run.length.total_steps, visible=dist.is_main())
    steps = run.config.train.profile_steps if dist.is_main() else None
    profile = StepProfile(steps, run.length.total_steps, run.folder / PROFILE_FOLDER, run.device) if steps else None
    return Surroundings(view, stop, watchdog, run.source.name, profile)


def _build_trainer(
    run: Run, built: BuiltTask, learner: Learner, resume: ResumePlan | None, around: Surroundings
) -> Trainer:
    train = run.config.train
    plan = TrainPlan(
        total_steps=run.length.total_steps,
        global_batch_size=train.global_batch_size,
        grad_accum_steps=run.batch.grad_accum_steps,
        log_every_steps=train.log_every_steps,
        save_every_steps=train.save_every_steps,
        stop_after_step=train.stop_after_step,
        eval_every_images=train.eval_every_epochs * len(run.source),
    )
    return Trainer([learner], _loader(run, built), plan, around, step=resume.checkpoint.state.step if resume else 0)


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


def _publish(run: Run, built: BuiltTask, learner: Learner, step: int) -> None:
    """The encoder, the pictures, and the mark that the run is done."""
    if dist.is_main():
        publish_weights(run.folder, run.folder / "checkpoints" / f"step{step:08d}")
    if run.config.tracking.pictures:
        publish_pictures(run.folder, learner, run.source, run.config)
    if dist.is_main():
        (run.folder / DONE).write_text(f"{step}\n")
