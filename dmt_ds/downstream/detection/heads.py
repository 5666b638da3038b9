"""torchvision's parts of Mask R-CNN, put together for a ViT's pyramid; knows no ViT, no loss and no data.

Anchors, box arithmetic, ROIAlign and NMS are in float32 whatever the weights' type: torchvision's CUDA kernels of the
last two have no bf16, and a place near 1000 pixels in bf16 is off by up to 2. Convolutions and linear maps run in the
weights' type.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.convnext import LayerNorm2d
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead, FastRCNNPredictor
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead
from torchvision.ops import roi_align
from torchvision.ops.poolers import LevelMapper

from dmt_ds.config.detection import DetectConfig
from dmt_ds.downstream.detection.pyramid import FINE_TO_COARSE
from dmt_ds.downstream.detection.sampling import SeededSampler

_RATIOS = (0.5, 1.0, 2.0)  # height over width of anchors
_RPN_CONVS = 2
_BOX_PIXELS, _MASK_PIXELS = 7, 14  # sides of what ROIAlign gives to the heads


class InOwnType(nn.Module):
    """Layers that compute in the type of their weights, between float32 on either side.

    Args:
        layers: take and give tensors, or lists and tuples of them.
    """

    def __init__(self, layers: nn.Module) -> None:
        super().__init__()
        self.layers = layers

    def forward(self, inputs: Any) -> Any:
        """What the layers give, in float32."""
        return _as_type(self.layers(_as_type(inputs, next(self.layers.parameters()).dtype)), torch.float32)


def _as_type(value: Any, kind: torch.dtype) -> Any:
    if isinstance(value, Tensor):
        return value.to(kind)
    return type(value)(_as_type(part, kind) for part in value)


class PyramidPool(nn.Module):
    """Pools boxes from the level of their size, as torchvision's `MultiScaleRoIAlign`, which is half a cell off.

    Args:
        side: of what is pooled.
        finest_stride: of the pyramid, in pixels; a power of two.
    """

    def __init__(self, side: int, finest_stride: int) -> None:
        super().__init__()
        self.side, self.finest_stride = side, finest_stride
        finest = finest_stride.bit_length() - 1
        self._levels_of = LevelMapper(finest, finest + len(FINE_TO_COARSE) - 1)

    def forward(self, x: dict[str, Tensor], boxes: list[Tensor], image_shapes: list[tuple[int, int]]) -> Tensor:
        """Maps and boxes [n, 4] of each image -> [all boxes, width, side, side]; sizes are not asked for."""
        images = torch.cat([of_image.new_full((len(of_image), 1), number) for number, of_image in enumerate(boxes)])
        places, levels = torch.cat([images, torch.cat(boxes)], dim=1), self._levels_of(boxes)
        pooled = x[FINE_TO_COARSE[0]].new_zeros(len(places), x[FINE_TO_COARSE[0]].shape[1], self.side, self.side)
        for level, name in enumerate(FINE_TO_COARSE):
            (rows,) = torch.where(levels == level)
            pooled[rows] = roi_align(x[name], places[rows], self.side, 1 / (self.finest_stride << level), aligned=True)
        return pooled


class SharedBoxPredictor(FastRCNNPredictor):  # type: ignore[misc]
    """Scores of all classes, and one correction of the box for all of them, as stages of a cascade have."""

    def __init__(self, width: int, num_classes: int) -> None:
        super().__init__(width, num_classes)
        self.num_classes = num_classes
        self.bbox_pred = nn.Linear(width, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """[n, width] -> [n, C] and [n, 4 C], the same four numbers for each class: what torchvision's losses take."""
        scores, corrections = super().forward(x)
        return scores, corrections.repeat(1, self.num_classes)


def build_rpn(section: DetectConfig) -> RegionProposalNetwork:
    """Proposals from the pyramid's five maps, which it takes in float32."""
    anchors = AnchorGenerator(tuple((size,) for size in section.anchor_sizes), (_RATIOS,) * len(section.anchor_sizes))
    proposals = {"training": 2 * section.num_proposals, "testing": section.num_proposals}
    rpn = RegionProposalNetwork(
        anchors,
        InOwnType(RPNHead(section.neck_width, len(_RATIOS), _RPN_CONVS)),
        fg_iou_thresh=0.7,
        bg_iou_thresh=0.3,
        batch_size_per_image=section.anchor_samples,
        positive_fraction=0.5,
        pre_nms_top_n=proposals,
        post_nms_top_n=proposals,
        nms_thresh=0.7,
    )
    rpn.fg_bg_sampler = SeededSampler(section.anchor_samples, 0.5, "anchors")
    return rpn


def build_box_heads(
    section: DetectConfig,
    num_classes: int,
    finest_stride: int,
    *,
    iou: float = 0.5,
    coder_weights: tuple[float, float, float, float] = (10.0, 10.0, 5.0, 5.0),
    shared_boxes: bool = False,
    masks: bool = True,
    stage: int = 0,
) -> RoIHeads:
    """Put torchvision's box head and, as `masks` says, mask head together.

    Args:
        num_classes: with the background, which is class 0.
        finest_stride: of the pyramid, in pixels.
        iou: overlap with an object from which a proposal is of its class, else background.
        coder_weights: of x, y, width and height of a box's correction.
        shared_boxes: one correction for all classes.
        stage: of a cascade; each draws proposals of its own.
    """
    width, convs = section.neck_width, [section.neck_width] * section.head_convs
    predictor = SharedBoxPredictor if shared_boxes else FastRCNNPredictor
    heads = RoIHeads(
        PyramidPool(_BOX_PIXELS, finest_stride),
        InOwnType(
            FastRCNNConvFCHead((width, _BOX_PIXELS, _BOX_PIXELS), convs, [section.head_width], norm_layer=LayerNorm2d)
        ),
        InOwnType(predictor(section.head_width, num_classes)),
        fg_iou_thresh=iou,
        bg_iou_thresh=iou,
        batch_size_per_image=section.box_samples,
        positive_fraction=0.25,
        bbox_reg_weights=coder_weights,
        score_thresh=section.score_threshold,
        nms_thresh=section.nms_threshold,
        detections_per_img=section.max_detections,
    )
    heads.fg_bg_sampler = SeededSampler(section.box_samples, 0.25, f"boxes/{stage}")
    if masks:
        heads.mask_roi_pool = PyramidPool(_MASK_PIXELS, finest_stride)
        layers = MaskRCNNHeads(width, convs, dilation=1, norm_layer=LayerNorm2d)
        heads.mask_head = InOwnType(layers) if convs else nn.Identity()
        heads.mask_predictor = InOwnType(MaskRCNNPredictor(width, width, num_classes))
    return heads
