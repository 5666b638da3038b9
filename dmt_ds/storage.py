"""Disks and file servers that do not answer: told from what somebody has to mend, and asked again; knows no file."""

import errno
import time
from collections.abc import Callable
from typing import TypeGuard, TypeVar

T = TypeVar("T")

WAITS_SECONDS = (0.25, 1.0, 4.0)
"""Between tries: a server fails over, or another node has just renamed what is read."""
_AWAY = frozenset({errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EREMOTEIO})


def is_away(error: BaseException) -> TypeGuard[OSError]:
    """Whether the kernel says that what holds a file gave no answer, rather than what there is or who may have it."""
    return isinstance(error, OSError) and error.errno in _AWAY


def patiently(read: Callable[[], T]) -> T:
    """What a look at files gives; one that gets no answer is repeated a few times.

    Raises:
        OSError: there is still none, or the answer is an error.
    """
    for seconds in WAITS_SECONDS:
        try:
            return read()
        except OSError as error:
            if not is_away(error):
                raise
        time.sleep(seconds)
    return read()
