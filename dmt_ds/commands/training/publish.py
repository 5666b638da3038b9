"""What a finished run leaves: the encoder and, of a task with annotations, the whole model as folders; pictures."""

import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dmt_ds.commands.annotations.annotated_tasks import kind_of
from dmt_ds.commands.training.tasks import BuiltTask
from dmt_ds.config.schema import RunConfig, StudentConfig
from dmt_ds.data.sources import ImageSource
from dmt_ds.data.views import center_crop
from dmt_ds.engine import dist
from dmt_ds.engine.deepspeed import ds_engine
from dmt_ds.engine.deepspeed.ds_engine import StudentEngine
from dmt_ds.engine.deepspeed.masters import state_of
from dmt_ds.engine.learner import Learner
from dmt_ds.engine.task import AnnotatedTask
from dmt_ds.errors import DataError, StorageError
from dmt_ds.methods.dmt import DmtTask
from dmt_ds.models.backbone_folder import needs_dmt_ds, provenance_of, save_backbone
from dmt_ds.models.vit import shape_of
from dmt_ds.models.whole_folder import whole_folder
from dmt_ds.run_files import BACKBONE_FOLDER, PICTURES_FOLDER, PUBLISHED
from dmt_ds.tracking.tracker import read_points

logger = logging.getLogger(__name__)

NUM_PICTURED_IMAGES = 6


def export_weights(config: RunConfig, built: BuiltTask, engine: StudentEngine, folder: Path, step: int) -> None:
    """Write `<folder>/backbone`, and the whole model of a task with annotations; all ranks call, rank 0 writes."""
    masters, kind = engine.trained_state(), kind_of(config)
    if isinstance(built.task, AnnotatedTask):
        masters |= built.task.untouched
    with ds_engine.gathered(engine.module):
        if not dist.is_main():
            return
        backbone = built.task.backbone()
        section = settled_student(config.student, backbone)
        provenance = _provenance(config, built, step)
        state = backbone_state(backbone, built.task.module, masters)
        save_backbone(
            folder / BACKBONE_FOLDER,
            state,
            section,
            config.data.image_size,
            mean=config.augment.mean,
            std=config.augment.std,
            interpolation=config.data.interpolation,
            provenance=provenance,
        )
        if kind is not None:
            assert isinstance(built.task, AnnotatedTask)
            settled = config.model_copy(update={"student": section})
            kind.save(built.task, settled, masters, provenance, folder / kind.folder)


def settled_student(section: StudentConfig, backbone: nn.Module) -> StudentConfig:
    """The section that builds this encoder: the teachers may have settled the number of heads of the last block."""
    return section.model_copy(update={"last_block_num_heads": shape_of(backbone).last_block_num_heads})


def _provenance(config: RunConfig, built: BuiltTask, step: int) -> dict[str, Any]:
    teachers = {name: record.as_params() for name, record in built.sources.items()}
    for teacher in teachers.values():
        if behind := provenance_of(teacher["source"]).get("teachers"):
            teacher["teachers"] = behind
    return {
        "task": config.task,
        "name": config.name,
        "step": step,
        "images_seen": step * config.train.global_batch_size,
        "teachers": teachers,
    }


def publish_weights(folder: Path, checkpoint: Path) -> None:
    """The last checkpoint's encoder, and whole model where there is one, become the run's; each whole or not at all."""
    for name, called in PUBLISHED.items():
        if not (checkpoint / name).is_dir():
            continue
        target = folder / name
        with whole_folder(target) as partial:
            shutil.copytree(checkpoint / name, partial, dirs_exist_ok=True)
        uses = [] if needs_dmt_ds(target) else ["for timm.create_model('local-dir:...', pretrained=True)"]
        uses += ["as a teacher"] if name == BACKBONE_FOLDER else []
        logger.info("%s: the %s, %s", target, called, " or ".join(uses) or "for dmt_ds")


def backbone_state(backbone: nn.Module, module: nn.Module, masters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """float32 weights of the encoder: masters of what was trained, its own values for what was frozen or averaged."""
    for name, child in module.named_modules():
        if child is backbone:
            prefix = f"{name}."
            own = {key.removeprefix(prefix): value for key, value in masters.items() if key.startswith(prefix)}
            return state_of(backbone, own)
    return state_of(backbone, {})


def publish_pictures(folder: Path, learner: Learner, source: ImageSource, config: RunConfig) -> None:
    """Loss curves; for DMT also the diagnostics, and patch tokens of teachers, their sum and the student as colours.

    All ranks call.
    """
    images, tokens = None, {}
    if isinstance(learner.task, DmtTask) and (images := _first_images(source, config)) is not None:
        tokens = _tokens_of_all(learner.task, learner.engine, images)
    if not dist.is_main():
        return
    try:
        _draw(folder, config.name, images, tokens)
        learner.tracker.log_artifact(folder / PICTURES_FOLDER)
    except Exception as error:  # a picture is no reason to lose a run
        logger.warning("%s: no pictures: %s: %s", folder / PICTURES_FOLDER, type(error).__name__, error)


def _draw(folder: Path, name: str, images: Tensor | None, tokens: dict[str, Tensor]) -> None:
    from dmt_ds.tracking import diagnostic_pictures, pictures

    target = folder / PICTURES_FOLDER
    target.mkdir(exist_ok=True)
    points = list(read_points(folder))
    pictures.loss_curves(points, target / "losses.png", name)
    diagnostic_pictures.diagnostic_curves(points, target / "diagnostics.png", name)
    if images is not None:
        pictures.pca_of_tokens(images, tokens, target / "tokens.png")


def _first_images(source: ImageSource, config: RunConfig) -> Tensor | None:
    """[B, 3, H, W] uint8: the same few readable images on every rank; None where there is none."""
    images: list[Tensor] = []
    for index in range(min(len(source), 10 * NUM_PICTURED_IMAGES)):
        try:
            images.append(center_crop(source.read(index), config.data.image_size, config.data.interpolation))
        except (DataError, StorageError):
            continue
        if len(images) == NUM_PICTURED_IMAGES:
            break
    return torch.stack(images) if images else None


def _tokens_of_all(task: DmtTask, engine: StudentEngine, images: Tensor) -> dict[str, Tensor]:
    """Name -> tokens [B, 1+N, D] float32 on the CPU, of each teacher, the target and the student."""
    on_device = images.to(engine.device)
    # Compiled for batches of training: for these few images it is not worth compiling again.
    with torch.no_grad(), torch.compiler.set_stance("force_eager"):
        tokens = task.pictured_tokens(engine, on_device)
    return {name: value.float().cpu() for name, value in tokens.items()}
