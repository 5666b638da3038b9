"""From a recipe to a task: the only place that knows all methods."""

import hashlib
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TypeVar

import torch
from torch import nn

from dmt_ds.commands.annotations.annotated_tasks import kind_of
from dmt_ds.commands.training.loss_kernel import choose_kernel
from dmt_ds.commands.training.teacher_engines import check_same_grid, load_teachers, start_teachers
from dmt_ds.config.deepspeed import DsConfig
from dmt_ds.config.images import RESIZE_POSITIONS
from dmt_ds.config.methods import DistillConfig
from dmt_ds.config.schema import RunConfig, TaskName
from dmt_ds.data.augment import Augment
from dmt_ds.distill.diagnostics import TeacherDiagnostics
from dmt_ds.distill.fusion import TokenFusion, target_widths
from dmt_ds.distill.kernels.terms import Kernel
from dmt_ds.distill.objective import DistillationObjective
from dmt_ds.engine import dist
from dmt_ds.engine.task import AnnotatedTask, FreezingTask, Task
from dmt_ds.errors import ConfigError
from dmt_ds.methods.dmt import DmtTask, FusedTeachers
from dmt_ds.methods.tinymim import TinyMimTask, relations
from dmt_ds.models.encoders import EncoderRecord, FrozenEncoder, check_same_tokens
from dmt_ds.models.relations import RelationEncoder, RelationStudent, with_heads_of
from dmt_ds.models.start import origin_of, start_from
from dmt_ds.models.student import Student
from dmt_ds.models.vit import build_vit, prefer_written_attention, shape_of

logger = logging.getLogger(__name__)


S = TypeVar("S", bound=nn.Module)


@dataclass(frozen=True)
class BuiltTask:
    """A task, and what the run's record says of its teachers."""

    task: Task
    teachers: dict[str, EncoderRecord] = field(default_factory=dict)
    teacher_ds_configs: dict[str, DsConfig] = field(default_factory=dict)
    """Each teacher's DeepSpeed JSON, resolved."""
    init_from: EncoderRecord | None = None
    """What the student's weights started from."""
    kernel: Kernel | None = None
    """What computes a distillation's losses, where there is a choice."""

    @property
    def sources(self) -> dict[str, EncoderRecord]:
        """All weights that the result derives from: their licences bind it, their hashes are compared on resume."""
        return self.teachers | ({} if self.init_from is None else {"init_from": self.init_from})

    @cached_property
    def layers(self) -> dict[str, int] | None:
        """Parameter name -> its layer, the embedding first, of a task with annotations; None for the others."""
        return self.task.layers() if isinstance(self.task, AnnotatedTask) else None

    @property
    def frozen_until(self) -> Mapping[str, float]:
        """Parameter name -> share of the run until which it does not move; empty where all move at once."""
        return self.task.frozen_until if isinstance(self.task, FreezingTask) else {}

    @cached_property
    def parameters(self) -> str:
        """What an engine's checkpoint must agree in; asked for before an engine may cut the parameters."""
        return hash_of_parameters(self.task.module, self.frozen_until)


def hash_of_parameters(module: nn.Module, frozen_at_first: Iterable[str] = ()) -> str:
    """16 hex digits of the trained parameters' names and shapes; values don't matter.

    Args:
        frozen_at_first: names of those that have a group of their own in the optimizer: DeepSpeed would take the others
            of a checkpoint that has no such group, and leave these as they start.
    """
    trained = [f"{name} {list(p.shape)}" for name, p in module.named_parameters() if p.requires_grad]
    trained += [f"{name} frozen at first" for name in sorted(frozen_at_first)]
    return hashlib.sha256("\n".join(trained).encode()).hexdigest()[:16]


def build_task(config: RunConfig, device: torch.device, class_names: Sequence[str] = ()) -> BuiltTask:
    """The task of a run that is no family; see `build_tasks`."""
    return build_tasks([config], device, class_names)[0]


def build_tasks(configs: Sequence[RunConfig], device: torch.device, class_names: Sequence[str] = ()) -> list[BuiltTask]:
    """The task of each run, built on every rank from the same seed; teachers are already in their engines.

    Args:
        configs: one run, or the members of a family, which share teachers and all that is said of them.
        class_names: of the data, where the task has annotations.

    Raises:
        ConfigError: a student can't be built, or does not fit its teachers; names the member.
    """
    torch.manual_seed(configs[0].seed)
    return [
        _finished(built, config, device)
        for built, config in zip(_build(configs, device, class_names), configs, strict=True)
    ]


def _finished(built: BuiltTask, config: RunConfig, device: torch.device) -> BuiltTask:
    if device.type == "cpu":
        # Fused attention has a slow backward in bf16 on CPU; written out it is five times faster.
        prefer_written_attention(built.task.module)
    built.task.to(device)
    origin = origin_of(built.task.backbone())
    assert (origin is None) == (config.student.init_from is None), "a start that the run's record would not have"
    return replace(built, init_from=origin)


def image_size_of_start(config: RunConfig) -> int | None:
    """Side of the images that the weights in `student.init_from` must fit; None where the task takes those of any."""
    return None if config.task in RESIZE_POSITIONS else config.data.image_size


def _build(configs: Sequence[RunConfig], device: torch.device, class_names: Sequence[str]) -> list[BuiltTask]:
    config = configs[0]
    if config.task in _WITH_TEACHERS:
        return _WITH_TEACHERS[config.task](configs, device)
    assert len(configs) == 1, "a family shares teachers"
    kind = kind_of(config)
    if kind is not None:
        assert class_names, "a task with annotations is told the classes' names"
        return [BuiltTask(kind.build(config, class_names))]
    assert config.task in _ALONE, f"task {config.task}: nothing here builds it"
    return [BuiltTask(_ALONE[config.task](config))]


def _build_mae(config: RunConfig) -> Task:
    from dmt_ds.methods.mae import MaeTask

    return MaeTask(config.student, config.mae, config.data.image_size, config.augment)


def _build_moco_v3(config: RunConfig) -> Task:
    from dmt_ds.methods.moco_v3 import MocoV3Task

    return MocoV3Task(config.student, config.moco_v3, config.data.image_size)


def _build_ibot(config: RunConfig) -> Task:
    from dmt_ds.methods.ibot import IbotTask

    section = config.ibot
    if config.task == "dino":
        section = section.model_copy(update={"patch_loss_weight": 0.0, "mask_probability": 0.0})
    return IbotTask(config.student, section, config.data.image_size)


def _build_dmt(configs: Sequence[RunConfig], device: torch.device) -> list[BuiltTask]:
    config = configs[0]  # of a family: what members have in common is the same in all
    sections = config.teachers.used()
    models = load_teachers(config.teachers, config.data.image_size)
    check_same_tokens(models, same_width=config.distill.fusion != "concat")
    fusion = TokenFusion(
        config.distill.fusion,
        weights={name: section.weight for name, section in sections.items()},
        class_token={name: section.class_token for name, section in sections.items()},
        centring_momentum=config.distill.centring_momentum,
    )
    students = _students(configs, lambda own: _dmt_student(own, models))
    kernel = _loss_kernel(config.distill, device)
    objective = DistillationObjective(
        divergence=config.distill.divergence,
        direction=config.distill.direction,
        tfd_weight=config.distill.tfd_weight,
        sfd_weight=config.distill.sfd_weight,
        target_weights=fusion.target_weights,
        without_class_token=fusion.without_class_token,
        kernel=kernel,
    )
    teachers = start_teachers(models, config.teachers, device, config.train.micro_batch_size)
    diagnostics = TeacherDiagnostics({name: section.weight for name, section in sections.items()})
    fused = FusedTeachers(teachers.forwards, fusion, diagnostics, len(students))
    tasks = [DmtTask(student, fused, objective, Augment(config.augment)) for student in students]
    built = BuiltTask(tasks[0], teachers.records, teachers.ds_configs, kernel=kernel)
    return [replace(built, task=task) for task in tasks]


def _loss_kernel(section: DistillConfig, device: torch.device) -> Kernel:
    """What computes the losses of this run, said once.

    Raises:
        ConfigError: the kernel that is set can't run here.
    """
    weights = section.tfd_weight, section.sfd_weight
    try:
        kernel, reason = choose_kernel(section.kernel, section.divergence, *weights, device)
    except ValueError as error:
        raise ConfigError(f"distill.kernel: {error}") from error
    if dist.is_main():
        logger.info("losses: %s kernel (%s)", kernel, reason)
    return kernel


def _build_tinymim(configs: Sequence[RunConfig], device: torch.device) -> list[BuiltTask]:
    config = configs[0]
    models = load_teachers(config.teachers, config.data.image_size)
    check_same_tokens(models, same_width=False)
    students = _students(configs, lambda own: _tinymim_student(own, models))
    relation_teachers = {name: RelationEncoder(model) for name, model in models.items()}
    teachers = start_teachers(relation_teachers, config.teachers, device, config.train.micro_batch_size)
    weights = {name: section.weight for name, section in config.teachers.used().items()}
    asked, augment = relations(teachers.forwards, len(students)), Augment(config.augment)
    tasks = [TinyMimTask(student, asked, weights, config.tinymim, augment) for student in students]
    return [BuiltTask(task, teachers.records, teachers.ds_configs) for task in tasks]


_WITH_TEACHERS: dict[TaskName, Callable[[Sequence[RunConfig], torch.device], list[BuiltTask]]] = {
    "dmt": _build_dmt,
    "tinymim": _build_tinymim,
}
_ALONE: dict[TaskName, Callable[[RunConfig], Task]] = {
    "mae": _build_mae,
    "moco_v3": _build_moco_v3,
    "ibot": _build_ibot,
    "dino": _build_ibot,
}


def student_of(config: RunConfig, teachers: Mapping[str, FrozenEncoder]) -> nn.Module:
    """The module that a method with teachers trains, as `build_tasks` builds it.

    Args:
        teachers: those that can be loaded; without the others the student may have adapters too few.

    Raises:
        ConfigError: as `build_student_vit`, or the adapter can't map to the teachers' width.
    """
    return _STUDENTS[config.task](config, teachers)


def _dmt_student(config: RunConfig, teachers: Mapping[str, FrozenEncoder]) -> Student:
    widths = {name: teacher.record.shape.embed_dim for name, teacher in teachers.items()}
    targets = target_widths(config.distill.fusion, widths)
    return Student(build_student_vit(config, teachers), targets, config.student.adapter)


def _tinymim_student(config: RunConfig, teachers: Mapping[str, FrozenEncoder]) -> RelationStudent:
    return RelationStudent(build_student_vit(config, teachers))


_STUDENTS: dict[TaskName, Callable[[RunConfig, Mapping[str, FrozenEncoder]], nn.Module]] = {
    "dmt": _dmt_student,
    "tinymim": _tinymim_student,
}


def _students(configs: Sequence[RunConfig], build: Callable[[RunConfig], S]) -> list[S]:
    """Each run's student; what is wrong with a member's names the member."""
    students = []
    for config in configs:
        try:
            students.append(build(config))
        except ConfigError as error:
            raise error if len(configs) == 1 else ConfigError(f"family.{config.name}: {error}") from error
    return students


def build_student_vit(config: RunConfig, teachers: Mapping[str, FrozenEncoder]) -> nn.Module:
    """The student of these teachers, with its first weights.

    Raises:
        ConfigError: its patches, or for tinymim its heads, are not the teachers'.
    """
    section = config.student
    if config.task == "tinymim" and teachers:
        section = with_heads_of(section, teachers)
    torch.manual_seed(config.seed)  # a student starts from the same weights whatever teachers were built before it
    vit: nn.Module = build_vit(section, config.data.image_size)
    check_same_grid(shape_of(vit), teachers)
    if section.init_from is not None:
        start_from(vit, section.init_from, config.data.image_size)
    return vit
