"""Real processes for tests: the command line, alone or under torchrun, with its output kept."""

import atexit
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
WARM = ("pretrain", "evaluate", "knn", "finetune", "segment", "detect", "judge", "predict", "suite", "bench")
"""Commands that import much."""


def command(arguments: Sequence[str], processes: int = 1) -> list[str]:
    """`-m dmt_ds ...` or `script.py ...`, on so many ranks of this machine."""
    if processes == 1:
        return [sys.executable, *arguments]
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    return [sys.executable, *launcher, *arguments]


def environment(**extra: str) -> dict[str, str]:
    """This process's, with one thread a rank and no launcher's variables from outside."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "MLFLOW_"))}
    path = os.pathsep.join([str(ROOT), *filter(None, [inherited.get("PYTHONPATH")])])
    return {**inherited, "OMP_NUM_THREADS": "1", "PYTHONPATH": path, "PYTHONUNBUFFERED": "1", **extra}


def run(
    arguments: Sequence[str],
    processes: int = 1,
    *,
    cwd: Path | None = None,
    timeout: float = 300,
    check: bool = True,
    **extra: str,
) -> subprocess.CompletedProcess[str]:
    """Run to the end; on a failure (where `check`) the output is the test's message.

    What trains or judges, and `-m tests....`, is forked from a process that has imported everything (see `warm_ranks`).
    Not so several ranks that are to fail: how that ends is the launcher's.
    """
    if not extra and _is_warm(arguments) and (check or processes == 1):
        done = _run_warm(list(arguments), processes, cwd or Path.cwd(), timeout)
    else:
        words, variables = command(arguments, processes), environment(**extra)
        done = subprocess.run(words, capture_output=True, text=True, cwd=cwd, env=variables, timeout=timeout)
    if check and done.returncode != 0:
        raise AssertionError(f"exit code {done.returncode}\n{done.stdout[-4000:]}\n{done.stderr[-6000:]}")
    return done


def _is_warm(arguments: Sequence[str]) -> bool:
    if arguments[0] != "-m":
        return False
    return arguments[1].startswith("tests.") or (arguments[1] == "dmt_ds" and arguments[2] in WARM)


def _run_warm(arguments: list[str], processes: int, cwd: Path, timeout: float) -> subprocess.CompletedProcess[str]:
    with tempfile.NamedTemporaryFile("w+") as out, tempfile.NamedTemporaryFile("w+") as err:
        told = {"arguments": arguments, "processes": processes, "cwd": str(cwd), "timeout": timeout}
        codes = _ask_forge(do="run", **told, stdout=out.name, stderr=err.name)["codes"]
        return subprocess.CompletedProcess(arguments, next(filter(None, codes), 0), out.read(), err.read())


class Launched:
    """Ranks at work, forked as `run` does it; a test may do them harm, and no launcher ends the others for it."""

    def __init__(self, pids: list[int], log: Path) -> None:
        self.pids = pids
        self._log = log

    @property
    def log(self) -> str:
        """What all ranks have said so far."""
        return self._log.read_text(errors="replace")

    def codes(self) -> list[int | None]:
        """Exit code of each rank, negative after a signal; None while it lives."""
        ended = _ask_forge(do="look")["codes"]
        return [ended.get(str(pid)) for pid in self.pids]

    def wait(self, seconds: float = 120) -> list[int]:
        """Exit codes once all have ended."""
        deadline = time.monotonic() + seconds
        while None in (codes := self.codes()):
            if time.monotonic() > deadline:
                raise AssertionError(f"exit codes {codes} after {seconds} s\n{self.log[-6000:]}")
            time.sleep(0.05)
        return [code for code in codes if code is not None]

    def end_as_a_launcher_does(self, grace_seconds: float) -> bool:
        """Kill what still lives so long after the first rank has ended; whether there was nothing to kill."""
        deadline = None
        while None in (codes := self.codes()):
            if deadline is None and any(code is not None for code in codes):
                deadline = time.monotonic() + grace_seconds
            if deadline is not None and time.monotonic() > deadline:
                self.kill()
                return False
            time.sleep(0.05)
        return True

    def kill(self) -> None:
        """End what still lives."""
        for pid, code in zip(self.pids, self.codes(), strict=True):
            if code is None:
                os.kill(pid, signal.SIGKILL)
        self.wait()


@contextmanager
def launched(
    arguments: Sequence[str],
    processes: int,
    log: Path,
    *,
    cwd: Path | None = None,
    harm: tuple[str, list[Any]] | None = None,
    **environment: str,
) -> Iterator[Launched]:
    """Ranks in the background, none of which outlives the block.

    Args:
        log: file for what they say.
        harm: dotted name of a function, and arguments that follow the rank: each rank calls it before it starts.
    """
    ranks = fork(arguments, processes, log, cwd=cwd, harm=harm, **environment)
    try:
        yield ranks
    finally:
        ranks.kill()


def fork(
    arguments: Sequence[str],
    processes: int,
    log: Path,
    *,
    cwd: Path | None = None,
    harm: tuple[str, list[Any]] | None = None,
    **environment: str,
) -> Launched:
    """Ranks in the background, as `launched` has them, which somebody else ends."""
    log.touch()
    told = {"arguments": list(arguments), "processes": processes, "cwd": str(cwd or Path.cwd())}
    told |= {"stdout": str(log), "stderr": str(log), "environment": environment}
    if harm is not None:
        told["harm"] = {"function": harm[0], "arguments": harm[1]}
    return Launched(_ask_forge(do="start", **told)["pids"], log)


def _ask_forge(**told: object) -> dict[str, Any]:
    forge = _forge()
    assert forge.stdin is not None and forge.stdout is not None
    forge.stdin.write(json.dumps(told) + "\n")
    forge.stdin.flush()
    answer: dict[str, Any] = json.loads(forge.stdout.readline())
    return answer


@cache
def _forge() -> subprocess.Popen[str]:
    """The process that forks ranks; one for all tests of this process."""
    program = [sys.executable, "-m", "tests.warm_ranks"]
    forge = subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment())
    atexit.register(forge.kill)
    return forge


def start(
    arguments: Sequence[str], processes: int = 1, *, cwd: Path | None = None, log: Path, **extra: str
) -> subprocess.Popen[bytes]:
    """Start in the background in a process group of its own; output goes to `log`."""
    with log.open("ab") as out:
        return subprocess.Popen(
            command(arguments, processes),
            stdout=out,
            stderr=out,
            cwd=cwd,
            env=environment(**extra),
            start_new_session=True,
        )


def errors(log: str) -> list[str]:
    """The lines by which the command line told its errors."""
    return [line for line in log.splitlines() if line.startswith("dmt-ds: error:")]


def free_port() -> int:
    """A port of this machine that nobody listens on just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
