"""Masked autoencoder: three quarters of an image are guessed from the rest (He et al., 2022); knows no engine."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from dmt_ds.config.methods import AugmentConfig, MaeConfig
from dmt_ds.config.schema import DataConfig, StudentConfig
from dmt_ds.config.section import multiples_near
from dmt_ds.data.augment import Augment
from dmt_ds.data.batch import Batch
from dmt_ds.data.views import CropSpec
from dmt_ds.engine.task import Model, Progress, StatelessTask, TaskLosses
from dmt_ds.errors import ConfigError
from dmt_ds.methods.encoder import build_encoder, encode, patch_embeddings, patch_positions
from dmt_ds.methods.masking import patch_order, take_rows
from dmt_ds.models.drop_path import drop_path_seeds
from dmt_ds.models.student import xavier_linear
from dmt_ds.models.vit import build_vit


def patchify(images: Tensor, patch_size: int) -> Tensor:
    """[B, 3, H, W] -> [B, N, P * P * 3]: patches row by row, in each row, column, colour (the authors' order)."""
    batch, channels, height, width = images.shape
    rows, columns = height // patch_size, width // patch_size
    grid = images.reshape(batch, channels, rows, patch_size, columns, patch_size)
    return grid.permute(0, 2, 4, 3, 5, 1).reshape(batch, rows * columns, patch_size * patch_size * channels)


def reconstruction_loss(predicted: Tensor, patches: Tensor, mask: Tensor, normalize_pixels: bool) -> Tensor:
    """Mean squared error over the hidden patches of the batch, in float32.

    Args:
        predicted: [B, N, P * P * 3].
        patches: [B, N, P * P * 3], the true pixels.
        mask: [B, N] bool, True where hidden.
        normalize_pixels: each true patch has its own mean and (unbiased) standard deviation removed.
    """
    target = patches.float()
    if normalize_pixels:
        variance, mean = torch.var_mean(target, dim=2, keepdim=True)
        target = (target - mean) / (variance + 1e-6).sqrt()
    error = (predicted.float() - target).square().mean(dim=2)  # [B, N]
    return (error * mask).sum() / mask.sum()


def num_kept_patches(mask_ratio: float, num_patches: int) -> int:
    """How many patches the encoder sees.

    Raises:
        ConfigError: it would see none, or all.
    """
    if num_patches < 2:
        raise ConfigError(
            "data.image_size is one student.patch_size: an image is a single patch and nothing is left to guess; take "
            "a larger data.image_size, or a smaller student.patch_size"
        )
    kept = num_patches - round(mask_ratio * num_patches)
    if not 0 < kept < num_patches:
        raise ConfigError(
            f"mae.mask_ratio {mask_ratio} of {num_patches} patches leaves {kept} to see; "
            f"take one between {1 / num_patches:.3f} and {1 - 1 / num_patches:.3f}"
        )
    return kept


def check_decoder(section: MaeConfig) -> None:
    """Whether the decoder can be built.

    Raises:
        ConfigError: its width fits neither its heads nor its fixed positions; names the setting.
    """
    width, heads = section.decoder_embed_dim, section.decoder_num_heads
    step = math.lcm(4, heads)
    if width % step:
        raise ConfigError(
            f"mae.decoder_embed_dim {width} is not a multiple of mae.decoder_num_heads {heads} and of 4, as its "
            f"sine-cosine positions need: take {multiples_near(width, step)}"
        )


class MaeModule(nn.Module):
    """All that is trained: the encoder, which is kept, and the decoder, which is not."""

    def __init__(self, student: StudentConfig, section: MaeConfig, image_size: int) -> None:
        super().__init__()
        check_decoder(section)
        self.encoder = build_encoder(student, image_size)
        width = section.decoder_embed_dim
        decoder: Any = build_vit(
            StudentConfig(
                patch_size=student.patch_size,
                embed_dim=width,
                depth=section.decoder_depth,
                num_heads=section.decoder_num_heads,
                drop_path=0.0,
            ),
            image_size,
        )
        self.decoder_blocks, self.decoder_norm = decoder.blocks, decoder.norm
        self.decoder_pos_embed = decoder.pos_embed  # [1, 1+N, D'], fixed
        self.decoder_embed = xavier_linear(self.encoder.embed_dim, width)
        self.mask_token = nn.Parameter(torch.empty(1, 1, width).normal_(std=0.02))
        self.decoder_pred = xavier_linear(width, 3 * student.patch_size**2)

    def forward(self, images: Tensor, order: Tensor, num_kept: int, seeds: Tensor) -> Tensor:
        """Guess all patches from the first `num_kept` of each image's order.

        Args:
            images: [B, 3, H, W] float, normalised.
            order: [B, N] int64, a permutation of the patches an image.
            seeds: [B] int64, for drop path.

        Returns:
            [B, N, P * P * 3], the guess for each patch, in the image's own order.
        """
        patches = patch_embeddings(self.encoder, images) + patch_positions(self.encoder)
        with drop_path_seeds(self.encoder, seeds):
            seen = self.decoder_embed(encode(self.encoder, take_rows(patches, order[:, :num_kept])))  # [B, 1+K, D']
        hidden = self.mask_token.expand(len(order), order.shape[1] - num_kept, -1)
        tokens = take_rows(torch.cat([seen[:, 1:], hidden], dim=1), order.argsort(dim=1))  # [B, N, D']
        tokens = torch.cat([seen[:, :1], tokens], dim=1) + self.decoder_pos_embed
        guess: Tensor = self.decoder_pred(self.decoder_norm(self.decoder_blocks(tokens))[:, 1:])
        return guess


class MaeTask(StatelessTask):
    """Pretraining by reconstruction; the result is the encoder.

    Args:
        student: the encoder.
        image_size: side of the crop, in pixels.
        augment: of the pixels that are both seen and guessed (the authors only crop and flip).
    """

    def __init__(self, student: StudentConfig, section: MaeConfig, image_size: int, augment: AugmentConfig) -> None:
        self.module = MaeModule(student, section, image_size)
        self._section = section
        self._patch_size = student.patch_size
        self._num_patches = (image_size // student.patch_size) ** 2
        self._num_kept = num_kept_patches(section.mask_ratio, self._num_patches)
        self._augment = Augment(augment)

    def crops(self, data: DataConfig) -> tuple[CropSpec, ...]:
        """One crop, as `data` has it."""
        return (CropSpec.from_section(data),)

    def losses(self, model: Model, batch: Batch, progress: Progress, diagnose: bool) -> TaskLosses:
        """Error of the guess on the patches that the encoder did not see."""
        images = self._augment(batch.images, batch.seeds, view=0)  # [B, 3, H, W]
        order = patch_order(batch.seeds, "mae/order", self._num_patches)
        mask = torch.ones_like(order, dtype=torch.bool).scatter(1, order[:, : self._num_kept], False)
        predicted = model(images, order, self._num_kept, batch.seeds)
        target = patchify(images, self._patch_size)
        loss = reconstruction_loss(predicted, target, mask, self._section.normalize_pixels)
        return TaskLosses(loss, {"train/loss_reconstruction": loss.detach()})

    def backbone(self) -> nn.Module:
        """The encoder."""
        vit: nn.Module = self.module.encoder
        return vit
