"""A run before anything large is built: its batch, length, images and DeepSpeed JSON, from its recipe."""

import errno
import logging
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dmt_ds.commands.annotations.annotated import AnnotatedImages
from dmt_ds.commands.annotations.annotated_tasks import kind_of
from dmt_ds.commands.training.pretraining_methods import method_of
from dmt_ds.commands.training.run_log import open_log
from dmt_ds.config.batch import BatchPlan, LengthPlan, plan_batch, plan_length
from dmt_ds.config.deepspeed import find_ds_config, resolve_student, zero_stage
from dmt_ds.config.schema import TEACHER_TASKS, RunConfig
from dmt_ds.data.folder import existing
from dmt_ds.data.labels import open_labelled
from dmt_ds.data.sources import ImageSource, left_out, open_source
from dmt_ds.engine import dist, slow_bf16
from dmt_ds.engine.deepspeed.ds_check import check_ds_config
from dmt_ds.engine.ranks.devices import name_of, unused_gpus
from dmt_ds.errors import ConfigError, DataError
from dmt_ds.run_files import LOG_FILE

logger = logging.getLogger(__name__)


_NOT_A_PLACE = (errno.ENOENT, errno.ENOTDIR, errno.EEXIST, errno.EISDIR, errno.EACCES, errno.EPERM, errno.ENAMETOOLONG)
"""What the kernel says where files can't be made, whoever tries again."""

Images = tuple[ImageSource, AnnotatedImages | None]
"""The training images; where the run is judged while it trains, both splits too."""


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
    splits: AnnotatedImages | None
    """Training and validation images, where the run is judged while it trains."""
    member: str = ""
    """Name in its family; empty where it is alone."""


def resolve(config: RunConfig, device: torch.device) -> list[Run]:
    """What the recipe comes to on these ranks: one run, or a family's members; makes folders. All ranks call.

    Raises:
        ConfigError: numbers or settings do not go together.
        DataError: there are no images.
    """
    batch = plan_batch(config.train.global_batch_size, config.train.micro_batch_size, dist.world_size())
    check_batch_norm(config, batch, over_ranks=device.type == "cuda")
    members = config.students()
    ds_configs = {name: _ds_config(member, batch) for name, member in members.items()}
    folders = [Path(member.output_dir) for member in members.values()]
    source, splits = _opened_here(config, dist.decided_by_main(lambda: _prepare(config, folders)))
    lengths = {name: plan_length(member.train, member.optim, len(source)) for name, member in members.items()}
    logger.info("ranks: %d, rank 0 on %s", dist.world_size(), name_of(device))
    logger.info(
        "%d images; %d steps of %d images = %d ranks x %d x %d accumulation",
        len(source),
        next(iter(lengths.values())).total_steps,
        config.train.global_batch_size,
        dist.world_size(),
        config.train.micro_batch_size,
        batch.grad_accum_steps,
    )
    for images in (source, splits.test) if splits else (source,):
        if dist.is_main() and (line := left_out(images)):
            logger.warning("%s", line)
    for advice in (unused_gpus(os.environ), advice_on_precision(config, device)):
        if advice:
            logger.warning("%s", advice)
    return [
        Run(member, Path(member.output_dir), device, source, batch, lengths[name], ds_configs[name], splits, name)
        for name, member in members.items()
    ]


def open_images(config: RunConfig) -> Images:
    """The training images; where the run is judged while it trains, both splits too.

    Raises:
        DataError: there are no images, or not the labels that it is judged by.
    """
    kind = kind_of(config)
    if kind is None and not config.train.eval_every_epochs:
        return open_source(config.data, "train"), None
    splits = _labelled(config) if kind is None else kind.open(config)
    return splits.train, splits


def _labelled(config: RunConfig) -> AnnotatedImages:
    try:
        return open_labelled(config.data)
    except DataError as error:
        open_source(config.data, "train")  # what is wrong with these alone has another remedy
        remedy = "train.eval_every_epochs=0 trains without being judged by k-NN"
        raise DataError(f"{error}; {remedy}") from error


def _opened_here(config: RunConfig, of_main: Images | None) -> Images:
    """The images as rank 0 has them, where it hands them on, else opened by each rank.

    Raises:
        DataError: this node has no such place, or as `open_images`.
    """
    if of_main is None:
        return open_images(config)
    if not dist.is_main() and config.data.path is not None:
        existing(Path(config.data.path).expanduser().absolute(), "data.path")
    return of_main


def advice_on_precision(config: RunConfig, device: torch.device) -> str | None:
    """What would make a run on this device faster; None: nothing, or a DeepSpeed JSON that can't be read."""
    teachers = config.teachers.deepspeed if config.task in TEACHER_TASKS else None
    with suppress(ConfigError):
        return slow_bf16.advice(device, config.train.deepspeed, teachers)
    return None


def _ds_config(config: RunConfig, batch: BatchPlan) -> dict[str, Any]:
    path = find_ds_config(config.train.deepspeed)
    ds_config = resolve_student(path, batch, config.optim.clip_grad_norm)
    check_ds_config(path, ds_config)
    check_zero_stage(config, ds_config)
    return ds_config


def check_batch_norm(config: RunConfig, batch: BatchPlan, *, over_ranks: bool) -> None:
    """Whether batch norm in the heads of MoCo v3, or of segmentation, has something to take a mean of.

    Args:
        over_ranks: MoCo v3's takes that of all ranks, as it does on CUDA; segmentation's always does.

    Raises:
        ConfigError: it would see one image alone.
    """
    if config.task not in ("moco_v3", "segment"):
        return
    shared = over_ranks or config.task == "segment"
    if batch.micro_batch_size * (batch.world_size if shared else 1) < 2:
        more = "take more, or more ranks" if shared else "take more"
        raise ConfigError(
            f"train.micro_batch_size {batch.micro_batch_size}: batch norm in the heads of {config.task} needs two "
            f"images at least: {more}"
        )


def check_zero_stage(config: RunConfig, ds_config: dict[str, Any]) -> None:
    """Whether the task can be trained with weights cut as its DeepSpeed JSON has it.

    Raises:
        ConfigError: it can't; one line.
    """
    if zero_stage(ds_config) == 3 and (reason := _why_no_zero3(config)):
        raise ConfigError(
            f"train.deepspeed={config.train.deepspeed} is ZeRO-3, but this {config.task} {reason}: use ZeRO-2 or "
            "ZeRO-1, e.g. train.deepspeed=student_zero2_bf16"
        )


def _why_no_zero3(config: RunConfig) -> str | None:
    kind = kind_of(config)
    if method_of(config).averages_weights or (kind is not None and kind.averages(config)):
        return "averages whole weights into a second network"
    return None if kind is None else kind.needs_whole_weights


def _prepare(config: RunConfig, folders: Sequence[Path]) -> Images | None:
    """On rank 0, before the others look: the folders, the log, and the images.

    Names in folders and a COCO JSON are read once, for all: a million files listed by each rank are a load on a file
    server, and the JSON takes a process a minute and gigabytes. A table's cache is written once, and read by each rank.
    """
    try:
        for folder in folders:
            folder.mkdir(parents=True, exist_ok=True)
        open_log(Path(config.output_dir) / LOG_FILE)
    except OSError as error:
        if error.errno not in _NOT_A_PLACE:
            raise
        where = f"output_dir={config.output_dir}: {error.filename} can't be made ({error.strerror})"
        raise ConfigError(f"{where}; choose another output_dir") from error
    images = open_images(config)
    if config.task != "detect" and config.data.source != "folder":
        return None
    # Known from now on, and handed on with the rest: for label maps each of them is looked at.
    logger.debug("fingerprint of the training images: %s", images[0].fingerprint)
    return images
