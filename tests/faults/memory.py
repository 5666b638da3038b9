"""Whether the memory of ranks is flat: sampled over one life of theirs, with how sure the slope is."""

import json
import os
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
import psutil

WARM_UP_SHARE = 0.2
BLOCKS = 12
STUDENT_95 = 2.228
"""Two-sided 95 % of Student's t with BLOCKS - 2 degrees of freedom."""
_TAIL = 1 << 14


class Sample(NamedTuple):
    """How large a rank, or all that works below it, was at a step."""

    who: str
    seconds: float
    step: int
    mib: float


class Sampler:
    """Memory of all ranks and of their helpers, once a second, from another thread.

    Pages that belong to no file: those of libraries come in as they are first used.
    """

    def __init__(self, pids: list[int], run: Path) -> None:
        self.samples: list[Sample] = []
        self._pids = pids
        self._points = run / "metrics.jsonl"
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def __enter__(self) -> "Sampler":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def newest_step(self) -> int:
        """Of the run's last whole line; 0 before there is one."""
        if not self._points.exists():
            return 0
        with self._points.open("rb") as file:
            file.seek(max(0, self._points.stat().st_size - _TAIL), os.SEEK_SET)
            lines = file.read().splitlines()
        for line in reversed(lines):
            with suppress(ValueError):
                return int(json.loads(line)["step"])
        return 0

    def _sample(self) -> None:
        began = time.monotonic()
        while not self._done.wait(1.0):
            step = self.newest_step()
            for rank, pid in enumerate(self._pids):
                with suppress(psutil.Error, OSError):
                    now = round(time.monotonic() - began, 1)
                    helpers = psutil.Process(pid).children(recursive=True)
                    self.samples.append(Sample(f"rank {rank}", now, step, own_mib(pid)))
                    if helpers:
                        below = sum(own_mib(helper.pid) for helper in helpers)
                        self.samples.append(Sample(f"helpers of rank {rank}", now, step, below))


def own_mib(pid: int) -> float:
    """What Linux calls RssAnon."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return round(next(int(line.split()[1]) for line in lines if line.startswith("RssAnon:")) / 1024, 3)


def growth(samples: list[Sample]) -> dict[str, dict[str, float]]:
    """Who -> KiB a step with the half-width of its 95 % interval, and where it began and ended.

    A fifth of the samples is left out: a start fills caches. One sample is like the next, so the line goes through the
    means of a dozen blocks of steps, and its uncertainty is theirs; the last half alone tells whether growth abates.
    """
    found = {}
    for who in sorted({sample.who for sample in samples}, reverse=True):
        own = np.array([(sample.step, sample.mib) for sample in samples if sample.who == who and sample.step > 0])
        own = own[int(len(own) * WARM_UP_SHARE) :]
        if len(own) < 5 * BLOCKS or own[0, 0] == own[-1, 0]:
            continue
        slope, half_width = line(own)
        later, later_half_width = line(own[len(own) // 2 :])
        found[who] = {
            "KiB a step": round(slope, 4),
            "95 % within +-": round(half_width, 4),
            "KiB a step, last half": round(later, 4),
            "last half, 95 % within +-": round(later_half_width, 4),
            "steps": int(own[-1, 0] - own[0, 0]),
            "MiB first": round(float(own[0, 1]), 1),
            "MiB last": round(float(own[-1, 1]), 1),
        }
    return found


def line(points: np.ndarray) -> tuple[float, float]:
    """Slope of (step, MiB) in KiB a step through the means of blocks, and the half-width of its 95 % interval."""
    steps, mib = np.array([block.mean(axis=0) for block in np.array_split(points, BLOCKS)]).T
    centred = steps - steps.mean()
    spread = float((centred**2).sum())
    if spread == 0:
        return 0.0, float("inf")
    slope = float((centred * mib).sum() / spread)
    residuals = mib - mib.mean() - slope * centred
    error = float(np.sqrt((residuals**2).sum() / (BLOCKS - 2) / spread))
    return slope * 1024, STUDENT_95 * error * 1024
