"""Where the files of a data set's split lie, by the names that people give to splits; opens none."""

import glob
import os
import re
from functools import partial
from pathlib import Path
from typing import Literal, get_args

from dmt_ds.config.schema import DataConfig
from dmt_ds.data.folder import IMAGE_SUFFIXES, existing, listed
from dmt_ds.errors import DataError

Split = Literal["train", "val"]


def check_split(split: str) -> None:
    """A data set's own name of a split is another thing: `data.val_split`, which `val` stands for.

    Raises:
        ValueError: there is no such split.
    """
    if split not in get_args(Split):
        raise ValueError(f"split '{split}' is not known: it is train or val; data.val_split says what val stands for")


def split_name(section: DataConfig, split: Split) -> str:
    """The split's name in the recipe's data set."""
    return section.train_split if split == "train" else section.val_split


def split_names(section: DataConfig, split: Split) -> tuple[str, ...]:
    """Names that the split may go by: `val` is as good as `validation`."""
    name = split_name(section, split)
    return (name, {"validation": "val", "val": "validation"}[name]) if name in ("validation", "val") else (name,)


def split_folder(section: DataConfig, split: Split) -> Path:
    """Folder of one split in `data.path`; raises DataError that shows what is there instead."""
    root = existing(Path(section.path or "").expanduser().absolute(), "data.path")
    names = split_names(section, split)
    for name in names:
        if (root / name).is_dir():
            return root / name
    try:
        return existing(root / names[0], f"data.{split}_split")
    except DataError as error:
        if root.is_dir() and any(name.lower().endswith(IMAGE_SUFFIXES) for name in os.listdir(root)):
            raise DataError(f"{error}; data.{split}_split=. takes the images that lie in {root} itself") from None
        raise


def split_files(section: DataConfig, split: Split) -> list[str]:
    """Files of one split; `data.path` is a folder of `train-*.parquet` and so on, a pattern with `{split}`, a file."""
    name = split_name(section, split)
    suffix = ".parquet" if section.source == "parquet" else ".tar"
    path = str(Path(section.path or "").expanduser().absolute())
    for alias in split_names(section, split):
        if Path(path).is_dir():
            listed(partial(os.listdir, path))  # `glob` takes a folder without an answer for an empty one
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
            f"{Path(files[0]).name}: fetch or make the others (`dmt-ds shards make` resumes where it stopped), or name "
            "those that you want by a pattern such as /where/{split}-0000*"
        )
