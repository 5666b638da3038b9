"""Images become feature vectors of a frozen encoder; knows no file, no classifier."""

import logging
import time
from collections.abc import Callable, Iterable
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from dmt_ds.data.batch import Batch
from dmt_ds.errors import DataError, WeightsError
from dmt_ds.models.evaluation_mode import evaluating

logger = logging.getLogger(__name__)

FeatureKind = Literal["class", "patch_mean"]
FEATURE_KINDS: tuple[FeatureKind, ...] = ("class", "patch_mean")

_SECONDS_BETWEEN_LINES = 10.0


class Features(NamedTuple):
    """What an encoder says of each image, in the order of the batches; all on the CPU."""

    class_token: Tensor
    """[n, D] float32."""
    patch_mean: Tensor
    """Mean of the patch tokens, [n, D] float32."""
    labels: Tensor
    """[n] int64."""

    def of(self, kind: FeatureKind) -> Tensor:
        """One of the two, [n, D]."""
        return self.class_token if kind == "class" else self.patch_mean


def extract_features(encoder: nn.Module, batches: Iterable[Batch], device: torch.device) -> Features:
    """Both feature vectors of every image, by one pass of an encoder in evaluation mode without gradient.

    Args:
        encoder: uint8 images [B, 3, H, W] -> tokens [B, 1+N, D]; is left on `device`, in the mode it came in.
        batches: every image once.
        device: where the encoder runs.

    Raises:
        WeightsError: the encoder gives numbers that are not finite.
        DataError: there is no image.
    """
    encoder.to(device)
    with evaluating(encoder), torch.no_grad():
        (class_token, patch_mean), labels = _collect(batches, lambda images: _pooled(encoder(images.to(device))))
    bad = ~(class_token.isfinite().all(dim=1) & patch_mean.isfinite().all(dim=1))  # [n]
    if bad.any():
        raise WeightsError(
            f"encoder gives NaN or infinity for {bad.sum().item()} of {len(bad)} images; its weights are broken"
        )
    return Features(class_token, patch_mean, labels)


def pixel_features(batches: Iterable[Batch]) -> Features:
    """The images themselves, for the baseline: the same [n, 3*H*W] float32 in 0..1 for both kinds."""
    (pixels,), labels = _collect(batches, lambda images: (images.flatten(1).float() / 255,))
    return Features(pixels, pixels, labels)


def _pooled(tokens: Tensor) -> tuple[Tensor, Tensor]:
    """[B, 1+N, D] -> class token and mean patch token, [B, D] float32 each."""
    return tokens[:, 0].float(), tokens[:, 1:].float().mean(dim=1)


def _collect(
    batches: Iterable[Batch], features_of: Callable[[Tensor], tuple[Tensor, ...]]
) -> tuple[list[Tensor], Tensor]:
    """Each kind of feature, [n, D], and the labels, [n], all on the CPU."""
    features: list[tuple[Tensor, ...]] = []
    labels: list[Tensor] = []
    num_images, start = 0, time.monotonic()
    next_line = start + _SECONDS_BETWEEN_LINES
    for batch in batches:
        features.append(tuple(feature.cpu() for feature in features_of(batch.images)))
        labels.append(batch.labels.cpu())
        num_images += len(batch.labels)
        if (now := time.monotonic()) >= next_line:
            logger.info("features of %d images, %.0f images/s", num_images, num_images / (now - start))
            next_line = now + _SECONDS_BETWEEN_LINES
    if not features:
        raise DataError("there is no image to compute features of; check data.path and the split's name")
    return [torch.cat(parts) for parts in zip(*features, strict=True)], torch.cat(labels)
