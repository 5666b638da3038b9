"""What a run has cost, by its own record: images seen, and the hours of its devices; asks for a run's points alone."""

from dataclasses import dataclass
from math import isfinite

from dmt_ds.tracking.mlflow_compare import RecordedRun

IMAGES_SEEN, IMAGES_PER_SECOND, RANKS = "train/images_seen", "perf/images_per_second", "perf/ranks"


@dataclass(frozen=True)
class Budget:
    """What one run has cost.

    Attributes:
        images_seen: in the steps that count; repeated ones count once.
        device_hours: hours of training times devices; None where there are no points to tell it by.
        unit: of `device_hours`: GPU-h; CPU-h, an hour of one thread; or rank-h, where a run does not say its device.
    """

    images_seen: float | None
    device_hours: float | None
    unit: str


def budget_of(run: RecordedRun) -> Budget:
    """The budget of a run that has ended or not; a run of no steps has cost nothing."""
    unit, devices_a_rank = _devices(run)
    if run.params.get("train.steps") == "0":
        return Budget(0.0, 0.0, unit)
    seconds = rank_seconds(run)
    hours = None if seconds is None else seconds * devices_a_rank / 3600
    return Budget(run.metrics.get(IMAGES_SEEN), hours, unit)


def rank_seconds(run: RecordedRun) -> float | None:
    """Seconds of training, times the ranks that trained; None without points.

    Each log point holds for the images since the point before. Hence waiting in a queue, saving and evaluating between
    steps cost nothing, and steps that a restart repeated are counted once.
    """
    rates = {point.step: point.value for point in run.history(IMAGES_PER_SECOND)}
    ranks = {point.step: point.value for point in run.history(RANKS)}
    now = float(run.tags.get("world_size", "1"))
    seconds = images_before = 0.0
    for point in run.history(IMAGES_SEEN):
        rate = rates.get(point.step, 0.0)
        if rate > 0:  # else the next point tells the speed of these images too
            seconds += (point.value - images_before) / rate * ranks.get(point.step, now)
            images_before = point.value
    return seconds if images_before > 0 else None


def against_images(run: RecordedRun, metric: str) -> list[tuple[float, float]]:
    """A metric over the images seen when it was measured; where that step has no log point, by the batch size."""
    points = run.history(metric)
    seen = {point.step: point.value for point in run.history(IMAGES_SEEN)} if points else {}
    last = max(seen, default=0)
    batch_size = seen[last] / last if last else 0.0
    return [(seen.get(point.step, point.step * batch_size), point.value) for point in points if isfinite(point.value)]


def _devices(run: RecordedRun) -> tuple[str, float]:
    """Unit, and how many such devices a rank has."""
    device = run.tags.get("device")
    if device is None:
        return "rank-h", 1.0
    if device == "cpu":
        return "CPU-h", float(run.tags.get("threads", "1"))
    return "GPU-h", 1.0
