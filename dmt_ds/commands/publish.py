"""What a finished run leaves: the encoder as a folder that timm and dmt_ds load, and pictures."""

import logging
from collections.abc import Mapping
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor, nn

from dmt_ds.commands.tasks import BuiltTask
from dmt_ds.config.schema import RunConfig
from dmt_ds.data.batch import Batch
from dmt_ds.data.loader import eval_batches
from dmt_ds.data.sources import ImageSource
from dmt_ds.engine import dist, ds_engine
from dmt_ds.engine.trainer import Trainer
from dmt_ds.methods.dmt import DmtTask
from dmt_ds.models.backbone_folder import save_backbone
from dmt_ds.tracking.tracker import Tracker, read_points

logger = logging.getLogger(__name__)

NUM_PICTURED_IMAGES = 6


def publish_backbone(config: RunConfig, folder: Path, built: BuiltTask, trainer: Trainer) -> None:
    """Write `<folder>/backbone` with float32 weights; all ranks call, rank 0 writes."""
    masters = trainer.engine.trained_state()
    with ds_engine.gathered(trainer.engine.module):
        if dist.is_main():
            state = backbone_state(built.task.backbone(), built.task.module, masters)
            _save(state, config, folder, built, trainer.step)
            logger.info("%s: the encoder, for timm.create_model('local-dir:...') or as a teacher", folder / "backbone")
    dist.barrier()


def _save(state: Mapping[str, Tensor], config: RunConfig, folder: Path, built: BuiltTask, step: int) -> None:
    provenance = {
        "task": config.task,
        "name": config.name,
        "step": step,
        "images_seen": step * config.train.global_batch_size,
        "teachers": {name: record.as_params() for name, record in built.teachers.items()},
    }
    save_backbone(
        folder / "backbone",
        state,
        config.student,
        config.data.image_size,
        mean=config.augment.mean,
        std=config.augment.std,
        provenance=provenance,
    )


def backbone_state(backbone: nn.Module, module: nn.Module, masters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """float32 weights of the encoder: masters of what was trained, its own values for what was frozen or averaged."""
    prefix = next((f"{name}." for name, child in module.named_modules() if child is backbone), None)
    state = {}
    for key, value in backbone.state_dict().items():
        master = masters.get(f"{prefix}{key}") if prefix is not None else None
        state[key] = (value if master is None else master).detach().float().cpu()
    return state


def publish_pictures(
    folder: Path, built: BuiltTask, trainer: Trainer, source: ImageSource, config: RunConfig, tracker: Tracker
) -> None:
    """Loss curves, and for DMT the patch tokens of teachers, their sum and the student as colours; all ranks call."""
    from dmt_ds.tracking import pictures

    target = folder / "pictures"
    if dist.is_main():
        target.mkdir(exist_ok=True)
        pictures.loss_curves(read_points(folder), target / "losses.png", config.name)
    if isinstance(built.task, DmtTask):
        images = _first_images(source, config)
        tokens = _tokens_of_all(built.task, trainer, images)
        if dist.is_main():
            pictures.pca_of_tokens(images, tokens, target / "tokens.png")
    tracker.log_artifact(target)


def _first_images(source: ImageSource, config: RunConfig) -> Tensor:
    """[B, 3, H, W] uint8: the same few images on every rank."""
    batches = eval_batches(source, config.data.image_size, NUM_PICTURED_IMAGES, 0, config.data.interpolation)
    batch: Batch = next(islice(batches, 1))
    return batch.images


def _tokens_of_all(task: DmtTask, trainer: Trainer, images: Tensor) -> dict[str, Tensor]:
    """Name -> tokens [B, 1+N, D] float32 on the CPU, of each teacher, the target and the student."""
    on_device = images.to(trainer.engine.device)
    with torch.no_grad():
        tokens = task.pictured_tokens(trainer.engine, on_device)
    return {name: value.float().cpu() for name, value in tokens.items()}
