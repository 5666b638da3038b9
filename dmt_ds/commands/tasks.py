"""From a recipe to a task: the only place that knows all methods."""

import hashlib
import logging
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor, nn

from dmt_ds.config.deepspeed import find_ds_config, resolve_teacher
from dmt_ds.config.schema import RunConfig, TeachersConfig
from dmt_ds.data.augment import Augment
from dmt_ds.distill.diagnostics import TeacherDiagnostics
from dmt_ds.distill.fusion import TokenFusion
from dmt_ds.distill.objective import DistillationObjective
from dmt_ds.engine import dist, ds_teachers
from dmt_ds.engine.ds_engine import DsConfig
from dmt_ds.engine.task import PretrainingTask
from dmt_ds.errors import ConfigError
from dmt_ds.methods.dmt import DmtTask
from dmt_ds.models.student import Student
from dmt_ds.models.teachers import (
    TeacherModel,
    TeacherRecord,
    check_same_tokens,
    load_encoder,
    load_teacher,
    start_from,
)
from dmt_ds.models.vit import VitShape, build_vit, describe, prefer_written_attention

logger = logging.getLogger(__name__)

AUTO_SHARD_SHARE = 0.1
"""`sharding: auto` cuts teachers whose whole copies would take more of a device than this."""


@dataclass(frozen=True)
class BuiltTask:
    """A task, and what the run's record says of its teachers."""

    task: PretrainingTask
    teachers: dict[str, TeacherRecord] = field(default_factory=dict)
    teacher_ds_configs: dict[str, DsConfig] = field(default_factory=dict)
    """Each teacher's DeepSpeed JSON, resolved."""
    init_from: TeacherRecord | None = None
    """What the student's weights started from."""

    @property
    def sources(self) -> dict[str, TeacherRecord]:
        """All weights that the result derives from: their licences bind it, their hashes are compared on resume."""
        return self.teachers | ({} if self.init_from is None else {"init_from": self.init_from})

    @cached_property
    def parameters(self) -> str:
        """Hash of the trained parameters' names and shapes; asked for before an engine may cut them."""
        trained = (f"{name} {list(p.shape)}" for name, p in self.task.module.named_parameters() if p.requires_grad)
        return hashlib.sha256("\n".join(trained).encode()).hexdigest()[:16]


def build_task(config: RunConfig, device: torch.device) -> BuiltTask:
    """The recipe's task, built on every rank from the same seed; teachers are already in their engines."""
    torch.manual_seed(config.seed)
    built = _build_dmt(config, device) if config.task == "dmt" else BuiltTask(_build_teacher_maker(config))
    if device.type == "cpu":
        # Fused attention has a slow backward in bf16 on CPU; written out it is five times faster.
        prefer_written_attention(built.task.module)
    built.task.to(device)
    if config.student.init_from is None:
        return built
    return replace(built, init_from=load_encoder(config.student.init_from, config.data.image_size).record)


def _build_teacher_maker(config: RunConfig) -> PretrainingTask:
    image_size = config.data.image_size
    if config.task == "mae":
        from dmt_ds.methods.mae import MaeTask

        return MaeTask(config.student, config.mae, image_size, config.augment)
    if config.task == "moco_v3":
        from dmt_ds.methods.moco_v3 import MocoV3Task

        return MocoV3Task(config.student, config.moco_v3, image_size)
    from dmt_ds.methods.ibot import IbotTask

    section = config.ibot
    if config.task == "dino":
        section = section.model_copy(update={"patch_loss_weight": 0.0, "mask_probability": 0.0})
    return IbotTask(config.student, section, image_size)


def _build_dmt(config: RunConfig, device: torch.device) -> BuiltTask:
    sections = config.teachers.used()
    models = {name: load_teacher(name, section, config.data.image_size) for name, section in sections.items()}
    check_same_tokens(models, same_width=config.distill.fusion != "concat")
    fusion = TokenFusion(
        config.distill.fusion,
        weights={name: section.weight for name, section in sections.items()},
        class_token={name: section.class_token for name, section in sections.items()},
        centring_momentum=config.distill.centring_momentum,
    )
    widths = fusion.targets({name: model.record.shape.embed_dim for name, model in models.items()})
    torch.manual_seed(config.seed)  # a student starts from the same weights whatever teachers were built before it
    vit = build_vit(config.student, config.data.image_size)
    _check_same_grid(describe(vit), models)
    if config.student.init_from is not None:
        start_from(vit, config.student.init_from, config.data.image_size)
    student = Student(vit, widths, config.student.adapter)
    objective = DistillationObjective(
        divergence=config.distill.divergence,
        direction=config.distill.direction,
        tfd_weight=config.distill.tfd_weight,
        sfd_weight=config.distill.sfd_weight,
        target_weights=fusion.target_weights,
        without_class_token=fusion.without_class_token,
    )
    records = {name: model.record for name, model in models.items()}
    path = find_ds_config(config.teachers.deepspeed)
    ds_configs = {name: resolve_teacher(path, record.shape.embed_dim) for name, record in records.items()}
    teachers = _teacher_engines(models, ds_configs, config.teachers, device)
    diagnostics = TeacherDiagnostics({name: section.weight for name, section in sections.items()})
    task = DmtTask(student, teachers, fusion, objective, diagnostics, Augment(config.augment))
    return BuiltTask(task, records, ds_configs)


def _check_same_grid(student: VitShape, models: dict[str, TeacherModel]) -> None:
    """Tokens are compared position by position.

    Raises:
        ConfigError: names both sides.
    """
    name, teacher = next((name, model.record.shape) for name, model in models.items())
    if (teacher.image_size, teacher.patch_size) != (student.image_size, student.patch_size):
        raise ConfigError(
            f"student.patch_size {student.patch_size} cuts {student.image_size} pixels into another grid than "
            f"teacher '{name}' (patch {teacher.patch_size}, image {teacher.image_size}); "
            f"set student.patch_size={teacher.patch_size}"
        )


def _teacher_engines(
    models: dict[str, TeacherModel], ds_configs: dict[str, DsConfig], section: TeachersConfig, device: torch.device
) -> dict[str, Callable[..., Tensor]]:
    """Each teacher in an engine of its own, in the recipe's order: building one is a collective."""
    sharding = _choose_sharding(models, section, device)
    engines: dict[str, Callable[..., Tensor]] = {}
    for name, model in models.items():
        if sharding == "zero3":
            engines[name] = ds_teachers.build_teacher(model, ds_configs[name], device, shard_over=section.shard_over)
        else:
            engines[name] = ds_teachers.replicate_teacher(model, ds_configs[name], device)
        held, full = ds_teachers.held_bytes(model)
        logger.info("teacher %s: %.1f of %.1f MiB on this rank", name, held / 2**20, full / 2**20)
    return engines


def _choose_sharding(models: dict[str, TeacherModel], section: TeachersConfig, device: torch.device) -> str:
    if section.sharding != "auto":
        return section.sharding
    copies = sum(_bf16_bytes(model) for model in models.values())
    memory = _device_memory(device)
    choice = "zero3" if dist.world_size() > 1 and copies > AUTO_SHARD_SHARE * memory else "replicate"
    logger.info(
        "teachers.sharding auto -> %s: whole copies take %.2f GiB of %.0f GiB (%.1f %%; sharded above %.0f %%)",
        choice,
        copies / 2**30,
        memory / 2**30,
        100 * copies / memory,
        100 * AUTO_SHARD_SHARE,
    )
    return choice


def _bf16_bytes(model: nn.Module) -> int:
    return 2 * sum(parameter.numel() for parameter in model.parameters())


def _device_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    import psutil

    return int(psutil.virtual_memory().total)
