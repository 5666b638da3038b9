"""What the pixels of an annotation mean: raw values to class numbers and names; knows no image source."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dmt_ds.config.segmentation import IGNORED, SegmentConfig
from dmt_ds.data.folder import read_file
from dmt_ds.errors import DataError

_BESIDE = ("classes.json", "objectInfo150.txt")
_NO_CLASS = 256
_NO_CLASS_NAMES = {"void", "unlabelled", "unlabeled", "unannotated", "ignore", "ignored"}
"""That no class has."""
_REST_NAMES = _NO_CLASS_NAMES | {"other", "others", "background", "unknown", "none", "nothing"}
"""That a value has which is ignored with reason."""
_SHOWN_CLASSES = 12


class ClassValues:
    """The classes of a data set, and the raw values that stand for them.

    Attributes:
        names: by class number.

    Args:
        names: raw value -> name; values that are ignored may be among them, and have no class.
        ignored: raw values without a class, beside 255.
    """

    def __init__(self, names: Mapping[int, str], ignored: Sequence[int]) -> None:
        self.ignored = frozenset((*ignored, IGNORED))
        values = [value for value in sorted(names) if value not in self.ignored]
        self.names = tuple(names[value] for value in values)
        self._without = {value: names.get(value) for value in sorted(self.ignored)}
        self._values = values
        table = np.full(256, _NO_CLASS, dtype=np.int16)
        table[list(self.ignored)] = IGNORED
        table[values] = np.arange(len(values))
        self._table = table

    @property
    def fingerprint(self) -> str:
        """Changes when a name or a value's meaning does."""
        told = json.dumps(self.names).encode() + self._table.tobytes()
        return hashlib.sha256(told).hexdigest()[:16]

    def told(self) -> str:
        """Raw values with their classes and those without, in one line; of many classes the first and the last."""
        classes = [f"{value} {name}" for value, name in zip(self._values, self.names, strict=True)]
        if len(classes) > _SHOWN_CLASSES:
            classes[4:-1] = ["..."]
        without = [f"{value} ({name})" if name else str(value) for value, name in self._without.items()]
        return f"values of pixels: {', '.join(classes)}; no class: {', '.join(without)}"

    def doubts(self, pixels: Tensor, maps: str) -> list[str]:
        """What looks as if the values were meant otherwise, a line each.

        Args:
            pixels: [256] int64, how many have a class number, and 255, in some maps.
            maps: what lines call these maps.
        """
        found = [
            f"value {value} is called '{name}', but ignored: if it is a class, leave it out of segment.ignored_values"
            for value, name in self._without.items()
            if name and name.lower() not in _REST_NAMES
        ]
        found += [
            f"value {value} is called '{name}', but is a class: if it is none, add it to segment.ignored_values"
            for value, name in zip(self._values, self.names, strict=True)
            if name.lower() in _NO_CLASS_NAMES
        ]
        *others, last = pixels[: len(self.names)].tolist()
        if all(others) and not last and pixels[IGNORED] and min(self.ignored) < self._values[-1]:
            found.append(
                f"class '{self.names[-1]}', value {self._values[-1]}, is in none of {maps}, and {min(self.ignored)} is "
                "ignored: if the classes are counted from there, leave it out of segment.ignored_values"
            )
        if pixels[IGNORED] > pixels[:IGNORED].sum():
            share, values = float(pixels[IGNORED] / pixels.sum()), ", ".join(map(str, self._without))
            found.append(
                f"{100 * share:.0f} % of the pixels of {maps} have no class (values {values}): "
                "if one of these is a class, leave it out of segment.ignored_values"
            )
        return found

    def classes_of(self, raw: np.ndarray, name: str) -> Tensor:
        """[H, W] raw values -> [H, W] uint8, class numbers and 255.

        Raises:
            DataError: a value is no class and not ignored; names the annotation, the value and its place.
        """
        largest = int(raw.max(initial=0))
        found = self._table[raw] if largest < len(self._table) else np.where(raw < 256, self._table[raw % 256], 256)
        strangers = found == _NO_CLASS
        if strangers.any():
            row, column = np.argwhere(strangers)[0].tolist()
            raise DataError(
                f"{name}: has the value {int(raw[row, column])} (row {row}, column {column}), which is none of the "
                f"{len(self.names)} classes ({self._values[0]} to {self._values[-1]}) and not ignored: fix it, or set "
                "segment.classes or segment.ignored_values"
            )
        return torch.from_numpy(found.astype(np.uint8))


def class_values(section: SegmentConfig, data_path: str | None) -> ClassValues:
    """The classes of a recipe.

    Args:
        data_path: `data.path`, where a list of classes may lie.

    Raises:
        DataError: there is no list, it can't be read, or it has no class.
        StorageError: the disk or file server gives no answer.
    """
    classes, ignored = section.classes, {*section.ignored_values, IGNORED}
    where = "segment.classes"
    names: Mapping[int, str] | Sequence[str]
    if isinstance(classes, int):
        names = {value: f"class {value}" for value in _free_values(classes, ignored, where)}
    elif isinstance(classes, tuple):
        names = classes
    else:
        path = _beside(data_path) if classes is None else Path(classes).expanduser()
        names, where = _read(path), str(path)
    if not isinstance(names, Mapping):
        names = _numbered(names, ignored, where)
    for value in names:
        if not 0 <= value <= IGNORED:
            raise DataError(f"{where}: class value {value} does not fit an annotation's 8 bits: it must be 0 to 255")
    values = ClassValues(names, section.ignored_values)
    if not values.names:
        raise DataError(f"{where}: names no class beside segment.ignored_values {sorted(ignored)}")
    return values


def _numbered(names: Sequence[str], ignored: set[int], where: str) -> dict[int, str]:
    """A plain list names the values that are not ignored, in order."""
    return dict(zip(_free_values(len(names), ignored, where), names, strict=True))


def _free_values(count: int, ignored: set[int], where: str) -> list[int]:
    """The first so many values that are not ignored."""
    free = [value for value in range(256) if value not in ignored]
    if count > len(free):
        raise DataError(
            f"{where}: {count} classes do not fit an annotation's 8 bits: {len(free)} values are not ignored"
        )
    return free[:count]


def _beside(data_path: str | None) -> Path:
    path = Path(data_path or "").expanduser().absolute()
    folders = [path, *path.parents[:2]]
    found = next((folder / name for folder in folders for name in _BESIDE if (folder / name).is_file()), None)
    if found is None:
        raise DataError(
            f"segment.classes: is not set, and there is no {' or '.join(_BESIDE)} at {path}: give the names, a file "
            "with them, or their number"
        )
    return found


def _read(path: Path) -> dict[int, str] | list[str]:
    data = read_file(str(path), "segment.classes must name a file you may read")
    try:
        text = data.decode("utf-8")
        if path.suffix != ".json":
            return _names_of_lines(text)
        told = json.loads(text)
        if isinstance(told, list):
            return [str(name) for name in told]
        return {int(value): str(name) for value, name in told.items()}
    except (ValueError, AttributeError) as error:
        raise DataError(
            f"{path}: not a list of classes ({error}); it must be a JSON list, or value -> name, or one name per line"
        ) from None


def _names_of_lines(text: str) -> list[str]:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if lines and lines[0].split("\t")[-1] == "Name":  # ADE20K's table: number, share, counts, name
        return [line.split("\t")[-1] for line in lines[1:]]
    return lines
