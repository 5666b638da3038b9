"""Labels of a data set before anything is trained or judged by them; knows no crop and no loader."""

from dmt_ds.data.sources import ImageSource
from dmt_ds.errors import DataError


def common_classes(train: ImageSource, val: ImageSource) -> int:
    """Number of classes; a class number must mean the same in both splits, though one may lack the last classes.

    Raises:
        DataError: a split has no labels, or the splits have different classes.
    """
    for source, split in ((train, "training"), (val, "validation")):
        if not source.class_names:
            raise DataError(
                f"{source.name(0)}: the {split} images have no labels; put them into one folder a class, or set "
                "data.label_column to the column with their class numbers"
            )
    for number, (ours, theirs) in enumerate(zip(train.class_names, val.class_names, strict=False)):
        if ours != theirs:
            raise DataError(
                f"class {number} is '{ours}' in the training split and '{theirs}' in the validation split: both need "
                "the same classes"
            )
    return max(len(train.class_names), len(val.class_names))


def check_labels(source: ImageSource, num_classes: int) -> None:
    """Every image has a label, and one of the classes: said before training, not after an hour of it.

    Raises:
        DataError: names the first image without.
    """
    for index in range(len(source)):
        label = source.label(index)
        if not 0 <= label < num_classes:
            what = (
                "no label"
                if label < 0
                else f"label {label}, but there are {num_classes} classes (0 to {num_classes - 1})"
            )
            raise DataError(
                f"{source.name(index)}: has {what}; mend data.label_column's values, or leave the image out"
            )
