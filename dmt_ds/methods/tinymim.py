"""TinyMIM and m-TinyMIM: the student learns the relations inside its teachers' last block (Ren et al., 2023).

Knows no engine's library.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from dmt_ds.config.methods import TinyMimConfig
from dmt_ds.config.schema import DataConfig
from dmt_ds.data.augment import Augment
from dmt_ds.data.batch import Batch
from dmt_ds.data.views import CropSpec
from dmt_ds.distill.relations import relation_loss
from dmt_ds.engine.task import Model, Progress, StatelessTask, TaskLosses
from dmt_ds.methods.dmt import Teacher
from dmt_ds.methods.once import OncePerBatch
from dmt_ds.models.relations import RelationStudent
from dmt_ds.tracking.spans import span


def relations(teachers: Mapping[str, Teacher], num_students: int = 1) -> OncePerBatch[dict[str, Tensor]]:
    """All teachers' queries, keys and values of a micro-batch, in one pass for all students.

    Args:
        teachers: name -> uint8 images [B, 3, H, W] to the last block's queries, keys, values, [B, 3, heads, 1+N, d].
    """

    @torch.no_grad()
    def ask(batch: Batch, diagnose: bool) -> dict[str, Tensor]:
        # One teacher after the other, in the same order on every rank: with ZeRO-3 each forward is a collective.
        return {name: teacher(batch.images) for name, teacher in teachers.items()}

    return OncePerBatch(ask, num_students)


class TinyMimTask(StatelessTask):
    """Trains a student against its teachers' relations; the teachers are never part of `module`.

    Args:
        teachers: what `relations` gives.
        weights: name -> weight in the mean over teachers.
        section: weights of the two losses.
        augment: of the student's pixels; teachers see them as they are.
    """

    def __init__(
        self,
        student: RelationStudent,
        teachers: OncePerBatch[dict[str, Tensor]],
        weights: Mapping[str, float],
        section: TinyMimConfig,
        augment: Augment,
    ) -> None:
        self.module = student
        self._teachers = teachers
        self._weights = dict(weights)
        self._section = section
        self._augment = augment

    def crops(self, data: DataConfig) -> tuple[CropSpec, ...]:
        """One crop an image, the same for teachers and student: tokens are compared position by position."""
        return (CropSpec.from_section(data),)

    def backbone(self) -> nn.Module:
        """The student's ViT."""
        return self.module.vit

    def losses(self, model: Model, batch: Batch, progress: Progress, diagnose: bool) -> TaskLosses:
        """Both relations' losses on one micro-batch, the mean over teachers."""
        with span("teachers"):
            teacher_qkvs = self._teachers(batch, diagnose)
        with span("augmentation"):
            images = self._augment(batch.images, batch.seeds)
        student_qkv = model(images, batch.seeds)  # [B, 3, heads, 1+N, d]
        qk, vv = student_qkv.new_zeros(2, dtype=torch.float32)
        if self._section.qk_weight:
            qk = relation_loss("qk", student_qkv, teacher_qkvs, self._weights)
        if self._section.vv_weight:
            vv = relation_loss("vv", student_qkv, teacher_qkvs, self._weights)
        total = self._section.qk_weight * qk + self._section.vv_weight * vv
        return TaskLosses(total, {"train/loss_qk": qk.detach(), "train/loss_vv": vv.detach()})
