"""iBOT and DINO: a student matches its own running mean on other crops and on hidden patches; knows no engine.

iBOT: Zhou et al., 2022; DINO (Caron et al., 2021) is iBOT with `patch_loss_weight: 0`: nothing is hidden and no patch
loss is computed. Head, patch loss and the patches' centre run on as many patches as can be hidden, the hidden ones
first and random others after them, where the authors run head and centre on all. On the CPU the head's batch norm, if
there is one, is that of each rank alone.
"""

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from dmt_ds.config.methods import IbotConfig
from dmt_ds.config.schema import DataConfig, StudentConfig
from dmt_ds.config.section import multiples_near
from dmt_ds.data.augment import Augment
from dmt_ds.data.batch import Batch
from dmt_ds.data.views import CropSpec
from dmt_ds.engine.task import Model, Progress, TaskLosses
from dmt_ds.errors import ConfigError
from dmt_ds.methods.crops import augmented_crops, crop_seeds
from dmt_ds.methods.encoder import build_encoder, encode, patch_embeddings, patch_positions
from dmt_ds.methods.heads import PrototypeHead, share_batch_norm
from dmt_ds.methods.ibot_loss import CentredTargets, class_loss, entropies, patch_loss, warmed_up
from dmt_ds.methods.masking import HiddenPatches, hide_patches, take_rows
from dmt_ds.methods.momentum import MomentumNetwork, momentum_at
from dmt_ds.methods.state import with_prefix, without_prefix
from dmt_ds.models.drop_path import drop_path_seeds
from dmt_ds.models.vit import tokens_of

NUM_GLOBAL_CROPS = 2


def class_temperature(section: IbotConfig) -> Callable[[float], float]:
    """Done share of the run -> temperature of the teacher's class token."""
    start, end = section.teacher_temperature, section.teacher_temperature_final
    return partial(warmed_up, start, end, section.teacher_temperature_warmup)


def patch_temperature(section: IbotConfig) -> Callable[[float], float]:
    """Done share of the run -> temperature of the teacher's patch tokens."""
    start, end = section.teacher_patch_temperature, section.teacher_patch_temperature_final
    return partial(warmed_up, start, end, section.teacher_temperature_warmup)


class Views(NamedTuple):
    """Crops of one size: [R, 3, H, W] float32, normalised, and a seed [R] for each."""

    images: Tensor
    seeds: Tensor


class IbotModule(nn.Module):
    """ViT, mask token and the head that class and patch tokens share: all that is trained."""

    def __init__(self, student: StudentConfig, section: IbotConfig, image_size: int) -> None:
        super().__init__()
        self.vit = build_encoder(student, image_size, any_size=section.local_crops > 0)
        width = self.vit.embed_dim
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.head = PrototypeHead(
            width, section.hidden_dim, section.bottleneck_dim, section.output_dim, section.head_batch_norm
        )

    def forward(
        self,
        large: Views,
        hidden: HiddenPatches | None = None,
        small: Views | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Logits of class tokens, and of the patches in the slots.

        Args:
            large: G global crops.
            hidden: of the global crops; without it nothing is hidden and there are no patch logits.
            small: L local crops.

        Returns:
            Class logits [G + L, K]; patch logits [G, S, K].
        """
        patches = patch_embeddings(self.vit, large.images)  # [G, N, D]
        if hidden is not None:
            patches = torch.where(hidden.mask[:, :, None], self.mask_token, patches)
        with drop_path_seeds(self.vit, large.seeds):
            tokens = encode(self.vit, patches + patch_positions(self.vit))  # [G, 1+N, D]
        rows = [tokens[:, 0]]
        if small is not None:
            with drop_path_seeds(self.vit, small.seeds):
                rows.append(tokens_of(self.vit, small.images.to(patches.dtype))[:, 0])
        class_logits = self.head(torch.cat(rows))
        if hidden is None:
            return class_logits, None
        # A call of its own: a batch norm over class and patch tokens together would mostly tell the two kinds apart.
        patch_rows = take_rows(tokens[:, 1:], hidden.slots).flatten(0, 1)  # [G * S, D]
        return class_logits, self.head(patch_rows).unflatten(0, hidden.slots.shape)


class IbotTask:
    """Pretraining by self-distillation; the result is the running mean of the student (the momentum teacher).

    Args:
        student: the encoder.
        image_size: side of the global crops, in pixels.

    Raises:
        ConfigError: the local crops are no whole number of patches.
    """

    def __init__(self, student: StudentConfig, section: IbotConfig, image_size: int) -> None:
        side, patch = section.local_crop_size, student.patch_size
        if section.local_crops and side % patch:
            near = multiples_near(side, patch)
            raise ConfigError(
                f"ibot.local_crop_size {side} is not a multiple of student.patch_size {patch}: take {near}"
            )
        self.module = IbotModule(student, section, image_size)
        self._teacher = MomentumNetwork(self.module)
        self._class_targets = CentredTargets(section.output_dim, section.center_momentum, class_temperature(section))
        self._patch_targets = CentredTargets(section.output_dim, section.center_momentum, patch_temperature(section))
        self._section = section
        self._num_patches = (image_size // student.patch_size) ** 2
        local = Augment(section.view_local)
        self._augments = (Augment(section.view_1), Augment(section.view_2)) + (local,) * section.local_crops

    @property
    def frozen_until(self) -> Mapping[str, float]:
        """The prototypes, for the first share of the run."""
        share = self._section.freeze_last_layer
        return {"head.prototypes": share} if share else {}

    @property
    def _hides_patches(self) -> bool:
        return self._section.patch_loss_weight > 0

    def crops(self, data: DataConfig) -> tuple[CropSpec, ...]:
        """Two global crops, then the local ones; shape, flip and resampling as `data` has them."""
        section, shared = self._section, CropSpec.from_section(data)
        large = dataclasses.replace(shared, scale=section.global_crop_scale)
        small = dataclasses.replace(shared, scale=section.local_crop_scale, size=section.local_crop_size)
        return (large,) * NUM_GLOBAL_CROPS + (small,) * section.local_crops

    def losses(self, model: Model, batch: Batch, progress: Progress, diagnose: bool) -> TaskLosses:
        """Class loss over pairs of crops, plus the patch loss at what is hidden."""
        section = self._section
        large, small = self._views(batch)
        hidden = self._hidden(large.seeds)
        teacher_class, teacher_patch = self._teacher(self.module, large, hidden.shown() if hidden else None)
        student_class, student_patch = model(large, hidden, small)
        targets = self._class_targets(teacher_class, progress.fraction)  # [2B, K]
        loss = class_loss(student_class, targets, section.student_temperature, len(batch.seeds))
        metrics = {"train/loss_class": loss.detach()}
        if hidden is not None:
            patch_targets = self._patch_targets(teacher_patch, progress.fraction)  # [2B, S, K]
            loss_patch = patch_loss(student_patch, patch_targets, hidden.weights, section.student_temperature)
            loss = loss + section.patch_loss_weight * loss_patch
            metrics["train/loss_patch"] = loss_patch.detach()
        if diagnose:
            each, mean = entropies(targets)
            metrics |= {"train/teacher_entropy_each": each, "train/teacher_entropy_mean": mean}
        return TaskLosses(loss, metrics)

    def after_step(self, progress: Progress) -> None:
        """The teacher follows the student, the centres follow the teacher."""
        self._teacher.update(self.module, momentum_at(self._section.momentum, progress))
        self._class_targets.after_step()
        if self._hides_patches:
            self._patch_targets.after_step()

    def to(self, device: torch.device) -> None:
        """Moves teacher and centres, and shares batch norm over CUDA ranks: before an engine takes the module."""
        share_batch_norm(self.module, device)
        share_batch_norm(self._teacher.network, device)
        self._teacher.to(device)
        self._class_targets.to(device)
        self._patch_targets.to(device)

    def state_dict(self) -> dict[str, Tensor]:
        """Teacher and centres."""
        centres = {"class_centre": self._class_targets.centre, "patch_centre": self._patch_targets.centre}
        return with_prefix("teacher", self._teacher.network.state_dict()) | centres

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Inverse of `state_dict`."""
        self._teacher.network.load_state_dict(without_prefix("teacher", state))
        self._class_targets.centre.copy_(state["class_centre"])
        self._patch_targets.centre.copy_(state["patch_centre"])

    def backbone(self) -> nn.Module:
        """The momentum teacher's ViT."""
        vit: nn.Module = self._teacher.network.vit
        return vit

    def _views(self, batch: Batch) -> tuple[Views, Views | None]:
        """Global crops [2B, 3, H, W], and local ones [L * B, 3, h, w] where there are any."""
        images = augmented_crops(batch, self._augments)
        seeds = crop_seeds(batch.seeds, len(images))
        num_large = NUM_GLOBAL_CROPS * len(batch.seeds)
        large = Views(torch.cat(images[:NUM_GLOBAL_CROPS]), seeds[:num_large])
        if len(images) == NUM_GLOBAL_CROPS:
            return large, None
        return large, Views(torch.cat(images[NUM_GLOBAL_CROPS:]), seeds[num_large:])

    def _hidden(self, seeds: Tensor) -> HiddenPatches | None:
        """What the student must guess; nothing for DINO."""
        section = self._section
        if not self._hides_patches:
            return None
        return hide_patches(
            seeds, "ibot/mask", self._num_patches, section.mask_ratio, section.mask_probability, section.mask_shape
        )
