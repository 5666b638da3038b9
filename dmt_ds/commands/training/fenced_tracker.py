"""A run's record is written by the attempt that has the run; knows neither the store nor what is written."""

from collections.abc import Mapping
from pathlib import Path

from dmt_ds.engine.checkpoints.fence import Fence
from dmt_ds.tracking.tracker import Status, Tracker


class FencedTracker:
    """Rank 0's tracker with a look at the claim before each line; nothing that may take long lies between the two.

    Every call that adds something raises CheckpointError, which names the newer attempt, once another one has claimed
    the run folder, and StorageError where the claim can't be read: what nobody can vouch for is not written.
    """

    def __init__(self, tracker: Tracker, fence: Fence) -> None:
        self._tracker = tracker
        self._fence = fence

    @property
    def run_id(self) -> str | None:
        """The store's name of the run."""
        return self._tracker.run_id

    def log_params(self, params: Mapping[str, object]) -> None:
        """Settings of the run."""
        self._fence.check()
        self._tracker.log_params(params)

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Words to find the run by."""
        self._fence.check()
        self._tracker.set_tags(tags)

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """One point of some curves."""
        self._fence.check()
        self._tracker.log_metrics(metrics, step)

    def log_artifact(self, path: Path, folder: str | None = None) -> None:
        """Keep a file or a folder with the run."""
        self._fence.check()
        self._tracker.log_artifact(path, folder)

    def log_dataset(self, name: str, source: str, fingerprint: str, context: str) -> None:
        """What was trained or evaluated on."""
        self._fence.check()
        self._tracker.log_dataset(name, source, fingerprint, context)

    def sync(self) -> None:
        """What was written already reaches the disk, whoever has the run now."""
        self._tracker.sync()

    def finish(self, status: Status) -> None:
        """The run is over."""
        self._fence.check()
        self._tracker.finish(status)
