"""The ranks of this node as processes: whether one was stopped, and how it is made to say where; knows no training."""

import os
import signal
import socket
from dataclasses import dataclass
from pathlib import Path

STACKS_SIGNAL = signal.SIGUSR2
"""A rank that gets it prints the stacks of all its threads and goes on."""


@dataclass(frozen=True)
class Place:
    """One rank's process, told from any other that has, or had, its number.

    Attributes:
        numbers: the namespace in which `pid` means this process; containers have their own.
        born: start of the process in the kernel's ticks; another process that got the same number has another.
    """

    rank: int
    host: str
    numbers: str
    pid: int
    born: str

    @classmethod
    def of_this_process(cls, rank: int) -> "Place":
        """Where this rank runs."""
        pid = os.getpid()
        return cls(rank, socket.gethostname(), _namespace(), pid, _status(pid)[1])

    def is_stopped_beside(self, other: "Place") -> bool:
        """Whether it lies on the node of `other`, and somebody has stopped it (SIGSTOP, a debugger)."""
        state, born = _status(self.pid)
        return self._is_beside(other) and born == self.born and state in ("T", "t")

    def is_gone_beside(self, other: "Place") -> bool:
        """Whether it lay on the node of `other`, and has ended, however that was."""
        state, born = _status(self.pid)
        return self._is_beside(other) and (born != self.born or state in ("Z", "X"))

    def _is_beside(self, other: "Place") -> bool:
        return (self.host, self.numbers) == (other.host, other.numbers) and bool(self.born)

    def show_stacks_and_go_on(self) -> None:
        """Wake it; the first thing that it does is to print its stacks."""
        for number in (STACKS_SIGNAL, signal.SIGCONT):
            os.kill(self.pid, number)


def _status(pid: int) -> tuple[str, str]:
    """State letter and start time; empty where there is no such process, or the kernel does not tell."""
    try:
        words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return "", ""
    return words[0], words[19]


def _namespace() -> str:
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""
