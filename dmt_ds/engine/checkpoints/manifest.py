"""What a checkpoint folder holds, to the byte: written last of all, looked at before anything is loaded.

Sizes tell at once whether a save was cut off; hashes tell whether what lies there is what was written.
"""

import errno
import json
import os
import socket
import stat
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import lru_cache, partial
from pathlib import Path
from typing import NamedTuple

from dmt_ds import __version__
from dmt_ds.engine import dist
from dmt_ds.errors import CheckpointError, StorageError
from dmt_ds.storage import is_away, patiently, sha256_of, sync

MANIFEST = "manifest.json"
_SHOWN_SECONDS = 60.0  # within which a shared file system shows a node what another one wrote
_HASHING_THREADS = 8  # hashing lets go of Python's lock, so several files are read at once
_NO_SUCH_FILE = frozenset({errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG})


class FileMark(NamedTuple):
    """What a file must be."""

    num_bytes: int
    sha256: str | None
    """None in checkpoints of versions that kept no hashes."""


def sizes_in(folder: Path) -> dict[str, int]:
    """Path below `folder` -> size in bytes."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {path.relative_to(folder).as_posix(): path.stat().st_size for path in files}


def seal(folder: Path) -> dict[str, str]:
    """Flush all ranks' files to disk and return name -> sha256; each rank handles its share.

    Raises:
        OSError: on a rank whose share can't be read or written out, or does not appear there in time.
    """
    # Each rank says what it sees: a shared file system may show it other nodes' files late.
    kernels, seen = zip(*dist.gather_objects((kernel(), sizes_in(folder))), strict=True)
    sizes = {name: size for of_rank in seen for name, size in of_rank.items()}
    for name in share_to_sync(seen, kernels, dist.rank()):
        sync(folder / name)
    share = sorted(sizes)[dist.rank() :: dist.world_size()]
    wait_for_files(folder, {name: sizes[name] for name in share})
    found = hashes_of(folder, share)
    return {name: sha256 for of_rank in dist.gather_objects(found) for name, sha256 in of_rank.items()}


def wait_for_files(folder: Path, sizes: Mapping[str, int]) -> None:
    """Until this rank sees what all ranks wrote; shared file systems may show it late.

    Raises:
        OSError: a file has not come in time.
    """
    deadline = time.monotonic() + _SHOWN_SECONDS

    def missing() -> list[str]:
        there = patiently(partial(sizes_in, folder))
        return [name for name in sorted(sizes) if there.get(name) != sizes[name]]

    while names := missing():
        if time.monotonic() > deadline:
            raise OSError(errno.ETIMEDOUT, f"{names[0]} of another rank does not appear on this node")
        time.sleep(0.2)


def hashes_of(folder: Path, names: Iterable[str]) -> dict[str, str]:
    """Name -> sha256 of the file's bytes."""
    names = list(names)
    with ThreadPoolExecutor(_HASHING_THREADS) as threads:
        return dict(zip(names, threads.map(lambda name: _sha256(folder / name), names), strict=True))


def share_to_sync(seen: Sequence[Iterable[str]], kernels: Sequence[str], rank: int) -> list[str]:
    """The files that this rank has its kernel write out; the ranks of each kernel see to all of them together.

    A file that another node wrote lies in that node's memory: a kernel can write out only what went through it. Of
    other nodes' files its ranks may see some earlier than others; what they wrote themselves they all see.

    Args:
        seen: names of the files that each rank sees.
        kernels: what `kernel` says on each rank.
    """
    beside = [other for other, kernel_of_other in enumerate(kernels) if kernel_of_other == kernels[rank]]
    own = set.intersection(*(set(seen[other]) for other in beside))
    return sorted(own)[beside.index(rank) :: len(beside)]


def kernel() -> str:
    """What no two running kernels share, though hosts may have one name; the processes of a node have one kernel."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return socket.gethostname()


def write_manifest(folder: Path, hashes: Mapping[str, str]) -> None:
    """Make the folder complete; what is listed must be on the disk already, and its folders are before the list is."""
    for inner in sorted((path for path in folder.rglob("*") if path.is_dir()), reverse=True):
        sync(inner)
    sync(folder)
    files = {name: {"bytes": (folder / name).stat().st_size, "sha256": hashes[name]} for name in sorted(hashes)}
    write_json(folder / MANIFEST, {"dmt_ds": __version__, "files": files})
    sync(folder)


@contextmanager
def answering(path: Path) -> Iterator[None]:
    """Wraps reads of a checkpoint's files: only a missing file says something about them, no other failure does.

    Raises:
        OSError: there is no such file.
        CheckpointError: it may not be read.
        StorageError: it can't be read for now, so it is unknown whether the checkpoint is complete.
    """
    try:
        yield
    except OSError as error:
        if error.errno in _NO_SUCH_FILE:
            raise
        raise unread(error.filename or path, error) from error


def unread(path: Path | str, error: OSError) -> CheckpointError:
    """What to raise where a checkpoint's file can't be read: worth another try, or with the remedy."""
    if not is_away(error):
        return CheckpointError(f"{path}: can't be read ({error.strerror}); make it readable for you")
    return StorageError(
        f"{path}: can't be read ({error.strerror}), so it is unknown whether this checkpoint is complete: look at "
        "the disk or file server, then start again; if that does not help, move it away to resume from an older one"
    )


def saved_in(folder: Path) -> list[Path]:
    """All that has a checkpoint's name, whole or not, the oldest first; none where there is no such folder.

    Raises:
        StorageError: it can't be listed, which must not be taken for an empty one, as `Path.glob` of some Pythons does.
    """
    try:
        with answering(folder):
            names = sorted(patiently(partial(os.listdir, folder)))
    except OSError:
        return []
    return [folder / name for name in names if name.startswith("step") and not name.endswith("_universal")]


def num_bytes(path: Path) -> int | None:
    """Size of a checkpoint's file; None where there is no such file.

    Raises:
        StorageError: its disk or file server does not say.
    """
    try:
        with answering(path):
            status = patiently(path.stat)
    except (OSError, ValueError):  # also a name that no file can have
        return None
    return status.st_size if stat.S_ISREG(status.st_mode) else None


def incompleteness(folder: Path) -> str | None:
    """Why a checkpoint folder can't be used, or None if all files of its manifest are there with their sizes.

    Raises:
        StorageError: its disk or file server does not say.
    """
    try:
        files = _read_manifest(folder)
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return f"no readable {MANIFEST}"
    for name, mark in files.items():
        found = num_bytes(folder / name)
        if found is None:
            return f"{name} is missing"
        if found != mark.num_bytes:
            return f"{name} has {found} bytes instead of {mark.num_bytes}"
    return None


def damage(folder: Path) -> str | None:
    """Why a complete folder must not be loaded, or None if every byte is as it was written.

    Raises:
        StorageError: a file can't be read, which is no damage: the next look may find it whole.
    """
    try:
        with answering(folder):
            return _damage(folder, patiently((folder / MANIFEST).stat).st_mtime_ns)
    except OSError as error:
        return f"{error.filename} can't be read ({error.strerror})"


@lru_cache(maxsize=64)
def _damage(folder: Path, _written_at: int) -> str | None:
    """A start looks twice, before and after it takes a run over; the files are read once."""
    wanted = {name: mark.sha256 for name, mark in _read_manifest(folder).items() if mark.sha256 is not None}
    found = hashes_of(folder, wanted)
    changed = next((name for name in wanted if found[name] != wanted[name]), None)
    return None if changed is None else f"{changed} is damaged (its sha256 differs)"


def _read_manifest(folder: Path) -> dict[str, FileMark]:
    with answering(folder / MANIFEST):
        content = json.loads(patiently((folder / MANIFEST).read_text))
    files = content.get("files", content)  # of early versions: name -> size
    marks = {
        str(name): FileMark(mark, None) if isinstance(mark, int) else FileMark(int(mark["bytes"]), str(mark["sha256"]))
        for name, mark in files.items()
    }
    if not marks:
        raise ValueError("an empty manifest")
    for name in marks:
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise ValueError(f"{name} lies elsewhere")
    return marks


def write_json(path: Path, content: object) -> None:
    """Write and have the kernel write it out."""
    with path.open("w") as file:
        json.dump(content, file, indent=1)
        file.flush()
        os.fsync(file.fileno())


def _sha256(path: Path) -> str:
    try:
        return patiently(partial(sha256_of, path))
    except OSError as error:
        error.filename = str(path)  # a read that fails does not say of which file
        raise
