"""Settings of detection and instance segmentation; imports no torch."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from dmt_ds.config.section import Count, Fraction, Positive, Section


class DetectConfig(Section):
    """Boxes and masks of objects (COCO): an encoder under Mask R-CNN or Cascade Mask R-CNN."""

    annotations: str = "annotations/instances_{split}.json"
    """COCO JSON of a split, relative to data.path; `{split}` is data.train_split or data.val_split."""
    images: str = "{split}"
    """Folder of the images that the JSON names, relative to data.path."""
    heads: Literal["mask_rcnn", "cascade"] = "mask_rcnn"
    """Mask R-CNN (He et al., 2017), or Cascade Mask R-CNN: three stages of boxes (Cai and Vasconcelos, 2018)."""
    masks: bool = True
    """Learn masks too; without masks it is Faster R-CNN or Cascade R-CNN."""
    short_sides: Annotated[tuple[Count, ...], Field(min_length=1)] = tuple(range(480, 801, 32))
    """Lengths of an image's shorter side in training, in pixels; one is drawn for each image."""
    max_side: Count = 1333
    """Upper limit of the longer side, in pixels."""
    eval_short_side: Count = 800
    """Shorter side of an image in evaluation, in pixels."""
    window_size: Annotated[int, Field(ge=0)] = 0
    """Side, in patches, of the windows within which most blocks attend, for large images (14 in ViTDet); 0: all blocks
    attend over the whole image."""
    num_global_blocks: Count = 4
    """Number of evenly spaced blocks that see the whole image when the others have windows."""
    neck_width: Count = 256
    """Channels of the feature pyramid."""
    head_width: Count = 1024
    """Width of the box heads' hidden layer."""
    head_convs: Annotated[int, Field(ge=0)] = 4
    """Number of convolutions in each box head, and in the mask head."""
    anchor_sizes: Annotated[tuple[Positive, ...], Field(min_length=5, max_length=5)] = (32, 64, 128, 256, 512)
    """Sides of the square anchors, in pixels, on the pyramid's five levels from fine to coarse."""
    anchor_samples: Count = 256
    """Anchors per image in the proposals' loss; half of them positive if there are enough."""
    num_proposals: Count = 1000
    """Proposals per image that go to the box heads; twice as many in training."""
    box_samples: Count = 512
    """Proposals per image in a box head's loss; a quarter of them positive if there are enough."""
    score_threshold: Fraction = 0.05
    """Lowest score at which an object counts as found."""
    nms_threshold: Fraction = 0.5
    """Overlap (IoU) above which the less likely of two boxes of one class is dropped."""
    max_detections: Count = 100
    """Most objects per image."""

    @model_validator(mode="after")
    def _a_short_side_is_no_longer_than_the_longest(self) -> "DetectConfig":
        too_long = [side for side in (*self.short_sides, self.eval_short_side) if side > self.max_side]
        if too_long:
            raise ValueError(
                f"max_side {self.max_side} is below the short side {too_long[0]}: set max_side to it or more"
            )
        return self
