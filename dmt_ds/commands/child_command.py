"""A command of dmt-ds in processes of its own: started, asked to save and end, its last words read; knows no run.

Each has a session of its own: Ctrl-C in a terminal reaches whoever started it, and is passed on once.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

ERROR = "dmt-ds: error: "


@dataclass(frozen=True)
class Command:
    """What is started, and where its output goes.

    Attributes:
        arguments: of `dmt-ds`, such as `pretrain -c mae`.
        log: file that takes all output, behind what it holds already.
        environment: of the processes; None takes this one's.
        processes: ranks, through torch's launcher where there are several.
    """

    arguments: tuple[str, ...]
    log: Path
    environment: Mapping[str, str] | None = None
    processes: int = 1

    @property
    def words(self) -> list[str]:
        """Words of the command line."""
        program: Sequence[str] = ("-m", "dmt_ds", *self.arguments)
        if self.processes == 1:
            return [sys.executable, *program]
        launcher = ("-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={self.processes}")
        return [sys.executable, *launcher, *program]


class RunningCommand:
    """A command from its start to its end."""

    def __init__(self, command: Command) -> None:
        self.log = command.log
        self._started = time.monotonic()
        command.log.parent.mkdir(parents=True, exist_ok=True)
        with command.log.open("ab") as out:
            self._log_start = out.tell()
            self._process = subprocess.Popen(
                command.words, stdout=out, stderr=out, env=command.environment, start_new_session=True
            )

    @property
    def seconds(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self._started

    def poll(self) -> int | None:
        """The exit code; None while it runs."""
        return self._process.poll()

    def stop(self) -> None:
        """Ask training to save and end, and anything else to end; to ask again changes nothing."""
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        """End it at once."""
        self._signal(signal.SIGKILL)
        self._process.wait()

    def wait(self, seconds_between_looks: float, look: Callable[[], None]) -> int:
        """The exit code; `look` is called every so often. Ctrl-C asks the command to save, and waits for it.

        Raises:
            KeyboardInterrupt: after the command has ended; a second one ends it at once.
        """
        try:
            while True:
                with suppress(subprocess.TimeoutExpired):
                    return self._process.wait(seconds_between_looks)
                look()
        except KeyboardInterrupt:
            self.stop()
            try:
                self._process.wait()
            except KeyboardInterrupt:
                self.kill()
            raise

    def errors(self) -> list[str]:
        """What went wrong since the start, one line a finding; where nothing was said, how it ended."""
        with self.log.open("rb") as file:
            file.seek(self._log_start)
            lines = file.read().decode(errors="replace").strip().splitlines()
        said = [line.partition(ERROR)[2] for line in lines if ERROR in line]
        return list(dict.fromkeys(said)) or [
            f"it ended with code {self.poll()}; its last words: {' | '.join(lines[-2:])}"
        ]

    def _signal(self, number: signal.Signals) -> None:
        if self._process.poll() is None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, number)
