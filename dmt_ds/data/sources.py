"""Where images come from, and the door to `datasets`; knows no crop and no loader."""

import hashlib
import os
import pickle
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
from torch import Tensor

from dmt_ds.config.schema import DataConfig
from dmt_ds.data.decode import decode_image
from dmt_ds.data.digits import DigitsSource
from dmt_ds.data.folder import FolderSource, read_file
from dmt_ds.data.splits import Split, check_split, split_files, split_folder, split_name
from dmt_ds.errors import DataError, StorageError
from dmt_ds.storage import is_away, patiently
from dmt_ds.wording import one_line

if TYPE_CHECKING:
    import datasets


class ImageSource(Protocol):
    """A data set by row number; can be pickled, so that loader processes get it."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names by class number; empty where there are no labels."""
        ...

    @property
    def fingerprint(self) -> str:
        """Changes when the data set does: hash of names or sizes, not of pixels."""
        ...

    def __len__(self) -> int:
        """Number of images."""
        ...

    def read(self, index: int) -> Tensor:
        """The image, [3, H, W] uint8 RGB; raises DataError naming it when it can't be read, StorageError for now."""
        ...

    def label(self, index: int) -> int:
        """Class number, -1 where it is not known."""
        ...

    def name(self, index: int) -> str:
        """File path or row, for messages."""
        ...


@runtime_checkable
class _OfFolder(Protocol):
    @property
    def left_out(self) -> str | None: ...


def left_out(source: ImageSource) -> str | None:
    """A line on images that lie where the source's do and are not used; None: there are none."""
    return source.left_out if isinstance(source, _OfFolder) else None


def open_source(section: DataConfig, split: Split) -> ImageSource:
    """Open one split of the data set that a recipe names.

    Raises:
        DataError: it is not there, is empty, or is not what the recipe says.
    """
    check_split(split)
    source = _open(section, split)
    if len(source) == 0:
        raise DataError(f"data.path: {section.path} has no image in its {split_name(section, split)} split")
    if split == "train" and section.max_train_images is not None:
        return SpacedImages(source, section.max_train_images)
    return source


def _open(section: DataConfig, split: Split) -> ImageSource:
    if section.source == "digits":
        return DigitsSource(split)
    assert section.path is not None  # the schema sees to it
    if section.source == "folder":
        return FolderSource(split_folder(section, split))
    return open_table(section, split)


def open_table(section: DataConfig, split: Split) -> "TableSource":
    """One split of a parquet, webdataset or hub data set.

    Raises:
        DataError: it is not there, or lacks a column.
    """
    assert section.path is not None  # the schema sees to it
    if section.source == "hub":
        table = _load_hub(section.path, split_name(section, split))
        name = f"{section.path} {split_name(section, split)}"
        return TableSource(table, section, name, _digest(f"{name} {len(table)} {table.info.download_size}"))
    files = split_files(section, split)
    table = _load_files("parquet" if section.source == "parquet" else "webdataset", files)
    sizes = "\n".join(f"{Path(file).name} {patiently(Path(file).stat).st_size}" for file in files)
    name = f"{section.path} {split_name(section, split)}"
    return TableSource(table, section, name, _digest(sizes))


class SpacedImages:
    """So many images of a source, evenly spaced: folders have class after class, and a trial is to see all of them."""

    def __init__(self, source: ImageSource, count: int) -> None:
        self._source, self._count = source, min(count, len(source))
        self.class_names = source.class_names
        self.fingerprint = f"{source.fingerprint}[{self._count} spaced]"

    def row(self, index: int) -> int:
        """The source's number of the image."""
        return index * len(self._source) // self._count

    @property
    def left_out(self) -> str | None:
        """What the source itself leaves out."""
        return left_out(self._source)

    def __len__(self) -> int:
        """Number of images."""
        return self._count

    def read(self, index: int) -> Tensor:
        """The source's image."""
        return self._source.read(self.row(index))

    def label(self, index: int) -> int:
        """The source's label."""
        return self._source.label(self.row(index))

    def name(self, index: int) -> str:
        """The source's name of the image."""
        return self._source.name(self.row(index))


class TableSource:
    """Rows of a `datasets` table (parquet, webdataset, hub) that hold image files as bytes."""

    def __init__(self, table: "datasets.Dataset", section: DataConfig, name: str, fingerprint: str) -> None:
        from datasets import ClassLabel, Image

        _check_columns(table, section, name)
        self._labels = _label_numbers(table, section.label_column, name)
        feature = table.features.get(section.label_column or "")
        self.class_names = (
            tuple(feature.names)
            if isinstance(feature, ClassLabel)
            else tuple(str(number) for number in range(self._labels.max(initial=-1) + 1))
        )
        try:
            self._table = table.select_columns([section.image_column]).cast_column(
                section.image_column, Image(decode=False)
            )
        except (TypeError, ValueError, NotImplementedError):
            kind = table.features[section.image_column]
            raise DataError(f"{name}: column '{section.image_column}' holds {kind}, not images") from None
        self._column, self._name = section.image_column, name
        self.fingerprint = fingerprint

    def __len__(self) -> int:
        """Number of images."""
        return len(self._table)

    def read(self, index: int) -> Tensor:
        """[3, H, W] uint8; raises DataError for a row without image or with a broken one."""
        data, name = self._file(index)
        return decode_image(data, name)

    def file(self, index: int) -> bytes:
        """The row's image file as it is; raises DataError for a row without one."""
        return self._file(index)[0]

    def _file(self, index: int) -> tuple[bytes, str]:
        cell = self._table[int(index)][self._column]
        if cell is None or (cell["bytes"] is None and not cell["path"]):
            raise DataError(f"{self.name(index)}: there is no image in this row")
        if cell["bytes"] is not None:
            return cell["bytes"], self.name(index)
        return read_file(cell["path"]), cell["path"]

    def label(self, index: int) -> int:
        """Class number, -1 where it is not known."""
        return int(self._labels[index])

    def name(self, index: int) -> str:
        """Data set, split and row."""
        return f"{self._name} row {index}"


def _check_columns(table: "datasets.Dataset", section: DataConfig, name: str) -> None:
    for key, column in (("image_column", section.image_column), ("label_column", section.label_column)):
        if column is not None and column not in table.column_names:
            there = ", ".join(table.column_names)
            none = "; data.label_column=null for no labels" if key == "label_column" else ""
            raise DataError(f"{name}: no column '{column}'; set data.{key} to one of: {there}{none}")


def _label_numbers(table: "datasets.Dataset", column: str | None, name: str) -> np.ndarray:
    """[N] int64."""
    if column is None:
        return np.full(len(table), -1)
    values = table.data.column(column).to_numpy()
    if values.dtype.kind == "f":  # integers with gaps
        values = np.nan_to_num(values, nan=-1)
    if values.dtype.kind not in "iuf":
        raise DataError(f"{name}: column '{column}' holds {values.dtype}, not class numbers; set data.label_column")
    numbers: np.ndarray = values.astype(np.int64)
    return numbers


def write_parquet(
    path: Path, files: Sequence[bytes], names: Sequence[str], labels: Sequence[int], class_names: Sequence[str]
) -> None:
    """Image files as a table for `data.source=parquet`, whole or not at all; no labels where there are no classes."""
    import datasets

    columns: dict[str, Any] = {
        "image": [{"bytes": data, "path": name} for data, name in zip(files, names, strict=True)]
    }
    features = {"image": datasets.Image()}
    if class_names:
        columns["label"], features["label"] = list(labels), datasets.ClassLabel(names=list(class_names))
    unfinished = path.with_name(f".{path.name}.part")
    datasets.disable_progress_bars()
    datasets.Dataset.from_dict(columns, features=datasets.Features(features)).to_parquet(str(unfinished))
    os.replace(unfinished, path)


def _load_files(kind: str, files: list[str]) -> "datasets.Dataset":
    import datasets

    _quiet_in_a_log_file()
    try:
        return datasets.load_dataset(kind, data_files={"rows": files}, split="rows")
    except pickle.UnpicklingError:
        raise DataError(
            f"data.path: {files[0]} holds a PyTorch file that would run a program; it is not read: leave it out"
        ) from None
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        cause = error.__cause__ or error
        told = f"data.path: {files[0]} can't be opened as {kind}: {one_line(str(cause))[:200]}"
        if is_away(cause):
            raise StorageError(f"{told}; look at the disk or file server, then start again") from None
        raise DataError(told) from None


def _load_hub(name: str, split: str) -> "datasets.Dataset":
    import datasets

    _quiet_in_a_log_file()
    try:
        return datasets.load_dataset(name, split=split)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        raise DataError(
            f"data.path: split '{split}' of hub data set '{name}' can't be opened ({one_line(str(error))[:200]}); "
            "without network, fetch it once where there is one or use data.source=parquet with local files"
        ) from None


def _quiet_in_a_log_file() -> None:
    """Progress bars are for a terminal."""
    import datasets

    if not sys.stderr.isatty():
        datasets.disable_progress_bars()


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
