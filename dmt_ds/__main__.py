"""The command `dmt-ds`, also as `python -m dmt_ds`: what launchers such as torchrun start."""

import atexit
import os
import sys

from dmt_ds.cli import main


def start() -> None:
    """Run the command line and leave with its exit code, without Python taking itself down.

    A thread of gloo that lets go of its last tensor while Python does so aborts the process: a run that is finished
    would end with code 134, and its launcher would call it failed. Leaving the process group does not prevent it, for
    DeepSpeed's engines hold on to the group.
    """
    codes: list[int] = []
    atexit.register(_leave, codes)  # before heavy imports register theirs, so it runs after them
    try:
        main()
    except SystemExit as end:
        if isinstance(end.code, int):
            codes.append(end.code)
        raise


def _leave(codes: list[int]) -> None:
    if not codes:
        return  # a traceback: Python ends by itself
    try:
        for stream in filter(None, (sys.stdout, sys.stderr)):  # one that was closed before the start is None
            stream.flush()
    except (OSError, ValueError):
        return  # Python says what could not be written
    os._exit(codes[0])


if __name__ == "__main__":
    start()
