"""Takes the place of `RunningCommand`: a suite's commands without the seconds of imports that each has."""

import os
import signal
import time

from dmt_ds.commands.child_command import Command, RunningCommand
from tests import processes


class ForkedCommand(RunningCommand):
    """A command that is forked from a process that has imported everything (see `warm_ranks`)."""

    def __init__(self, command: Command) -> None:
        self.log = command.log
        self._started = time.monotonic()
        command.log.parent.mkdir(parents=True, exist_ok=True)
        self._log_start = command.log.stat().st_size if command.log.exists() else 0
        assert command.processes == 1
        self._ranks = processes.fork(
            ["-m", "dmt_ds", *command.arguments], 1, command.log, **(command.environment or {})
        )

    def poll(self) -> int | None:
        return self._ranks.codes()[0]

    def kill(self) -> None:
        self._ranks.kill()

    def _signal(self, number: signal.Signals) -> None:
        if self.poll() is None:
            os.kill(self._ranks.pids[0], number)
