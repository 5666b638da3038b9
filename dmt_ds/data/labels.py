"""Both splits of a data set with labels, looked at before anything is trained or judged by them; knows no crop."""

from typing import NamedTuple

from dmt_ds.config.schema import DataConfig
from dmt_ds.data.sources import ImageSource, open_source
from dmt_ds.data.splits import Split
from dmt_ds.errors import DataError
from dmt_ds.wording import few_counted

_SHOWN = 5


class LabelledImages(NamedTuple):
    """What is learned from and judged on: fits and votes use the training images, the test images are judged."""

    train: ImageSource
    test: ImageSource
    num_classes: int

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names by class number, of all classes that either split has."""
        return max(self.train.class_names, self.test.class_names, key=len)


def empty_classes(images: LabelledImages) -> list[str]:
    """A line a split that lacks images of some classes, with their names; nothing learns or judges these."""
    lines = []
    for source, split in ((images.train, "training"), (images.test, "validation")):
        seen = {source.label(index) for index in range(len(source))}
        names = [f"'{name}'" for number, name in enumerate(images.class_names) if number not in seen]
        if names:
            lines.append(f"no {split} image of class {few_counted(names, _SHOWN)}")
    return lines


def open_labelled(data: DataConfig) -> LabelledImages:
    """Both splits of a recipe, all of training unless `max_train_images` says less; validation is the test.

    Raises:
        DataError: there are no images, an image has no label, or the splits have different classes.
    """
    train, test = open_source(data, "train"), open_source(data, "val")
    num_classes = _common_classes(train, test)
    for source in (train, test):
        _check_labels(source, num_classes)
    return LabelledImages(train, test, num_classes)


def open_labelled_split(data: DataConfig, split: Split) -> ImageSource:
    """One split alone, all of whose images have a label.

    Raises:
        DataError: there are no images, or an image has no label.
    """
    source = open_source(data, split)
    _check_has_classes(source, "training" if split == "train" else "validation")
    _check_labels(source, len(source.class_names))
    return source


def _common_classes(train: ImageSource, test: ImageSource) -> int:
    """Number of classes; a class number must mean the same in both splits, though one may lack the last classes."""
    _check_has_classes(train, "training")
    _check_has_classes(test, "validation")
    for number, (ours, theirs) in enumerate(zip(train.class_names, test.class_names, strict=False)):
        if ours != theirs:
            raise DataError(
                f"class {number} is '{ours}' in the training split and '{theirs}' in the validation split: both need "
                "the same classes"
            )
    return max(len(train.class_names), len(test.class_names))


def _check_has_classes(source: ImageSource, which: str) -> None:
    if not source.class_names:
        raise DataError(
            f"the {which} images have no labels ({source.name(0)}): sort them into one folder per class, or set "
            "data.label_column to the column of their class numbers"
        )


def _check_labels(source: ImageSource, num_classes: int) -> None:
    """Every image has one of the classes: said at once, not after an hour of training."""
    for index in range(len(source)):
        label = source.label(index)
        if not 0 <= label < num_classes:
            what = "no label" if label < 0 else f"label {label}, but the classes are 0 to {num_classes - 1}"
            raise DataError(f"{source.name(index)}: has {what}; fix the label, or remove the image")
