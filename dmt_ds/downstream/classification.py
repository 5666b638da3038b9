"""Training with labels: from scratch (DeiT; Touvron et al., 2021) or from given weights; knows no engine, no file."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from functools import partial

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
from dmt_ds.downstream.answers import Answers, answers_of, joined
from dmt_ds.downstream.classifier import Classifier
from dmt_ds.downstream.master_mean import MasterMean
from dmt_ds.downstream.mixing import mix, neighbours
from dmt_ds.engine.task import Model, Progress, TaskLosses, frozen_weights
from dmt_ds.models.classifier_folder import check_same_classes, find_classifier
from dmt_ds.models.evaluation_mode import evaluating
from dmt_ds.models.start import start_from
from dmt_ds.models.vit import build_vit
from dmt_ds.models.vit_layers import layer_numbers


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


class ClassificationTask:
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
        head_std = section.first_head_std(on_given_weights=student.init_from is not None)
        self.module = Classifier(vit, len(class_names), section.pooling, section.frozen, head_std)
        saved = None if student.init_from is None else find_classifier(student.init_from)
        if saved is not None and not section.frozen:
            check_same_classes(saved, class_names, section.pooling)
            self.module.load_timm_state(saved.state)
        self.class_names = tuple(class_names)
        self.num_classes = len(class_names)
        self._section = section
        self._augment = Augment(augment)
        self._average = MasterMean(self.module) if section.ema_decay else None
        self.untouched = frozen_weights(self.module)

    @property
    def published(self) -> Classifier:
        """What the run leaves: the running mean of the weights, as of the last `state_dict`, or the weights."""
        return self.module if self._average is None else self._average.network

    def layers(self) -> dict[str, int]:
        """The head learns with the last layer."""
        return layer_numbers(self.module, self.module.vit)

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

    def evaluated_models(self, model: Model) -> dict[str, Model]:
        """What is judged, by what stands before `top1` in its metrics' names: the weights, and their running mean.

        All ranks call.
        """
        if self._average is None:
            return {"": model}
        self._average.gather(self.module)
        return {"": model, "ema_": partial(self._average, self.module)}

    def answers(self, models: Mapping[str, Model], batches: Iterable[Batch]) -> dict[str, Answers]:
        """What each of `evaluated_models` says to this rank's images.

        Args:
            batches: this rank's share of the images as they are (`EvalBatchMaker`); a label below 0 is not counted.
        """
        device = self.module.head.weight.device
        found: dict[str, list[Answers]] = {name: [] for name in models}
        with evaluating(self.module), torch.no_grad():
            for batch in batches:
                on_device = batch.to(device)
                pixels = normalize(on_device.images, self._augment.section.mean, self._augment.section.std)
                for name, model in models.items():
                    logits = model(pixels, on_device.seeds)
                    found[name].append(answers_of(logits, on_device.indices, on_device.labels))
        return {name: joined(parts) for name, parts in found.items()}

    def backbone(self) -> nn.Module:
        """The ViT, without head."""
        vit: nn.Module = self.published.vit
        return vit

    def after_step(self, progress: Progress) -> None:
        """The running mean takes its step; at the start it looks back less far, so that it soon forgets the first."""
        if self._average is not None:
            self._average.update(self.module, min(self._section.ema_decay, progress.step / (progress.step + 9)))

    def to(self, device: torch.device) -> None:
        """Move the running mean."""
        if self._average is not None:
            self._average.to(device)

    def state_dict(self) -> dict[str, Tensor]:
        """The running mean, put together from all ranks' parts."""
        if self._average is None:
            return {}
        self._average.gather(self.module)
        return dict(self._average.network.state_dict())

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Inverse of `state_dict`."""
        if self._average is not None:
            self._average.load(state)

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
