"""Real processes for tests: the command line, alone or under torchrun, with its output kept."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]


def command(arguments: Sequence[str], processes: int = 1) -> list[str]:
    """`-m dmt_ds ...` or `script.py ...`, on so many ranks of this machine."""
    if processes == 1:
        return [sys.executable, *arguments]
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    return [sys.executable, *launcher, *arguments]


def environment(**extra: str) -> dict[str, str]:
    """This process's, with one thread a rank and no launcher's variables from outside."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "MLFLOW_"))}
    return {**inherited, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", **extra}


def run(
    arguments: Sequence[str],
    processes: int = 1,
    *,
    cwd: Path | None = None,
    timeout: float = 300,
    check: bool = True,
    **extra: str,
) -> subprocess.CompletedProcess[str]:
    """Run to the end; on a failure (where `check`) the output is the test's message."""
    done = subprocess.run(
        command(arguments, processes),
        capture_output=True,
        text=True,
        cwd=cwd,
        env=environment(**extra),
        timeout=timeout,
    )
    if check and done.returncode != 0:
        raise AssertionError(f"exit code {done.returncode}\n{done.stdout[-4000:]}\n{done.stderr[-6000:]}")
    return done


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
