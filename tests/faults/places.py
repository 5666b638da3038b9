"""Places that can be harmed: a small disk, a folder that can't be written; by mounting, which root may."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import pytest


@cache
def can_mount() -> bool:
    with tempfile.TemporaryDirectory() as folder:
        if _mount("-t", "tmpfs", "tmpfs", folder) != 0:
            return False
        subprocess.run(["umount", folder], check=True)
        return True


def needs_mount() -> None:
    """Skip the test where nothing can be mounted."""
    if not can_mount():
        pytest.skip("file systems can't be mounted here (needs root)")


@contextmanager
def small_disk(folder: Path, mib: int) -> Iterator[None]:
    """A file system of its own size at a folder."""
    if _mount("-t", "tmpfs", "-o", f"size={mib}m", "tmpfs", str(folder)) != 0:
        raise OSError(f"{folder}: nothing can be mounted here")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """What is opened below the folder from now on can't be written; files that are open go on."""
    for options in (["--bind", str(folder), str(folder)], ["-o", "remount,bind,ro", str(folder)]):
        if _mount(*options) != 0:
            raise OSError(f"{folder}: can't be made read-only here")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(ballast: Path, leave: int = 0) -> None:
    """Take all room of the file system but so many bytes."""
    with ballast.open("wb") as file:
        while (free := shutil.disk_usage(ballast.parent).free - leave) > 0:
            try:
                file.write(bytes(min(free, 1 << 20)))
                file.flush()
            except OSError:
                return


def without_answer(file: Path) -> None:
    """Reads of it fail as those of a file server that is away: the kernel answers them with EIO."""
    file.unlink()
    file.symlink_to("/proc/self/mem")


def is_mount(folder: Path) -> bool:
    return os.path.ismount(folder)


def _mount(*words: str) -> int:
    return subprocess.run(["mount", *words], capture_output=True).returncode
