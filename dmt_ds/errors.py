"""What can go wrong for the person who uses dmt_ds; knows nothing of the rest.

Every message is one line that names the file, key or rank, the value and the remedy. The command line
turns a `DmtError` into that line and its exit code; a bug of ours keeps its traceback.
"""

from typing import ClassVar


class DmtError(Exception):
    """The user can mend this.

    Attributes:
        exit_code: of a process that ends with it; 2 has a job not try again.
    """

    exit_code: ClassVar[int] = 2


class ConfigError(DmtError):
    """A recipe, an override or a DeepSpeed JSON says something impossible. May carry several lines, one a finding."""


class WeightsError(DmtError):
    """A weights file does not hold the model that it should."""


class ExportError(DmtError):
    """A model can't be taken elsewhere in the form asked for, or something is in its way."""


class DataError(DmtError):
    """Images are missing, unreadable or not what the recipe says."""


class CheckpointError(DmtError):
    """A run can't be continued from, or saved to, its checkpoint folder."""


class StorageError(CheckpointError):
    """A disk or file server does not answer. Nothing in the run needs fixing, so the job is requeued."""

    exit_code = 75  # EX_TEMPFAIL


class TrackingError(DmtError):
    """The MLflow store can't be used at all (one that is unreachable for a while is no error: points are spooled)."""


class LaunchError(DmtError):
    """The processes of a run don't find each other: ranks, addresses, ports."""


class OutOfMemoryError(DmtError):
    """A rank has no memory left for what the run asks of it."""


class PeerFailedError(DmtError):
    """Another rank failed and has reported why; this one exits silently.

    A launcher returns the highest exit code of all ranks: that of the failed one.
    """

    exit_code = 1


class DivergenceError(DmtError):
    """The loss or its gradient is not finite; the weights are those before the update."""
