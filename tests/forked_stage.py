"""Takes the place of `RunningStage`: a suite's stages without the seconds of imports that each has."""

import os
import signal
import time

from dmt_ds.commands.suites.stages import RunningStage, Stage
from tests import processes


class ForkedStage(RunningStage):
    """A stage that is forked from a process that has imported everything (see `warm_ranks`)."""

    def __init__(self, stage: Stage) -> None:
        self.log = stage.log
        self._started = time.monotonic()
        stage.log.parent.mkdir(parents=True, exist_ok=True)
        self._log_start = stage.log.stat().st_size if stage.log.exists() else 0
        assert stage.processes == 1
        self._ranks = processes.fork(["-m", "dmt_ds", *stage.arguments], 1, stage.log, **(stage.environment or {}))

    def poll(self) -> int | None:
        return self._ranks.codes()[0]

    def kill(self) -> None:
        self._ranks.kill()

    def _signal(self, number: signal.Signals) -> None:
        if self.poll() is None:
            os.kill(self._ranks.pids[0], number)
