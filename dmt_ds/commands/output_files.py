"""Files that a command leaves in a person's folder: all of them or none, and nothing is overwritten."""

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from dmt_ds.errors import ExportError


def refuse_earlier(wanted: Sequence[Path]) -> None:
    """Nothing that an earlier call left is written over.

    Raises:
        ExportError: names the first that is there.
    """
    for path in wanted:
        if path.exists():
            raise ExportError(f"{path}: is there already; remove it, or choose another folder with -o")


@contextmanager
def written_whole(out: Path, names: Sequence[str]) -> Iterator[Path]:
    """A folder whose files come into `out` once all are there; of work that does not end nothing stays.

    Args:
        names: of all files that there may be.

    Raises:
        ExportError: `out` has one of them already.
    """
    refuse_earlier([out / name for name in names])
    is_new = not out.exists()
    out.mkdir(parents=True, exist_ok=True)
    unfinished = Path(tempfile.mkdtemp(dir=out, prefix=".unfinished_"))
    try:
        yield unfinished
        for path in list(unfinished.iterdir()):
            path.rename(out / path.name)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
        if is_new and not any(out.iterdir()):
            out.rmdir()
