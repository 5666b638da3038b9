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
    """Column with the annotations, images whose pixels are class numbers; with `data.source: folder` they are in
    annotations/SPLIT/*.png, next to images/SPLIT/*."""
    classes: Annotated[str | int | tuple[str, ...] | None, BeforeValidator(_number_or_file)] = None
    """Names of the classes: a list, a JSON file (a list, or raw value -> name), a text file (one name per line, or
    ADE20K's objectInfo150.txt), or their number; null takes classes.json or objectInfo150.txt next to the data."""
    ignored_values: tuple[RawValue, ...] = (0,)
    """Raw values without a class, in addition to 255, which never has one. The other values are the classes in order:
    ADE20K ignores 0, so that 1 is class 0."""
    short_side: Count | None = None
    """Images are first scaled to this short side, in pixels (the long side is at most four times as long); null leaves
    them as they are."""
    scale: tuple[Positive, Positive] = (0.5, 2.0)
    """Range of the factor by which training then scales the image; the crop's side is `data.image_size`, and the part
    of it that the image does not fill is ignored."""
    max_class_share: Fraction = 0.75
    """Training redraws a crop, up to ten times, if one class has more than this share of its labelled pixels or no
    pixel is labelled; 1 never redraws."""
    photometric: bool = True
    """Vary brightness, contrast, saturation and hue of training images (MMSegmentation's distortion)."""
    blocks: tuple[Annotated[int, Field(ge=0)], ...] | None = None
    """Four blocks, counted from 0, whose patch tokens become the pyramid; null takes those at 1/3, 1/2, 2/3 and the end
    of the depth: 3, 5, 7 and 11 of 12."""
    channels: Count | None = None
    """Width of UPerNet's head; null takes the encoder's."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Share of an image's channels that are dropped before each head's last layer."""
    auxiliary_weight: NonNegative = 0.4
    """Weight of the loss of a small convolutional head on the third map; 0 leaves the head out."""
    auxiliary_channels: Count = 256
    """Width of that head."""
    test_window: Literal["slide", "whole"] = "slide"
    """`slide`: validation images are seen through windows of the crop's size, whose scores are averaged where they
    overlap; `whole`: at once, with positions interpolated to the image's size."""
    test_stride: Count | None = None
    """Distance from one window to the next, in pixels; null takes two thirds of the crop."""

    @model_validator(mode="after")
    def _values_fit(self) -> "SegmentConfig":
        check_range("scale", self.scale)
        if self.blocks is not None and (len(self.blocks) != 4 or list(self.blocks) != sorted(self.blocks)):
            raise ValueError(f"blocks {list(self.blocks)}: give four, the lowest first, such as [3, 5, 7, 11]")
        if isinstance(self.classes, int) and not 1 <= self.classes <= IGNORED:
            raise ValueError(f"classes={self.classes}: must be 1 to {IGNORED}")
        return self
