"""What the trainer and the commands ask of a tracker, and the trackers that need no MLflow; knows no metric."""

import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal, Protocol

from dmt_ds.run_files import METRICS_FILE
from dmt_ds.tracking.journal import Journal, Record, read_lines

Status = Literal["FINISHED", "FAILED", "KILLED"]


class Tracker(Protocol):
    """The record of a run. No call waits for a network or raises because a server is away."""

    @property
    def run_id(self) -> str | None:
        """The store's name of the run; None while, or where, there is none."""
        ...

    def log_params(self, params: Mapping[str, object]) -> None:
        """Settings of the run; nested mappings become dotted keys."""
        ...

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Words to find the run by; a later value wins."""
        ...

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """One point of some curves. Steps of a metric rise; what a resumed run repeats is recorded once."""
        ...

    def log_artifact(self, path: Path, folder: str | None = None) -> None:
        """Keep a file or a folder with the run, under `folder` there.

        Inside output_dir it is sent as it is when it is sent; from elsewhere a copy is taken now.
        """
        ...

    def log_dataset(self, name: str, source: str, fingerprint: str, context: str) -> None:
        """What was trained or evaluated on.

        Args:
            name: what people call the data.
            source: folder, glob or hub id.
            fingerprint: changes when the data change; at most 36 characters are kept.
            context: `training` or `evaluation`.
        """
        ...

    def sync(self) -> None:
        """What was kept so far outlives the node: called before a checkpoint makes sure that it is not made again."""
        ...

    def finish(self, status: Status) -> None:
        """The run is over; waits for a bounded time until everything has arrived. Further calls are ignored."""
        ...


class NullTracker:
    """The tracker of all ranks but 0: keeps nothing."""

    run_id: str | None = None

    def log_params(self, params: Mapping[str, object]) -> None:
        """Nothing."""

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Nothing."""

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Nothing."""

    def log_artifact(self, path: Path, folder: str | None = None) -> None:
        """Nothing."""

    def log_dataset(self, name: str, source: str, fingerprint: str, context: str) -> None:
        """Nothing."""

    def sync(self) -> None:
        """Nothing."""

    def finish(self, status: Status) -> None:
        """Nothing."""


class JsonlTracker(NullTracker):
    """Tracking without MLflow: every point goes to `metrics.jsonl` in the run's folder, and nothing else is kept."""

    def __init__(self, output_dir: Path) -> None:
        self._metrics = Journal(output_dir / METRICS_FILE)

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """One line."""
        self._metrics.append(point(metrics, step))

    def sync(self) -> None:
        """Write the file out."""
        self._metrics.sync()

    def finish(self, status: Status) -> None:
        """Close the file."""
        self._metrics.close()


def point(metrics: Mapping[str, float], step: int) -> Record:
    """One line of `metrics.jsonl`, stamped with the present time."""
    return {
        "step": step,
        "time_ms": time.time_ns() // 1_000_000,
        "metrics": {name: float(value) for name, value in metrics.items()},
    }


def read_points(output_dir: Path) -> Iterator[Record]:
    """The points of a run in the order of their steps; of a step that a resumed run repeated, the last word counts."""
    merged: dict[int, Record] = {}
    for line in read_lines(output_dir / METRICS_FILE):
        known = merged.setdefault(line["step"], {"step": line["step"], "time_ms": line["time_ms"], "metrics": {}})
        known["metrics"].update(line["metrics"])
    return iter(sorted(merged.values(), key=lambda line: line["step"]))
