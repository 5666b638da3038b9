"""This project's own side of the benchmarks: a trainer on random teachers, built as `dmt-ds pretrain` builds one."""

import argparse
from collections.abc import Callable, Iterator, Sequence
from itertools import repeat
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from dmt_ds.commands.training.compiling import compiles
from dmt_ds.commands.training.tasks import build_task
from dmt_ds.config.batch import plan_batch
from dmt_ds.config.deepspeed import find_ds_config, precision, resolve_student
from dmt_ds.config.methods import AugmentConfig
from dmt_ds.config.optim import OptimConfig
from dmt_ds.config.schema import DataConfig, RunConfig, StudentConfig
from dmt_ds.config.teachers import TeacherConfig, TeachersConfig
from dmt_ds.config.tracking import TrackingConfig
from dmt_ds.config.train import TrainConfig
from dmt_ds.data.batch import Batch
from dmt_ds.data.batch_maker import TrainBatchMaker
from dmt_ds.data.loader import BATCHES_AHEAD, TrainLoader
from dmt_ds.data.sampling import SampleStream
from dmt_ds.data.sources import open_source
from dmt_ds.engine import dist
from dmt_ds.engine.checkpoints.checkpoint import CheckpointFolder, RunState
from dmt_ds.engine.checkpoints.checkpoint_group import CheckpointGroup
from dmt_ds.engine.deepspeed import ds_engine
from dmt_ds.engine.learner import Learner
from dmt_ds.engine.optim import build_optimizer, fusing_pays
from dmt_ds.engine.progress import ProgressView
from dmt_ds.engine.ranks.peers import Peers
from dmt_ds.engine.ranks.stopping import StopRequest, Watchdog
from dmt_ds.engine.task import CroppingTask
from dmt_ds.engine.trainer import Surroundings, Trainer, TrainPlan
from dmt_ds.models.backbone_folder import save_backbone
from dmt_ds.models.gelu import OneExpGelu
from dmt_ds.models.products import PatchProduct
from dmt_ds.models.vit import build_vit, prefer_written_attention
from dmt_ds.tracking.tracker import NullTracker

NO_JITTER = AugmentConfig(brightness=0, contrast=0, saturation=0)


def make_teachers(
    folder: Path, arch: str, count: int, image_size: int, depth: int | None = None
) -> dict[str, TeacherConfig]:
    """Encoders on disk with random weights: time does not depend on their values."""
    section = StudentConfig(arch=arch, depth=depth, drop_path=0.0)
    vit = build_vit(section, image_size)
    models = {}
    for number in range(count):
        torch.manual_seed(number)
        for parameter in vit.parameters():
            if parameter.ndim > 1:
                nn.init.normal_(parameter, std=0.02)
        path = folder / f"teacher{number}"
        save_backbone(path, vit.state_dict(), section, image_size, provenance={"task": "random", "teachers": {}})
        models[f"teacher{number}"] = TeacherConfig(source=str(path))
    return models


def teachers_section(models: dict[str, TeacherConfig], *, bf16: bool) -> TeachersConfig:
    """Whole copies: on one device there is nothing to cut."""
    name = "teacher_zero3_inference" if bf16 else "teacher_zero3_inference_fp32"
    return TeachersConfig(models=models, sharding="replicate", deepspeed=name)


def our_config(options: argparse.Namespace, models: dict[str, TeacherConfig], *, compiled: bool) -> RunConfig:
    teachers = teachers_section(models, bf16=options.bf16)
    return RunConfig(
        data=DataConfig(image_size=options.image_size, num_workers=0),
        augment=NO_JITTER,
        teachers=teachers.model_copy(update={"compile": compiled}),
        student=StudentConfig(arch=options.student, drop_path=0.0),
        optim=OptimConfig(base_lr=1.5e-4 * 256 / options.batch),  # the peers' rate, whatever the batch
        train=TrainConfig(
            global_batch_size=options.batch,
            micro_batch_size=options.batch,
            deepspeed="student_zero2_bf16" if options.bf16 else "student_zero2_fp32",
            compile=compiled,
        ),
        tracking=TrackingConfig(enabled=False),
    )


def build_trainer(config: RunConfig, tasks: Sequence[CroppingTask], folder: Path, device: torch.device) -> Trainer:
    """A trainer of these tasks over the digits, scaled up to the image size."""
    batch = plan_batch(config.train.global_batch_size, config.train.micro_batch_size, dist.world_size())
    ds_config = resolve_student(find_ds_config(config.train.deepspeed), batch, 0.0)
    size = config.train.global_batch_size
    source = open_source(config.data, "train")
    loader = TrainLoader(
        TrainBatchMaker(source, tasks[0].crops(config.data), 0, "stop"),
        SampleStream(len(source), 0),
        micro_batch_size=config.train.micro_batch_size,
        rank=dist.rank(),
        world_size=dist.world_size(),
        num_workers=config.data.num_workers,
        pin_memory=device.type == "cuda",
    )
    # A log step costs more than others: if some sides had one among the steps that are timed, ratios would be off.
    plan = TrainPlan(10**6, size, batch.grad_accum_steps, log_every_steps=10**6, save_every_steps=10**6)
    view = ProgressView("benchmark", 1, visible=False)
    around = Surroundings(view, StopRequest(), Watchdog(1e6, 0, Peers()), source.name)

    def no_record(step: int) -> RunState:
        return RunState(step, 0, 1, 2, "bf16", {})

    def no_export(engine: ds_engine.StudentEngine, folder: Path, step: int) -> None:
        return

    checkpoints = CheckpointFolder(folder, 1)
    learners = []
    for task in tasks:
        fused = fusing_pays(device.type, precision(ds_config) == "bf16")
        optimizer = build_optimizer(task.module, config.optim, size, fused=fused)
        engine = ds_engine.build_student(task.module, optimizer, lambda step: 1.0, ds_config)
        if compiles(config.train.compile, "student", device):
            engine.compile()
        learners.append(Learner(task, engine, checkpoints, no_record, no_export, NullTracker()))
    return Trainer(learners, CheckpointGroup([checkpoints]), loader, plan, around)


def log_step(trainer: Trainer, batches: Iterator[Batch]) -> None:
    """One update that is a log step: of the trainers here only the first update is one, so this is made the first."""
    trainer.step = 0
    trainer.update(batches)


def settle(step: Callable[[], object], batches: Iterator[Batch], num_workers: int) -> None:
    """Untimed steps after which a side's loader is where training has it.

    While others were timed its processes made all that they may make ahead. That is taken away, as it would be had for
    nothing. But then all of them begin a batch at once, and the next step waits until the first is done, as a run does
    only at its start. So as many steps follow as batches are in flight.
    """
    in_flight = num_workers * BATCHES_AHEAD
    for _ in range(in_flight):
        next(batches)
    for _ in range(max(1, in_flight)):  # one at least: the first after another side's finds its memory scattered
        step()


class Ours:
    """The whole trainer, on one batch that lies on the device."""

    def __init__(self, config: RunConfig, folder: Path, device: torch.device, images: Tensor) -> None:
        """Build the task; `copies` may be taken before `start` hands the student to its engine."""
        self._config, self._folder, self._device = config, folder, device
        self.task = build_task(config, device).task
        numbers = torch.arange(len(images))  # on the host, where the loader has them: the trainer reads rows from there
        if device.type == "cuda":
            numbers = numbers.pin_memory()  # as the loader has them, too: the host does not wait until they are copied
        self._batches: Iterator[Batch] = repeat(Batch((images,), numbers.to(device), numbers, numbers))
        self.loss: Tensor | None = None

    @property
    def student(self) -> nn.Module:
        return self.task.module.vit  # type: ignore[return-value]

    @property
    def adapter(self) -> nn.Module:
        return self.task.module.adapters["fused"]  # type: ignore[index, return-value]

    def start(self) -> None:
        self._trainer = build_trainer(self._config, [self.task], self._folder, self._device)
        engine = self._trainer.learners[0].engine
        backward = engine.backward

        def noted(loss: Tensor) -> None:
            self.loss = loss.detach()
            backward(loss)

        engine.backward = noted  # type: ignore[method-assign]
        self._trainer.learners[0].start()

    def step(self) -> Tensor:
        """One update; gives the loss, without waiting for it."""
        self._trainer.update(self._batches)
        assert self.loss is not None
        return self.loss


def local_teachers(config: RunConfig) -> list[nn.Module]:
    """Plain ViTs with the weights of the config's teachers, in float32 on the CPU."""
    from dmt_ds.commands.training.teacher_engines import load_teachers

    return [model.vit for model in load_teachers(config.teachers, config.data.image_size).values()]


def as_timm_has_it(vit: nn.Module) -> nn.Module:
    """Without what this project does to its ViTs, for peers."""
    for layer in vit.modules():
        if isinstance(layer, PatchProduct):
            layer.__class__ = nn.Conv2d
        elif isinstance(layer, OneExpGelu):
            layer.__class__ = nn.GELU
    return vit


def flops_an_image(options: argparse.Namespace) -> dict[str, float]:
    """Of the model, not of the hardware: forward of all teachers; forward and backward of the student and adapter."""

    def count(arch: str, *, backward: bool, width: int = 0) -> tuple[float, int]:
        vit = build_vit(StudentConfig(arch=arch, drop_path=0.0), options.image_size)
        prefer_written_attention(vit)  # which the counter sees through
        adapter = nn.Linear(vit.embed_dim, width) if width and width != vit.embed_dim else nn.Identity()
        with FlopCounterMode(display=False) as counter:
            tokens = adapter(vit.forward_features(torch.zeros(1, 3, options.image_size, options.image_size)))
            if backward:
                tokens.sum().backward()
        return float(counter.get_total_flops()), vit.embed_dim

    teacher, width = count(options.teacher, backward=False)
    student, _ = count(options.student, backward=True, width=width)
    return {"teachers": options.teachers * teacher, "student": student}
