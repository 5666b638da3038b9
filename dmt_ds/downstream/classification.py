"""Training with labels: from scratch (DeiT; Touvron et al., 2021) or from given weights; knows no engine, no file."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dmt_ds.config.methods import AugmentConfig, ClassifyConfig
from dmt_ds.config.schema import DataConfig, StudentConfig
from dmt_ds.data.augment import Augment, normalize
from dmt_ds.data.batch import Batch
from dmt_ds.data.erasing import erase
from dmt_ds.data.rand_augment import RandAugment
from dmt_ds.data.views import CropSpec
from dmt_ds.downstream.accuracy import Accuracy, num_right
from dmt_ds.downstream.mixing import mix, neighbours
from dmt_ds.engine import dist
from dmt_ds.engine.task import AllInModule, Model, Progress, TaskLosses
from dmt_ds.models.drop_path import drop_path_seeds
from dmt_ds.models.teachers import start_from
from dmt_ds.models.vit import build_vit, tokens_of


def soft_targets(labels: Tensor, others: Tensor, own_share: Tensor, num_classes: int, smoothing: float) -> Tensor:
    """What the classifier should answer to mixed images: [B], [B] and [B] -> [B, C] float32, rows sum to 1.

    Args:
        labels: each image's own class.
        others: class of the image that is mixed in.
        own_share: of the image in its mixture, 0 to 1.
        smoothing: share of the target that is spread evenly over all classes.
    """
    share = own_share[:, None]
    mixture = share * F.one_hot(labels, num_classes) + (1 - share) * F.one_hot(others, num_classes)
    return (1 - smoothing) * mixture + smoothing / num_classes


def soft_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean over images of -sum_c target * log softmax(logits), in float32: [B, C] and [B, C] -> scalar."""
    return F.cross_entropy(logits.float(), targets)


class Classifier(nn.Module):
    """A ViT and a linear head.

    The norm is the ViT's own final LayerNorm and no other, so that the encoder that is kept has it. `class` takes the
    class token after it, as DeiT does. `patch_mean` takes the mean of the patch tokens before it, and norms that mean,
    as MAE, BEiT and TinyMIM do when they fine-tune (timm's `fc_norm`); as it then stands in another place than where
    given weights had it, it starts afresh.

    Args:
        vit: the encoder; all that is kept as the backbone.
        pooling: `class` or `patch_mean`, as `ClassifyConfig.pooling` has it.
    """

    def __init__(self, vit: nn.Module, num_classes: int, pooling: str) -> None:
        super().__init__()
        self.vit = vit
        self.pooling = pooling
        parts: Any = vit
        if pooling == "patch_mean":
            parts.norm.reset_parameters()
        self.head = nn.Linear(parts.embed_dim, num_classes)
        nn.init.trunc_normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)

    def forward(self, images: Tensor, seeds: Tensor) -> Tensor:
        """Scores of the classes.

        Args:
            images: [B, 3, H, W] float, normalised.
            seeds: [B] int64, one an image: drop path is drawn from them in training.

        Returns:
            [B, C], before the softmax.
        """
        with drop_path_seeds(self.vit, seeds):
            pooled = self._pooled(images.to(self.head.weight.dtype))
        logits: Tensor = self.head(pooled)
        return logits

    def timm_state(self, masters: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The whole classifier as timm names it: `norm` is `fc_norm` where the mean of the patch tokens is normed.

        Args:
            masters: float32 weights of what is trained, by this module's names; they win over its own.
        """
        state = {}
        for key, value in self.state_dict().items():
            name = key.removeprefix("vit.")
            if self.pooling == "patch_mean" and name.startswith("norm."):
                name = f"fc_{name}"
            state[name] = masters.get(key, value).detach().float().cpu()
        return state

    def _pooled(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, D]."""
        if self.pooling == "class":
            return tokens_of(self.vit, images)[:, 0]
        vit: Any = self.vit
        (patches,) = vit.forward_intermediates(
            images, indices=1, norm=False, output_fmt="NLC", intermediates_only=True
        )  # [B, N, D]: the last block's, without class token
        pooled: Tensor = vit.norm(patches.mean(dim=1))
        return pooled


class ClassificationTask(AllInModule):
    """Learns the classes of the training split; the result is the encoder, and the accuracy of the whole.

    Args:
        student: the encoder; starts from `init_from` where that is set.
        image_size: side of the crop, in pixels.
        augment: of the pixels on the device; DeiT has none but RandAugment, mixing and erasing.
        class_names: of the data set, by class number.
    """

    def __init__(
        self,
        student: StudentConfig,
        section: ClassifyConfig,
        image_size: int,
        augment: AugmentConfig,
        class_names: Sequence[str],
    ) -> None:
        vit = build_vit(student, image_size)
        if student.init_from is not None:
            start_from(vit, student.init_from, image_size)
        self.module = Classifier(vit, len(class_names), section.pooling)
        self.class_names = tuple(class_names)
        self.num_classes = len(class_names)
        self._section = section
        self._augment = Augment(augment)

    def crops(self, data: DataConfig) -> tuple[CropSpec, ...]:
        """One crop, as `data` has it, with RandAugment after it."""
        spec = CropSpec.from_section(data)
        if not self._section.rand_augment_magnitude:
            return (spec,)
        red, green, blue = (round(255 * channel) for channel in self._augment.section.mean)
        operations = RandAugment(
            self._section.rand_augment_magnitude, self._section.rand_augment_std, (red, green, blue), spec.interpolation
        )
        return (dataclasses.replace(spec, rand_augment=operations),)

    def losses(self, model: Model, batch: Batch, progress: Progress, diagnose: bool) -> TaskLosses:
        """Soft cross-entropy of the mixed images.

        `train/top1` counts an answer as right that names the class with the larger part in the mixture: plain accuracy
        where nothing is mixed.
        """
        images, others, own_share = self._mixed(batch)
        logits = model(images, batch.seeds)
        targets = soft_targets(batch.labels, others, own_share, self.num_classes, self._section.label_smoothing)
        loss = soft_cross_entropy(logits, targets)
        right = logits.argmax(dim=1) == torch.where(own_share >= 0.5, batch.labels, others)
        return TaskLosses(loss, {"train/loss_classification": loss.detach(), "train/top1": right.float().mean()})

    def evaluate(self, model: Model, batches: Iterable[Batch]) -> Accuracy:
        """Accuracy over the batches of all ranks, each image counted once; all ranks call, with equally many batches.

        Args:
            batches: this rank's share of the images as they are (`eval_batches`); a label below 0 is not counted.
        """
        counts = torch.zeros(3, dtype=torch.int64, device=self.module.head.weight.device)
        was_training = self.module.training
        self.module.eval()
        with torch.no_grad():
            for batch in batches:
                counts += self._num_right(model, batch.to(counts.device))
        self.module.train(was_training)
        top1, top5, num_images = dist.sum_over_ranks(counts).tolist()
        return Accuracy(top1 / num_images, top5 / num_images)

    def backbone(self) -> nn.Module:
        """The ViT, without head."""
        vit: nn.Module = self.module.vit
        return vit

    def _mixed(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Images [B, 3, H, W] as the ViT sees them, the classes mixed in [B], and each image's own share [B]."""
        section, seeds = self._section, batch.seeds
        images = erase(self._augment(batch.images, seeds), seeds, section.erasing)
        if not section.mixes:
            return images, batch.labels, torch.ones_like(seeds, dtype=torch.float32)
        images, own_share = mix(
            images, seeds, section.mixup, section.cutmix, section.mix_probability, section.cutmix_share
        )
        return images, neighbours(batch.labels), own_share

    def _num_right(self, model: Model, batch: Batch) -> Tensor:
        """[3] int64: right in the first class, in the first five, and images counted."""
        pixels = normalize(batch.images, self._augment.section.mean, self._augment.section.std)
        counted = batch.labels >= 0
        logits = model(pixels, batch.seeds)[counted].float()
        return torch.cat([num_right(logits, batch.labels[counted]), counted.sum().reshape(1)])
