"""A run's `train.log`: what the run says, and why it ended; knows no run."""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dmt_ds.errors import DmtError
from dmt_ds.redact import MaskingFormatter
from dmt_ds.wording import first_line

logger = logging.getLogger(__name__)

_PACKAGE = "dmt_ds"


class _LogFile(logging.FileHandler):
    """A full disk costs lines of the log; it does not print a page of traceback for each."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        """Nothing where the disk takes none: the run's points and the terminal say the same."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handleError(record)


def open_log(path: Path) -> None:
    """From now on append what the package logs to that file too.

    Raises:
        OSError: it can't be written.
    """
    handler = _LogFile(path)
    handler.setFormatter(MaskingFormatter("%(asctime)s %(levelname)s %(message)s"))
    logging.getLogger(_PACKAGE).addHandler(handler)


@contextmanager
def end_noted() -> Iterator[None]:
    """Write the exception that ends the block to the log file, if this rank has one; the CLI prints it."""
    try:
        yield
    except KeyboardInterrupt:
        _note(logging.WARNING, "stopped")
        raise
    except BaseException as error:
        for line in _lines(error):
            _note(logging.ERROR, line)
        raise


def failure_line(error: BaseException) -> str:
    """Why a run ended, in one line."""
    return "; ".join(_lines(error))


def _lines(error: BaseException) -> list[str]:
    if isinstance(error, DmtError):
        return str(error).splitlines()
    return [f"{type(error).__name__}: {first_line(error)}"]


def _note(level: int, line: str) -> None:
    for handler in logging.getLogger(_PACKAGE).handlers:
        if isinstance(handler, _LogFile):
            handler.handle(logger.makeRecord(logger.name, level, __file__, 0, line, (), None))
