"""DMT: the student learns to give several teachers' fused tokens (paper, section 2); knows no engine's library."""

from collections.abc import Callable, Iterator, Mapping

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
from dmt_ds.methods.state import with_prefix, without_prefix
from dmt_ds.models.student import Student
from dmt_ds.tracking.spans import span

Teacher = Callable[[Tensor], Tensor]
"""uint8 images [B, 3, H, W] -> tokens [B, 1+N, D]: an engine, or the bare module where nothing is sharded."""


class DmtTask:
    """Trains a student against fused teacher tokens; the teachers are never part of `module`."""

    def __init__(
        self,
        student: Student,
        teachers: Mapping[str, Teacher],
        fusion: TokenFusion,
        objective: DistillationObjective,
        diagnostics: TeacherDiagnostics,
        augment: Augment,
    ) -> None:
        self.module = student
        self._teachers = dict(teachers)
        self._fusion = fusion
        self._objective = objective
        self._augment = augment
        self._diagnostics = diagnostics

    def crops(self, data: DataConfig) -> tuple[CropSpec, ...]:
        """One crop an image, the same for teachers and student: tokens are compared position by position."""
        return (CropSpec.from_section(data),)

    def backbone(self) -> nn.Module:
        """The student's ViT, without adapter."""
        return self.module.vit

    def losses(self, model: Model, batch: Batch, progress: Progress, diagnose: bool) -> TaskLosses:
        """Eq. 4 on one micro-batch; `diagnose` adds both KL directions and what the teachers look like."""
        kept: dict[str, Tensor] = {}
        with torch.no_grad(), span("teachers"):
            # Targets are [B, 1+N, D] float32; a teacher's own tokens outlive the sum only when they are looked at.
            targets = self._fusion(self._teacher_tokens(batch.images, kept if diagnose else None))
        with span("augmentation"):
            images = self._augment(batch.images, batch.seeds)
        student_tokens = model(images, batch.seeds)  # name -> [B, 1+N, D]
        with span("loss"):
            losses = self._objective(student_tokens, targets)
        metrics = {"train/loss_tfd": losses.tfd.detach(), "train/loss_sfd": losses.sfd.detach()}
        if diagnose:
            metrics |= self._objective.both_directions(student_tokens, targets)
            metrics |= self._diagnostics(kept, targets, student_tokens)
        return TaskLosses(losses.total, metrics)

    def after_step(self, progress: Progress) -> None:
        """Move the running means of centred fusion and of the diagnostics."""
        self._fusion.after_step()
        self._diagnostics.after_step()

    def state_dict(self) -> dict[str, Tensor]:
        """Running means of fusion and of diagnostics."""
        return with_prefix("fusion", self._fusion.state_dict()) | with_prefix(
            "diagnostics", self._diagnostics.state_dict()
        )

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Inverse of `state_dict`."""
        self._fusion.load_state_dict(without_prefix("fusion", state))
        self._diagnostics.load_state_dict(without_prefix("diagnostics", state))

    def to(self, device: torch.device) -> None:
        """Nothing to move: running means start on the tokens' device."""

    def pictured_tokens(self, model: Model, images: Tensor) -> dict[str, Tensor]:
        """Patch and class tokens to look at: uint8 [B, 3, H, W] -> name -> [B, 1+N, D] of teachers, targets, student.

        All ranks call, without gradient: with ZeRO-3 each teacher's forward is a collective.
        """
        teachers: dict[str, Tensor] = {}
        targets = self._fusion(self._teacher_tokens(images, teachers), observe=False)
        seeds = torch.zeros(len(images), dtype=torch.int64, device=images.device)
        self.module.eval()
        student = model(normalize(images, self._augment.section.mean, self._augment.section.std), seeds)
        self.module.train()
        named = {**teachers, **{name: tokens for name, tokens in targets.items() if name not in teachers}}
        return named | {f"student {name}".removesuffix(" fused"): tokens for name, tokens in student.items()}

    def _teacher_tokens(self, images: Tensor, kept: dict[str, Tensor] | None) -> Iterator[tuple[str, Tensor]]:
        """One teacher after the other, in the same order on every rank: with ZeRO-3 each forward is a collective."""
        for name, teacher in self._teachers.items():
            if kept is None:
                yield (
                    name,
                    teacher(images),
                )  # no name of ours: it would keep these tokens through the next teacher's pass
            else:
                kept[name] = teacher(images)
                yield name, kept[name]
