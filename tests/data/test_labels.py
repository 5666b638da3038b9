"""Labels are looked at before anything is learned from them."""

from pathlib import Path

import pytest
from PIL import Image

from dmt_ds.config.schema import DataConfig
from dmt_ds.data.labels import empty_classes, open_labelled
from dmt_ds.errors import DataError


def folder(root: Path, *names: str) -> DataConfig:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(path)
    return DataConfig(source="folder", path=str(root))


def parquet(root: Path, train: list[int | None], val: list[int | None]) -> DataConfig:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    for split, labels in (("train", train), ("validation", val)):
        rows = {"image": [Image.new("RGB", (8, 8)) for _ in labels], "label": labels}
        datasets.Dataset.from_dict(rows, features=features).to_parquet(str(root / f"{split}-0.parquet"))
    return DataConfig(source="parquet", path=str(root))


def test_both_splits_are_opened_and_their_classes_counted() -> None:
    images = open_labelled(DataConfig(source="digits"))
    assert (len(images.train), len(images.test), images.num_classes) == (1437, 360, 10)


def test_a_split_may_lack_the_last_classes(tmp_path: Path) -> None:
    assert open_labelled(parquet(tmp_path, [0, 1, 2, 3], [0, 1])).num_classes == 4


def test_images_without_classes_are_refused(tmp_path: Path) -> None:
    data = folder(tmp_path, "train/1.png", "val/1.png")
    with pytest.raises(DataError, match=r"the training images have no labels \(.*1\.png\): sort them into one folder"):
        open_labelled(data)


def test_a_number_that_means_two_classes_is_refused(tmp_path: Path) -> None:
    data = folder(tmp_path, "train/cat/1.png", "train/dog/1.png", "val/cat/1.png", "val/elk/1.png")
    with pytest.raises(DataError, match="class 1 is 'dog' in the training split and 'elk' in the validation split"):
        open_labelled(data)


@pytest.mark.parametrize(("train", "val", "where"), [([0, None, 1], [0], "train"), ([0, 1], [0, -1], "validation")])
def test_one_image_without_label_is_named(tmp_path: Path, train: list, val: list, where: str) -> None:
    with pytest.raises(DataError, match=rf"{where} row 1: has no label; fix the label"):
        open_labelled(parquet(tmp_path, train, val))


def test_classes_without_images_are_named_for_each_split(tmp_path: Path) -> None:
    images = open_labelled(parquet(tmp_path, [0, 1, 3], [0, 1, 2, 3]))
    assert empty_classes(images) == ["no training image of class '2'"]
    many = open_labelled(parquet(tmp_path / "many", [8], list(range(8))))
    assert empty_classes(many) == [
        "no training image of class '0', '1', '2', '3', '4' and 3 more",
        "no validation image of class '8'",
    ]
    assert empty_classes(open_labelled(DataConfig(source="digits"))) == []


def test_a_label_outside_the_class_list_is_named(tmp_path: Path) -> None:
    """A file whose header has two classes, and a row a third."""
    datasets, parquet_files = pytest.importorskip("datasets"), pytest.importorskip("pyarrow.parquet")
    data = parquet(tmp_path, [0, 1, 2], [0, 1])
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])})
    header = datasets.Dataset.from_dict({"image": [], "label": []}, features=features).data.schema.metadata
    for split in ("train", "validation"):
        file = tmp_path / f"{split}-0.parquet"
        parquet_files.write_table(parquet_files.read_table(file).replace_schema_metadata(header), file)
    with pytest.raises(DataError, match="train row 2: has label 2, but the classes are 0 to 1; fix the label"):
        open_labelled(data)
