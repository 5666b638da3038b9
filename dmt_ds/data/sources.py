"""Where images come from, and the door to `datasets`; knows no crop and no loader."""

import glob
import hashlib
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
from torch import Tensor

from dmt_ds.config.schema import DataConfig
from dmt_ds.data.decode import decode_image
from dmt_ds.data.digits import DigitsSource
from dmt_ds.data.folder import FolderSource, existing, read_file
from dmt_ds.errors import DataError

if TYPE_CHECKING:
    import datasets

Split = Literal["train", "val"]


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
        """The image, [3, H, W] uint8 RGB; raises DataError naming it when it can't be read."""
        ...

    def label(self, index: int) -> int:
        """Class number, -1 where it is not known."""
        ...

    def name(self, index: int) -> str:
        """File path or row, for messages."""
        ...


def open_source(section: DataConfig, split: Split) -> ImageSource:
    """Open one split of the data set that a recipe names.

    Raises:
        DataError: it is not there, is empty, or is not what the recipe says.
    """
    source = _open(section, split)
    if len(source) == 0:
        raise DataError(f"data.path: {section.path} has no image in its {_split_name(section, split)} split")
    if split == "train" and section.max_train_images is not None:
        return FirstImages(source, section.max_train_images)
    return source


def _open(section: DataConfig, split: Split) -> ImageSource:
    if section.source == "digits":
        return DigitsSource(split)
    assert section.path is not None  # the schema sees to it
    if section.source == "folder":
        return FolderSource(_split_folder(section, split))
    if section.source == "hub":
        table = _load_hub(section.path, _split_name(section, split))
        name = f"{section.path} {_split_name(section, split)}"
        return TableSource(table, section, name, _digest(f"{name} {len(table)} {table.info.download_size}"))
    files = split_files(section, split)
    table = _load_files("parquet" if section.source == "parquet" else "webdataset", files)
    sizes = "\n".join(f"{Path(file).name} {Path(file).stat().st_size}" for file in files)
    name = f"{section.path} {_split_name(section, split)}"
    return TableSource(table, section, name, _digest(sizes))


class FirstImages:
    """The first so many images of a source."""

    def __init__(self, source: ImageSource, count: int) -> None:
        self._source, self._count = source, min(count, len(source))
        self.class_names = source.class_names
        self.fingerprint = f"{source.fingerprint}[:{self._count}]"

    def __len__(self) -> int:
        """Number of images."""
        return self._count

    def read(self, index: int) -> Tensor:
        """As the source's."""
        return self._source.read(index)

    def label(self, index: int) -> int:
        """As the source's."""
        return self._source.label(index)

    def name(self, index: int) -> str:
        """As the source's."""
        return self._source.name(index)


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
        cell = self._table[int(index)][self._column]
        if cell is None or (cell["bytes"] is None and not cell["path"]):
            raise DataError(f"{self.name(index)}: there is no image in this row")
        if cell["bytes"] is not None:
            return decode_image(cell["bytes"], self.name(index))
        return decode_image(read_file(cell["path"]), cell["path"])

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


def _split_name(section: DataConfig, split: Split) -> str:
    return section.train_split if split == "train" else section.val_split


def _split_names(section: DataConfig, split: Split) -> tuple[str, ...]:
    """Names that the split may go by: `val` is as good as `validation`."""
    name = _split_name(section, split)
    return (name, {"validation": "val", "val": "validation"}[name]) if name in ("validation", "val") else (name,)


def _split_folder(section: DataConfig, split: Split) -> Path:
    root = existing(Path(section.path or "").expanduser().absolute(), "data.path")
    names = _split_names(section, split)
    for name in names:
        if (root / name).is_dir():
            return root / name
    return existing(root / names[0], f"data.{split}_split")


def split_files(section: DataConfig, split: Split) -> list[str]:
    """Files of one split; `data.path` is a folder of `train-*.parquet` and so on, a pattern with `{split}`, a file."""
    name = _split_name(section, split)
    suffix = ".parquet" if section.source == "parquet" else ".tar"
    path = str(Path(section.path or "").expanduser().absolute())
    for alias in _split_names(section, split):
        if Path(path).is_dir():
            shapes = [f"{alias}-*{suffix}", f"{alias}{suffix}", f"{alias}/*{suffix}"]
            patterns = [f"{glob.escape(path)}/{place}{shape}" for shape in shapes for place in ("data/", "")]
        else:
            patterns = [path.replace("{split}", alias)] if split == "train" or "{split}" in path else []
        for pattern in patterns:
            files = sorted(glob.glob(pattern))
            if files:
                if Path(path).is_dir():
                    _check_all_are_there(files)
                return files
    if not any(sign in path for sign in "*?[{"):
        existing(Path(path), "data.path")
    raise DataError(
        f"data.path: no {suffix} file of split '{name}' at {path}; "
        f"expected {name}-*{suffix} in it or in data/, or a pattern such as /where/{{split}}-*{suffix}"
    )


def _check_all_are_there(files: list[str]) -> None:
    """Part of a data set, from a copy or `shards make` that was cut off, must not pass for all of it."""
    counts = {int(match[1]) for file in files if (match := re.search(r"-of-(\d+)\.\w+$", file))}
    if len(counts) == 1 and len(files) < max(counts):
        raise DataError(
            f"data.path: {Path(files[0]).parent} holds {len(files)} of {max(counts)} files like "
            f"{Path(files[0]).name}: fetch or make the others (`dmt-ds shards make` goes on where it stopped), or name "
            "those that you want by a pattern such as /where/{split}-0000*"
        )


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
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        raise DataError(
            f"data.path: {files[0]} can't be opened as {kind}: {_one_line(error.__cause__ or error)}"
        ) from None


def _load_hub(name: str, split: str) -> "datasets.Dataset":
    import datasets

    _quiet_in_a_log_file()
    try:
        return datasets.load_dataset(name, split=split)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        raise DataError(
            f"data.path: split '{split}' of hub data set '{name}' can't be opened ({_one_line(error)}); "
            "without network, fetch it once where there is one or use data.source=parquet with local files"
        ) from None


def _quiet_in_a_log_file() -> None:
    """Progress bars are for a terminal."""
    import datasets

    if not sys.stderr.isatty():
        datasets.disable_progress_bars()


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]
