"""Writes a folder whole or not at all, over an older one where there is one; knows nothing of what lies in it."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dmt_ds.storage import sync


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """An empty folder to fill; when the block ends, it takes the place of `folder`.

    After an error in the block, or a kill, what was there still is: at its place or, between two renames, beside it
    as `.NAME.old`.

    Raises:
        OSError: it can't be written.
    """
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        _replace(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _replace(new: Path, folder: Path) -> None:
    for path in (*new.rglob("*"), new):
        sync(path)  # before the rename reaches the disk
    old = folder.with_name(f".{folder.name}.old")
    if folder.exists():
        shutil.rmtree(old, ignore_errors=True)
        os.rename(folder, old)
    try:
        os.rename(new, folder)
    except OSError:
        if old.exists():
            os.rename(old, folder)
        raise
    sync(folder.parent)
    shutil.rmtree(old, ignore_errors=True)
