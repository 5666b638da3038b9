"""Boxes by one stage, or refined by several (Cascade R-CNN; Cai and Vasconcelos, 2018), of torchvision's heads."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection.roi_heads import RoIHeads, fastrcnn_loss, maskrcnn_inference
from torchvision.ops import clip_boxes_to_image, remove_small_boxes

from dmt_ds.downstream.detection.box_masks import cut_out

Targets = list[dict[str, Tensor]]
Sizes = list[tuple[int, int]]

STAGES = (
    (0.5, (10.0, 10.0, 5.0, 5.0)),
    (0.6, (20.0, 20.0, 10.0, 10.0)),
    (0.7, (30.0, 30.0, 15.0, 15.0)),
)
"""Of each stage: the overlap from which a proposal is an object, and the weights of its box's corrections."""
LOSS_WEIGHTS = (1.0, 0.5, 0.25)
"""Of the stages' losses, as MMDetection has them."""
_SMALLEST_SIDE = 1e-2


class CascadeHeads(nn.Module):
    """Stages that each take the boxes of the one before; masks are those of the first stage's heads.

    Each stage draws its samples anew, the annotated boxes among them. With one stage it is torchvision's `RoIHeads`,
    with masks' targets in their place (`box_masks`).

    Args:
        stages: several have one correction of a box for all classes each; the first may have a mask head.
        loss_weights: of their box losses.
    """

    def __init__(self, stages: Sequence[RoIHeads], loss_weights: Sequence[float]) -> None:
        super().__init__()
        self.stages = nn.ModuleList(stages)
        self.loss_weights = tuple(loss_weights)

    def forward(
        self, features: dict[str, Tensor], proposals: list[Tensor], image_shapes: Sizes, targets: Targets | None = None
    ) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
        """Detections of each image, or in training the losses by name; arguments as `RoIHeads.forward` has them."""
        if self.training:
            assert targets is not None
            return [], self._losses(features, proposals, image_shapes, targets)
        return self._detections(features, proposals, image_shapes), {}

    def _losses(
        self, features: dict[str, Tensor], proposals: list[Tensor], sizes: Sizes, targets: Targets
    ) -> dict[str, Tensor]:
        losses: dict[str, Tensor] = {}
        of_stages = []
        stages: Any = self.stages
        for stage, weight in zip(stages, self.loss_weights, strict=True):
            proposals, matched, labels, corrections = stage.select_training_samples(proposals, targets)
            if stage.has_mask():
                losses["loss_mask"] = _mask_loss(stage, features, proposals, matched, labels, sizes, targets)
            scores, found = _boxes(stage, features, proposals, sizes)
            of_stages.append(weight * torch.stack(fastrcnn_loss(scores, found, labels, corrections)))
            refined = _refined(stage, found, proposals, sizes)
            proposals = [boxes[remove_small_boxes(boxes, _SMALLEST_SIDE)] for boxes in refined]
        losses["loss_classifier"], losses["loss_box_reg"] = torch.stack(of_stages).sum(dim=0)
        return losses

    def _detections(
        self, features: dict[str, Tensor], proposals: list[Tensor], sizes: Sizes
    ) -> list[dict[str, Tensor]]:
        shares, refined = [], proposals
        stages: Any = self.stages
        for stage in stages:
            proposals = refined
            scores, found = _boxes(stage, features, proposals, sizes)
            shares.append(scores.softmax(dim=1))
            refined = _refined(stage, found, proposals, sizes)
        mean = torch.stack(shares).mean(dim=0).log()  # torchvision takes its softmax: the mean itself
        found_boxes, found_scores, found_labels = stages[-1].postprocess_detections(mean, found, proposals, sizes)
        detections = [
            {"boxes": boxes, "scores": scores, "labels": labels}
            for boxes, scores, labels in zip(found_boxes, found_scores, found_labels, strict=True)
        ]
        if stages[0].has_mask():
            logits = _mask_logits(stages[0], features, found_boxes, sizes)
            for of_image, masks in zip(detections, maskrcnn_inference(logits, found_labels), strict=True):
                of_image["masks"] = masks
        return detections


def _boxes(stage: Any, features: dict[str, Tensor], proposals: list[Tensor], sizes: Sizes) -> tuple[Tensor, Tensor]:
    """Scores [n, C] and corrections [n, 4 C] of all images' proposals."""
    scores, corrections = stage.box_predictor(stage.box_head(stage.box_roi_pool(features, proposals, sizes)))
    return scores, corrections


def _refined(stage: Any, corrections: Tensor, proposals: list[Tensor], sizes: Sizes) -> list[Tensor]:
    """The boxes of each image after their corrections, cut at its edges; without gradient."""
    with torch.no_grad():
        boxes = stage.box_coder.decode(corrections[:, :4], proposals).reshape(-1, 4)  # [n, 1, 4]; of none it is [0]
        of_images = boxes.split([len(of_image) for of_image in proposals])
        return [clip_boxes_to_image(own, size) for own, size in zip(of_images, sizes, strict=True)]


def _mask_loss(
    stage: Any,
    features: dict[str, Tensor],
    proposals: list[Tensor],
    matched: list[Tensor],
    labels: list[Tensor],
    sizes: Sizes,
    targets: Targets,
) -> Tensor:
    """Of the proposals that are of some object, each at the place of its class."""
    positive = [torch.where(of_image > 0)[0] for of_image in labels]
    boxes = [of_image[rows] for of_image, rows in zip(proposals, positive, strict=True)]
    objects = [of_image[rows] for of_image, rows in zip(matched, positive, strict=True)]
    logits = _mask_logits(stage, features, boxes, sizes)
    wanted = [
        cut_out(target["masks"], *of_image, logits.shape[-1])
        for target, of_image in zip(targets, zip(boxes, objects, strict=True), strict=True)
    ]
    classes = torch.cat([target["labels"][rows] for target, rows in zip(targets, objects, strict=True)])
    if not len(classes):
        return logits.sum() * 0  # so that all weights have a gradient
    own = logits[torch.arange(len(classes), device=logits.device), classes]
    return F.binary_cross_entropy_with_logits(own, torch.cat(wanted))


def _mask_logits(stage: Any, features: dict[str, Tensor], boxes: list[Tensor], sizes: Sizes) -> Tensor:
    """[all boxes, C, 28, 28]."""
    logits: Tensor = stage.mask_predictor(stage.mask_head(stage.mask_roi_pool(features, boxes, sizes)))
    return logits
