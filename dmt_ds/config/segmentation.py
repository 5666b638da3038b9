"""Settings of semantic segmentation; `schema` puts them into a run."""

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator

from dmt_ds.config.section import Count, Fraction, NonNegative, Positive, Section, check_range

IGNORED = 255
"""In a label map: this pixel has no class. As a raw value of an annotation it always means that."""
RawValue = Annotated[int, Field(ge=0, le=255)]


def _number_or_file(value: object) -> object:
    """Digits alone are a number, which recipes and the command line give as text; such a file is `./150`."""
    return int(value) if isinstance(value, str) and value.isdecimal() else value


class SegmentConfig(Section):
    """UPerNet (Xiao et al., 2018) on a ViT: what the annotations mean, how training sees them, heads, evaluation."""

    annotation_column: str = "annotation"
    """Column with the annotations, images whose pixels are class numbers; `data.source: folder` has them in
    annotations/SPLIT/*.png beside images/SPLIT/*."""
    classes: Annotated[str | int | tuple[str, ...] | None, BeforeValidator(_number_or_file)] = None
    """Names of the classes: a list, a JSON file (a list, or raw value -> name), a text file (a name a line, or ADE20K's
    objectInfo150.txt), or their number; null takes classes.json or objectInfo150.txt that lies with the data."""
    ignored_values: tuple[RawValue, ...] = (0,)
    """Raw values without a class, beside 255, which never has one: 0 in ADE20K. The other values are the classes in
    order, so that there 1 is class 0."""
    short_side: Count | None = None
    """Images are scaled to this short side, in pixels, before all else (the long side is at most four times as long);
    null leaves them as they are."""
    scale: tuple[Positive, Positive] = (0.5, 2.0)
    """Range of the factor by which training scales that; the crop's side is `data.image_size`, and what the image does
    not fill is ignored."""
    max_class_share: Fraction = 0.75
    """Training draws a crop anew, up to ten times, in which one class has more than this share of the pixels with a
    class, or no pixel has one; 1 never does."""
    photometric: bool = True
    """Brightness, contrast, saturation and hue of training images are changed (MMSegmentation's distortion)."""
    blocks: tuple[Annotated[int, Field(ge=0)], ...] | None = None
    """Four blocks, counted from 0, whose patch tokens become the pyramid; null takes those at 1/3, 1/2, 2/3 and the end
    of the depth: 3, 5, 7, 11 of 12."""
    channels: Count | None = None
    """Width of UPerNet's head; null takes the encoder's."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Share of the channels that an image loses before each head's last layer."""
    auxiliary_weight: NonNegative = 0.4
    """Of the loss of a small convolutional head on the third map; 0 leaves the head out."""
    auxiliary_channels: Count = 256
    """Width of that head."""
    test_window: Literal["slide", "whole"] = "slide"
    """Validation images are seen through windows of the crop's size, whose scores are averaged where they overlap, or
    at once, with positions interpolated to their size."""
    test_stride: Count | None = None
    """From one window to the next, in pixels; null takes two thirds of the crop."""

    @model_validator(mode="after")
    def _values_fit(self) -> "SegmentConfig":
        check_range("scale", self.scale)
        if self.blocks is not None and (len(self.blocks) != 4 or list(self.blocks) != sorted(self.blocks)):
            raise ValueError(f"blocks {list(self.blocks)}: give four, the lowest first, such as [3, 5, 7, 11]")
        if isinstance(self.classes, int) and not 1 <= self.classes <= IGNORED:
            raise ValueError(f"classes={self.classes}: must be 1 to {IGNORED}")
        return self
