"""Notices that training waits for images, and says so once, with figures and a remedy; knows no image."""

import logging
from collections.abc import Mapping

logger = logging.getLogger(__name__)

WAIT_SHARE = 0.1
"""Share of the time between two log steps; below it, more cores would not be noticed."""


class DataWaitAlarm:
    """Warns after two consecutive log intervals of waiting; a single one may be the first batch or a slow file.

    If the training process of a CPU run decodes the images itself, it never waits, and there is no warning.
    """

    def __init__(self, num_workers: int, cores: int, on_gpu: bool) -> None:
        """What this rank's loader has.

        Args:
            num_workers: loader processes; 0 is the training process itself.
            cores: that this rank may use.
            on_gpu: whether the cores have nothing else to do.
        """
        self._num_workers, self._cores = num_workers, cores
        self._is_waiting_possible = on_gpu or num_workers > 0
        self._intervals = 0
        self._said = False

    def look(self, metrics: Mapping[str, float]) -> None:
        """Look at `perf/data_wait_share` and `perf/images_per_second` of the interval that ends."""
        share = metrics["perf/data_wait_share"]
        self._intervals = self._intervals + 1 if self._is_waiting_possible and share > WAIT_SHARE else 0
        if self._intervals < 2 or self._said:
            return
        self._said = True
        logger.warning(
            "training waits for images %.0f %% of the time: %.0f images/s, %d loader processes, %d cores per rank; %s",
            100 * share,
            metrics["perf/images_per_second"],
            self._num_workers,
            self._cores,
            self._remedy(),
        )

    def _remedy(self) -> str:
        smaller = "make smaller files once with `dmt-ds shards make`"
        if self._num_workers < self._cores - 1:
            return f"set data.num_workers=auto ({self._cores - 1} here), or {smaller}"
        return f"give each rank more cores (SLURM: --cpus-per-task), or {smaller}"
