"""Images that a person names, files and folders of any depth; knows no class and no loader."""

import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from dmt_ds.data.folder import IMAGE_SUFFIXES, listed, walked
from dmt_ds.errors import DataError


def find_images(paths: Sequence[str]) -> list[str]:
    """Paths of the named files, and of all image files below the named folders; each folder's in order, none twice.

    A file that is named is taken whatever it is called; in folders only image files are, and no hidden ones.

    Raises:
        DataError: a path does not exist, a folder may not be read, or there is no image.
        StorageError: the disk or file server gives no answer.
    """
    found: dict[str, None] = {}
    for text in paths:
        path = Path(text).expanduser()
        if not path.exists():
            raise DataError(f"{text}: no such file or folder")
        found |= dict.fromkeys(listed(partial(_below, path)) if path.is_dir() else [str(path)])
    if not found:
        raise DataError(f"{', '.join(paths)}: there is no image ({', '.join(IMAGE_SUFFIXES)})")
    return list(found)


def _below(root: Path) -> list[str]:
    return [os.path.join(folder, name) for folder, names in walked(root) for name in names]
