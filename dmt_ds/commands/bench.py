"""`dmt-ds bench`: this machine's rates for a recipe's shapes, with random weights, for `dmt-ds plan --calibration`."""

import datetime
import itertools
import logging
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from dmt_ds.commands.training.compiling import compiles
from dmt_ds.commands.training.pretraining_methods import method_of
from dmt_ds.commands.training.teacher_engines import start_teachers
from dmt_ds.config.deepspeed import named_ds_config
from dmt_ds.config.schema import TEACHER_TASKS, RunConfig, StudentConfig
from dmt_ds.config.section import IMAGENET_MEAN, IMAGENET_STD
from dmt_ds.data.batch_maker import TrainBatchMaker
from dmt_ds.data.loader import TrainLoader
from dmt_ds.data.sampling import SampleStream
from dmt_ds.data.sources import open_source
from dmt_ds.data.views import CropSpec
from dmt_ds.engine import dist, rates
from dmt_ds.engine.deepspeed import ds_engine, ds_teachers
from dmt_ds.errors import ConfigError, DmtError
from dmt_ds.models.encoders import EncoderRecord, FrozenEncoder
from dmt_ds.models.relations import RelationEncoder
from dmt_ds.models.student import Student
from dmt_ds.models.vit import build_vit, prefer_written_attention, shape_of
from dmt_ds.planning.layout import adapter_sizes, target_widths, teacher_sizes
from dmt_ds.planning.rates import Calibration
from dmt_ds.planning.vit_cost import VitSize

logger = logging.getLogger(__name__)

CPU_MICRO_BATCH = 8
"""Images at once on a CPU, which reaches its rate with few."""
LOADER_IMAGES = 64
_ROUNDS = 5
_HEAD_WIDTH = 64


def check_output(path: Path) -> None:
    """Whether the file can be written, before minutes go into what it is for; makes its folder.

    Raises:
        ConfigError: it can't.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            path.open("a").close()
        else:
            tempfile.TemporaryFile(dir=path.parent).close()
    except OSError as error:
        raise ConfigError(f"-o {path}: can't be written there ({error.strerror}); choose another file") from error


def run(config: RunConfig) -> Calibration:
    """Measure on all ranks; the slowest one's rates.

    Raises:
        ConfigError: the task has no teachers.
    """
    if config.task not in TEACHER_TASKS:
        raise ConfigError(f"task {config.task}: `dmt-ds bench` measures distillation only (dmt, tinymim)")
    device = ds_engine.start(600)
    micro_batch = config.train.micro_batch_size
    if device.type == "cpu":
        micro_batch = min(micro_batch, CPU_MICRO_BATCH)
    on_cpu = f"CPU, {torch.get_num_threads()} threads"
    calibration = Calibration(
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else on_cpu,
        date=datetime.date.today().isoformat(),
        micro_batch_size=micro_batch,
        teacher_flops=rates.slowest(_teacher_flops(config, device, micro_batch)),
        student_flops=rates.slowest(_student_flops(config, device, micro_batch)),
        loader_seconds=_loader_seconds(config) if dist.is_main() else None,
        gather_bytes=_gather_bytes(config, device),
    )
    ds_engine.stop()
    return calibration


def render(found: Calibration) -> str:
    """The measured rates in lines for people."""
    rows = {
        "teachers, forward": found.teacher_flops and f"{found.teacher_flops / 1e12:.3g} TFLOP/s",
        "student, both ways": found.student_flops and f"{found.student_flops / 1e12:.3g} TFLOP/s",
        "loader, one core": found.loader_seconds and f"{1000 * found.loader_seconds:.3g} ms an image",
        "gather": found.gather_bytes and f"{found.gather_bytes / 1e9:.3g} GB/s",
    }
    lines = [f"  {name:<20}{value or 'not measured'}" for name, value in rows.items()]
    return "\n".join([f"{found.device}, micro-batch {found.micro_batch_size}", *lines])


def _teacher_flops(config: RunConfig, device: torch.device, micro_batch: int) -> float:
    """Whole copies, made ready as `pretrain` does it; what cutting them costs is the gather's."""
    sizes, guesses = teacher_sizes(config.teachers, config.student.patch_size, config.data.image_size)
    if guesses:
        logger.warning("teacher %s: assumed to be ViT-B/16: neither its source nor `arch` tells", ", ".join(guesses))
    whole = config.teachers.model_copy(update={"sharding": "replicate"})
    seconds = 0.0
    for name, size in sizes.items():  # one at a time: all of them whole may be more than the device holds
        teacher = _random_teacher(size)
        model = RelationEncoder(teacher) if method_of(config).reads_inside else teacher
        forward = start_teachers({name: model}, whole, device, micro_batch).forwards[name]
        images = torch.randint(0, 256, (micro_batch, 3, size.image_size, size.image_size), dtype=torch.uint8)
        with torch.no_grad():
            seconds += _median_seconds(partial(forward, images.to(device)), device)
    return micro_batch * sum(size.forward_flops() for size in sizes.values()) / seconds


def _random_teacher(size: VitSize) -> FrozenEncoder:
    vit = build_vit(_section(size), size.image_size)
    return FrozenEncoder(vit, EncoderRecord("random", "timm", shape_of(vit), IMAGENET_MEAN, IMAGENET_STD))


def _student_flops(config: RunConfig, device: torch.device, micro_batch: int) -> float:
    """Forward and backward without engine or update; the loss is a sum, so that only the ViT and its adapters count."""
    vit = build_vit(config.student, config.data.image_size)
    shape = shape_of(vit)
    size = VitSize(shape.embed_dim, shape.depth, shape.patch_size, shape.image_size)
    teachers, _ = teacher_sizes(config.teachers, config.student.patch_size, config.data.image_size)
    targets = target_widths(config.distill, teachers)
    widths = {str(number): width for number, width in enumerate(targets)}
    student = Student(vit, widths, config.student.adapter)
    student.to(device, ds_teachers.weights_dtype(named_ds_config(config.train.deepspeed))).train()
    if device.type == "cpu":
        prefer_written_attention(student)  # as `pretrain` does there
    if compiles(config.train.compile, "student", device, read_inside=method_of(config).reads_inside):
        student.compile()
    images = torch.randn(micro_batch, 3, size.image_size, size.image_size, device=device)
    seeds = torch.arange(micro_batch, device=device)

    def act() -> None:
        student.zero_grad(set_to_none=True)
        torch.autograd.backward([tokens.float().sum() for tokens in student(images, seeds).values()])

    adapters = adapter_sizes(size, config.student, targets)
    flops = size.training_flops() + sum(adapter.training_flops(size.num_tokens) for adapter in adapters)
    return micro_batch * flops / _median_seconds(act, device)


def _loader_seconds(config: RunConfig) -> float | None:
    """Of one core, an image of the recipe's data, from file to crop; None where there is no data here."""
    try:
        source = open_source(config.data, "train")
    except DmtError as error:
        logger.warning("the loader is not measured: %s", error)
        return None
    loader = TrainLoader(
        TrainBatchMaker(source, (CropSpec.from_section(config.data),), 0, config.data.bad_images),
        SampleStream(len(source), 0),
        micro_batch_size=1,
    )
    batches = loader.batches(start_image=0, num_micro_steps=2 * LOADER_IMAGES, grad_accum_steps=1)
    for _ in itertools.islice(batches, LOADER_IMAGES):  # warms up
        pass
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    start = time.process_time()
    for _ in itertools.islice(batches, LOADER_IMAGES):
        pass
    torch.set_num_threads(threads)
    return (time.process_time() - start) / LOADER_IMAGES


def _gather_bytes(config: RunConfig, device: torch.device) -> float | None:
    group, group_size = ds_teachers.shard_group(config.teachers.shard_over)
    if group_size == 1:
        return None
    return rates.slowest(rates.gather_bytes_per_second(group, group_size, device))


def _section(size: VitSize) -> StudentConfig:
    return StudentConfig(
        patch_size=size.patch_size,
        embed_dim=size.embed_dim,
        depth=size.depth,
        num_heads=max(1, size.embed_dim // _HEAD_WIDTH),
        drop_path=0.0,
    )


def _median_seconds(act: Callable[[], object], device: torch.device) -> float:
    times = []
    for _ in range(2 + _ROUNDS):
        dist.barrier()
        start = time.perf_counter()
        act()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - start)
    return statistics.median(times[2:])
