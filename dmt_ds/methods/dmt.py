"""DMT: the student learns to give several teachers' fused tokens (paper, section 2); knows no engine's library."""

from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from dmt_ds.config.schema import DataConfig
from dmt_ds.data.augment import Augment, normalize
from dmt_ds.data.batch import Batch
from dmt_ds.data.views import CropSpec
from dmt_ds.distill.diagnostics import TeacherDiagnostics
from dmt_ds.distill.fusion import TokenFusion
from dmt_ds.distill.objective import DistillationObjective
from dmt_ds.engine.task import Model, Progress, TaskLosses
from dmt_ds.methods.once import OncePerBatch
from dmt_ds.methods.state import with_prefix, without_prefix
from dmt_ds.models.student import Student
from dmt_ds.tracking.spans import span

Teacher = Callable[[Tensor], Tensor]
"""uint8 images [B, 3, H, W] -> tokens [B, 1+N, D]: an engine, or the bare module where nothing is sharded."""


class Lesson(NamedTuple):
    """What the teachers say of one micro-batch."""

    targets: dict[str, Tensor]
    """Target -> tokens [B, 1+N, D], float32 where teachers are added."""
    metrics: dict[str, Tensor]
    """What the teachers look like, on log steps; empty on others."""


class FusedTeachers:
    """Several teachers whose tokens become the targets of all their students, in one pass a micro-batch."""

    def __init__(
        self,
        teachers: Mapping[str, Teacher],
        fusion: TokenFusion,
        diagnostics: TeacherDiagnostics,
        num_students: int = 1,
    ) -> None:
        self._teachers = dict(teachers)
        self._fusion = fusion
        self.diagnostics = diagnostics
        self.lesson = OncePerBatch(self._teach, num_students)
        """(batch on the device, whether to look at the teachers too) -> `Lesson`."""

    def look(self, images: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Tokens of each teacher, and the targets, of images that are not learnt from: uint8 [B, 3, H, W]."""
        kept: dict[str, Tensor] = {}
        targets = self._fusion(self._tokens(images, kept), observe=False)
        return kept, targets

    def after_step(self) -> None:
        """Move the running means of centred fusion and of the diagnostics; once a step, however many students ask."""
        self._fusion.after_step()
        self.diagnostics.after_step()

    def state_dict(self) -> dict[str, Tensor]:
        """Running means of fusion and of diagnostics."""
        return with_prefix("fusion", self._fusion.state_dict()) | with_prefix(
            "diagnostics", self.diagnostics.state_dict()
        )

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Inverse of `state_dict`."""
        self._fusion.load_state_dict(without_prefix("fusion", state))
        self.diagnostics.load_state_dict(without_prefix("diagnostics", state))

    @torch.no_grad()
    def _teach(self, batch: Batch, diagnose: bool) -> Lesson:
        kept: dict[str, Tensor] = {}
        # A teacher's own tokens outlive the sum only when they are looked at.
        targets = self._fusion(self._tokens(batch.images, kept if diagnose else None))
        return Lesson(targets, self.diagnostics(kept, targets) if diagnose else {})

    def _tokens(self, images: Tensor, kept: dict[str, Tensor] | None) -> Iterator[tuple[str, Tensor]]:
        """One teacher after the other, in the same order on every rank: with ZeRO-3 each forward is a collective."""
        for name, teacher in self._teachers.items():
            if kept is None:
                # No variable holds the tokens here: they would be kept through the next teacher's pass.
                yield name, teacher(images)
            else:
                kept[name] = teacher(images)
                yield name, kept[name]


class DmtTask:
    """Trains a student against fused teacher tokens; the teachers are never part of `module`."""

    def __init__(
        self, student: Student, teachers: FusedTeachers, objective: DistillationObjective, augment: Augment
    ) -> None:
        self.module = student
        self._teachers = teachers
        self._objective = objective
        self._augment = augment

    def crops(self, data: DataConfig) -> tuple[CropSpec, ...]:
        """One crop an image, the same for teachers and student: tokens are compared position by position."""
        return (CropSpec.from_section(data),)

    def backbone(self) -> nn.Module:
        """The student's ViT, without adapter."""
        return self.module.vit

    def losses(self, model: Model, batch: Batch, progress: Progress, diagnose: bool) -> TaskLosses:
        """Eq. 4 on one micro-batch; `diagnose` adds both KL directions and what the teachers look like."""
        with span("teachers"):
            targets, of_teachers = self._teachers.lesson(batch, diagnose)
        with span("augmentation"):
            images = self._augment(batch.images, batch.seeds)
        student_tokens = model(images, batch.seeds)  # name -> [B, 1+N, D]
        with span("loss"):
            losses = self._objective(student_tokens, targets)
        metrics = {"train/loss_tfd": losses.tfd.detach(), "train/loss_sfd": losses.sfd.detach(), **of_teachers}
        if diagnose:
            metrics |= self._objective.both_directions(student_tokens, targets)
            metrics |= self._teachers.diagnostics.of_student(student_tokens, targets)
        return TaskLosses(losses.total, metrics)

    def after_step(self, progress: Progress) -> None:
        """The teachers' running means move."""
        self._teachers.after_step()

    def state_dict(self) -> dict[str, Tensor]:
        """The teachers' running means."""
        return self._teachers.state_dict()

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Inverse of `state_dict`."""
        self._teachers.load_state_dict(state)

    def to(self, device: torch.device) -> None:
        """Nothing to move: running means start on the tokens' device."""

    def pictured_tokens(self, model: Model, images: Tensor) -> dict[str, Tensor]:
        """Patch and class tokens to look at: uint8 [B, 3, H, W] -> name -> [B, 1+N, D] of teachers, targets, student.

        All ranks call, without gradient: with ZeRO-3 each teacher's forward is a collective.
        """
        teachers, targets = self._teachers.look(images)
        seeds = torch.zeros(len(images), dtype=torch.int64, device=images.device)
        self.module.eval()
        student = model(normalize(images, self._augment.section.mean, self._augment.section.std), seeds)
        self.module.train()
        named = {**teachers, **{name: tokens for name, tokens in targets.items() if name not in teachers}}
        return named | {f"student {name}".removesuffix(" fused"): tokens for name, tokens in student.items()}
