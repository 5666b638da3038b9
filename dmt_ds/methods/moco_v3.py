"""MoCo v3: two crops of an image agree in a contrast with all other images (Chen et al., 2021); knows no engine.

Negatives are the images of one micro-batch on all ranks: unlike the other methods, its loss depends on
`train.micro_batch_size` times the number of ranks, and accumulation adds none (`dmt-ds doctor` warns). On the CPU the
heads' batch norm is that of each rank alone.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dmt_ds.config.methods import MocoV3Config
from dmt_ds.config.schema import DataConfig, StudentConfig
from dmt_ds.data.augment import Augment
from dmt_ds.data.batch import Batch
from dmt_ds.data.views import CropSpec
from dmt_ds.engine import dist
from dmt_ds.engine.task import Model, Progress, TaskLosses
from dmt_ds.methods.crops import augmented_crops, crop_seeds
from dmt_ds.methods.encoder import build_encoder, weights_type
from dmt_ds.methods.heads import batch_norm_mlp, share_batch_norm
from dmt_ds.methods.momentum import MomentumNetwork, momentum_at
from dmt_ds.methods.state import with_prefix, without_prefix
from dmt_ds.models.drop_path import drop_path_seeds
from dmt_ds.models.vit import tokens_of


def contrast(queries: Tensor, keys: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Cross entropy of finding an image's key among those of all ranks, and how often it is the nearest.

    Args:
        queries: [B, C], of this rank, any length.
        keys: [B, C], row by row those of the same images; no gradient flows to them.

    Returns:
        Loss, scalar float32, scaled by 2 * temperature as in the authors' code; accuracy, scalar float32.
    """
    unit_queries = F.normalize(queries.float(), dim=1)
    all_keys = dist.gather_rows(F.normalize(keys.detach().float(), dim=1))  # [world * B, C]
    logits = unit_queries @ all_keys.T / temperature  # [B, world * B]
    own = torch.arange(len(queries), device=queries.device) + dist.rank() * len(queries)
    loss = F.cross_entropy(logits, own) * (2 * temperature)
    return loss, (logits.detach().argmax(dim=1) == own).float().mean()


def initialise_as_authors(vit: Any) -> None:
    """What MoCo v3 does otherwise than MAE: query, key and value are three matrices; class token and bias near 0."""
    for block in vit.blocks:
        bound = math.sqrt(6 / (2 * vit.embed_dim))
        nn.init.uniform_(block.attn.qkv.weight, -bound, bound)
    nn.init.normal_(vit.cls_token, std=1e-6)
    nn.init.zeros_(vit.patch_embed.proj.bias)


class KeyNetwork(nn.Module):
    """ViT and projector: what the momentum network is an average of."""

    def __init__(self, student: StudentConfig, section: MocoV3Config, image_size: int) -> None:
        super().__init__()
        self.vit = build_encoder(student, image_size)
        if student.init_from is None:
            initialise_as_authors(self.vit)
        if section.freeze_patch_embed:
            self.vit.patch_embed.requires_grad_(False)
        hidden = section.hidden_dim
        self.projector = batch_norm_mlp((self.vit.embed_dim, hidden, hidden, section.output_dim))

    def forward(self, images: Tensor, seeds: Tensor) -> tuple[Tensor, Tensor]:
        """Keys of both crops, together in the ViT, each alone in the batch norms: [2B, 3, H, W] -> 2 of [B, C]."""
        with drop_path_seeds(self.vit, seeds):
            tokens = tokens_of(self.vit, images.to(weights_type(self.vit)))  # [2B, 1+N, D]
        first, second = tokens[:, 0].chunk(2)  # each [B, D]
        return self.projector(first), self.projector(second)


class MocoV3Module(nn.Module):
    """All that is trained: the key network's twin and the predictor on top of it."""

    def __init__(self, student: StudentConfig, section: MocoV3Config, image_size: int) -> None:
        super().__init__()
        self.encoder = KeyNetwork(student, section, image_size)
        self.predictor = batch_norm_mlp((section.output_dim, section.hidden_dim, section.output_dim))

    def forward(self, images: Tensor, seeds: Tensor) -> tuple[Tensor, Tensor]:
        """Queries of the two crops: [2B, 3, H, W] -> 2 of [B, C]."""
        first, second = self.encoder(images, seeds)
        return self.predictor(first), self.predictor(second)


class MocoV3Task:
    """Pretraining by contrast; the result is the trained encoder, not its average (as in the paper).

    Args:
        student: the encoder.
        image_size: side of both crops, in pixels.
    """

    def __init__(self, student: StudentConfig, section: MocoV3Config, image_size: int) -> None:
        self.module = MocoV3Module(student, section, image_size)
        self._keys = MomentumNetwork(self.module.encoder)
        self._section = section
        self._augments = (Augment(section.view_1), Augment(section.view_2))

    def crops(self, data: DataConfig) -> tuple[CropSpec, ...]:
        """Two crops, as `data` has them."""
        return (CropSpec.from_section(data), CropSpec.from_section(data))

    def losses(self, model: Model, batch: Batch, progress: Progress, diagnose: bool) -> TaskLosses:
        """The loss of each crop's query against the other crop's keys."""
        images = torch.cat(augmented_crops(batch, self._augments))  # [2B, 3, H, W]
        seeds = crop_seeds(batch.seeds, 2)
        query_1, query_2 = model(images, seeds)
        key_1, key_2 = self._keys(self.module, images, seeds)
        loss_1, accuracy_1 = contrast(query_1, key_2, self._section.temperature)
        loss_2, accuracy_2 = contrast(query_2, key_1, self._section.temperature)
        loss = loss_1 + loss_2
        metrics = {
            "train/loss_contrastive": loss.detach(),
            "train/contrastive_accuracy": (accuracy_1 + accuracy_2) / 2,
        }
        return TaskLosses(loss, metrics)

    def after_step(self, progress: Progress) -> None:
        """The key network follows the trained one."""
        self._keys.update(self.module.encoder, momentum_at(self._section.momentum, progress))

    def to(self, device: torch.device) -> None:
        """Moves the key network, and shares batch norm over CUDA ranks: before an engine takes the module."""
        share_batch_norm(self.module, device)
        share_batch_norm(self._keys.network, device)
        self._keys.to(device)

    def state_dict(self) -> dict[str, Tensor]:
        """The key network."""
        return with_prefix("keys", self._keys.network.state_dict())

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Inverse of `state_dict`."""
        self._keys.network.load_state_dict(without_prefix("keys", state))

    def backbone(self) -> nn.Module:
        """The trained encoder."""
        vit: nn.Module = self.module.encoder.vit
        return vit
