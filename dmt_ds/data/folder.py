"""Images in folders, one folder a class, as ImageNet is unpacked; knows no loader."""

import difflib
import hashlib
import heapq
import os
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import NoReturn, TypeVar

import torch
from torch import Tensor

from dmt_ds.data.decode import decode_image
from dmt_ds.errors import DataError, StorageError
from dmt_ds.storage import is_away, patiently
from dmt_ds.wording import few

T = TypeVar("T")

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
LISTING_THREADS = 16
"""That look at files at once: each look waits for the file system, on a cluster over the network."""


class FolderSource:
    """The images of ROOT/CLASS/**, classes and files in torchvision's order; a ROOT without folders has no labels.

    Beside folders, images right below ROOT have no class and are left out, as torchvision leaves them out.

    Raises:
        DataError: a folder has no image, or may not be read.
        StorageError: the disk or file server gives no answer.
    """

    def __init__(self, root: Path) -> None:
        class_names, beside = listed(partial(_folders_and_pictures, root))
        with ThreadPoolExecutor(LISTING_THREADS) as threads:
            files = list(threads.map(partial(files_below, root), class_names or [""]))
        for name, found in zip(class_names or [""], files, strict=True):
            if not found:
                raise DataError(
                    f"{root / name}: no image in this folder ({', '.join(IMAGE_SUFFIXES)}; hidden files and links that "
                    "lead back do not count); fill or remove it"
                )
        self.class_names = tuple(class_names)
        self.num_left_out = len(beside) if class_names else 0
        self._root = root
        self._class_ends = list(accumulate(len(found) for found in files)) if class_names else []
        self._names = PackedNames([name for found in files for name in found])
        self.fingerprint = self._names.digest()

    @property
    def left_out(self) -> str | None:
        """A line on images that lie beside the class folders, how many and what to do; None: there are none."""
        if not self.num_left_out:
            return None
        return (
            f"{self._root}: images next to its class folders ({few(self.class_names, 3)}) are left out, "
            f"{self.num_left_out} of them: move them into one, or remove the folders"
        )

    def __len__(self) -> int:
        """Number of images."""
        return len(self._names)

    def read(self, index: int) -> Tensor:
        """[3, H, W] uint8; raises DataError for a file that is gone or no image, StorageError for want of an answer."""
        path = self.name(index)
        return decode_image(read_file(path), path)

    def label(self, index: int) -> int:
        """Class number, -1 in a folder without classes."""
        return bisect_right(self._class_ends, index) if self._class_ends else -1

    def name(self, index: int) -> str:
        """Path of the file."""
        return str(self._root / self._names[index])


class PackedNames(Sequence[str]):
    """Many strings in two tensors, which loader processes share: a million paths are neither sent nor copied."""

    def __init__(self, names: Sequence[str]) -> None:
        encoded = [os.fsencode(name) for name in names]
        self._text = torch.frombuffer(bytearray(b"".join(encoded) or b" "), dtype=torch.uint8)
        self._ends = torch.tensor([0, *(len(name) for name in encoded)]).cumsum(0)

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, index: int) -> str:  # type: ignore[override]
        if not 0 <= index < len(self):
            raise IndexError(index)
        start, end = self._ends[index], self._ends[index + 1]
        return os.fsdecode(self._text[start:end].numpy().tobytes())

    def digest(self) -> str:
        """Hash of all names in order."""
        return hashlib.sha256(self._text.numpy().tobytes() + self._ends[1:].numpy().tobytes()).hexdigest()[:16]


def read_file(path: str, remedy: str = "was it moved during the run?") -> bytes:
    """The bytes of an image file, or of another that says what images show.

    Args:
        remedy: ends the line on one that is gone, or may not be read.

    Raises:
        DataError: it is gone, or may not be read.
        StorageError: the disk or file server gives no answer, also not after some seconds.
    """
    try:
        return patiently(Path(path).read_bytes)
    except OSError as error:
        if is_away(error):
            raise StorageError(
                f"{path}: can't be read ({error.strerror}): look at the disk or file server, then start again; if it "
                "is this file alone, fetch it again or remove it"
            ) from None
        raise DataError(f"{path}: can't be read ({error.strerror}); {remedy}") from None


def existing(path: Path, key: str) -> Path:
    """The path itself, or a DataError that shows what is there instead.

    Args:
        key: the setting that the path comes from.
    """
    if path.exists():
        return path
    parent = next(folder for folder in path.parents if folder.exists())
    missing = path.relative_to(parent).parts[0]
    there = {entry.name: entry for entry in os.scandir(parent)} if parent.is_dir() else {}
    near = difflib.get_close_matches(missing, there, n=3, cutoff=0.6)
    hint = f"did you mean {' or '.join(near)}?" if near else f"there are: {_some_of(there)}"
    raise DataError(f"{key}: {path} does not exist: no '{missing}' in {parent}; {hint}")


def _some_of(entries: Mapping[str, "os.DirEntry[str]"], most: int = 8) -> str:
    """Names of what a folder holds, folders first; of many the first ones and dots."""

    def is_file(name: str) -> bool:
        with suppress(OSError):  # a dead mount, a link too long: no reason to say another thing than what is missing
            return not entries[name].is_dir()
        return True

    if not entries:
        return "no files"
    shown = heapq.nsmallest(most, entries, key=lambda name: (is_file(name), name))
    return ", ".join([*shown, "..."] if len(entries) > most else shown)


def listed(look: Callable[[], T]) -> T:
    """Result of listing folders, retried if the file server is silent, which must never look like an empty folder.

    Raises:
        DataError: a folder may not be read.
        StorageError: the disk or file server gives no answer, also not after some seconds.
    """
    try:
        return patiently(look)
    except OSError as error:
        told = f"{error.filename}: can't be listed ({error.strerror})"
        if is_away(error):
            raise StorageError(f"{told}: look at the disk or file server, then start again") from None
        raise DataError(
            f"{told}; it must be a folder that you can read: fix its permissions, or move it away"
        ) from None


def files_below(root: Path, folder: str = "", suffixes: tuple[str, ...] = IMAGE_SUFFIXES) -> list[str]:
    """Image files below root/folder, as `walked` finds them, in order, relative to root; raises as `listed` does."""

    def look() -> list[str]:
        files = []
        for place, names in sorted(walked(root / folder, suffixes, known=(root,) if folder else ())):
            relative = os.path.relpath(place, root)
            files += [os.path.join(relative, name) for name in names]
        return files

    return listed(look)


def walked(
    root: Path, suffixes: tuple[str, ...] = IMAGE_SUFFIXES, known: Sequence[Path] = ()
) -> Iterator[tuple[str, list[str]]]:
    """Folders from root on, at any depth, and the names of what ends so in each; both in order.

    What is hidden is left out, as what macOS puts beside a picture is, and so is a folder that is met again: through
    a link that turns back there would be forty of each picture.

    Args:
        known: folders that count as met.

    Raises:
        OSError: a folder can't be listed.
    """
    seen = {_identity(folder) for folder in known}
    for folder, subfolders, names in os.walk(root, onerror=_raised, followlinks=True):
        if (identity := _identity(folder)) in seen:
            subfolders.clear()
            continue
        seen.add(identity)
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        yield folder, sorted(name for name in names if name.lower().endswith(suffixes) and not name.startswith("."))


def _identity(folder: str | Path) -> tuple[int, int]:
    status = os.stat(folder)
    return status.st_dev, status.st_ino


def _raised(error: OSError) -> NoReturn:
    """For `os.walk`, which else leaves out what it can't list."""
    raise error


def _folders_and_pictures(root: Path) -> tuple[list[str], list[str]]:
    """Names of the folders right below, which are classes, and of the images that lie beside them."""
    with os.scandir(root) as entries:
        are_folders = {entry.name: entry.is_dir() for entry in entries if not entry.name.startswith(".")}
    folders = sorted(name for name, is_folder in are_folders.items() if is_folder)
    return folders, [name for name in are_folders.keys() - set(folders) if name.lower().endswith(IMAGE_SUFFIXES)]
