"""A running test cluster: submit jobs of the project's scripts, watch them, and hurt nodes."""

import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
CLUSTER = Path(__file__).with_name("cluster")
SCRIPTS = ROOT / "slurm"

ENDED = "COMPLETED|FAILED|TIMEOUT|CANCELLED|NODE_FAIL|OUT_OF_MEMORY|DEADLINE|BOOT_FAIL"

# Overrides every size in the scripts' headers, as a user with two small nodes would.
SMALL = ("--nodes=2", "--ntasks-per-node=2", "--gpus-per-node=0", "--cpus-per-task=1", "--mem=1G", "--time=10")


def output_of(*command: str | Path) -> str:
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, timeout=60)
    if done.returncode != 0:
        raise AssertionError(f"{' '.join(map(str, command))}: exit code {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout.strip()


def program(folder: Path, name: str, text: str) -> dict[str, str]:
    """Environment in which `name` is this shell script."""
    (folder / name).write_text(f"#!/bin/bash\n{text}\n")
    (folder / name).chmod(0o755)
    return {"PATH": f"{folder}:{os.environ['PATH']}"}


def wait_until(holds: Callable[[], object], seconds: float, otherwise: Callable[[], str]) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds} s\n{otherwise()}")
        time.sleep(0.1)


def is_alive(pid: str) -> bool:
    """A zombie counts as gone: in a container nobody may reap it."""
    status = Path(f"/proc/{pid}/status")
    return status.exists() and not re.search(r"^State:\s*[ZX]", status.read_text(), re.MULTILINE)


@dataclass(frozen=True)
class Job:
    """A submitted job; its output is `log`."""

    number: str
    log: Path

    def field(self, name: str) -> str:
        text = output_of("scontrol", "-o", "show", "job", self.number)
        found = re.search(rf"(?:^| ){name}=(\S*)", text)
        return found[1] if found else ""

    @property
    def state(self) -> str:
        return self.field("JobState")

    @property
    def restarts(self) -> int:
        return int(self.field("Restarts"))

    @property
    def nodes(self) -> list[str]:
        return output_of("scontrol", "show", "hostnames", self.field("NodeList")).split()

    def text(self) -> str:
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def report(self) -> str:
        return f"job {self.number} is {self.state}, exit code {self.field('ExitCode')}\n{self.text()[-6000:]}"

    def until(self, states: str, seconds: float = 120) -> "Job":
        """Wait for one of the states; not by `sbatch --wait`, which polls ever more slowly."""
        wait_until(lambda: re.fullmatch(states, self.state), seconds, self.report)
        return self

    def ends_as(self, state: str, seconds: float = 120) -> "Job":
        self.until(ENDED, seconds)
        assert self.state == state, self.report()
        return self

    def until_log(self, pattern: str, seconds: float = 60) -> "Job":
        wait_until(lambda: re.search(pattern, self.text()), seconds, self.report)
        return self

    def scancel(self, *options: str) -> None:
        output_of("scancel", *options, self.number)


class Cluster:
    """Knows where jobs are submitted from and what they are given."""

    def __init__(self, mode: str) -> None:
        self.mode = mode
        """`netns`: nodes have addresses of their own; `plain`: they have not."""

    def submit(
        self,
        script: str | Path,
        *arguments: str | Path,
        folder: Path,
        options: Sequence[str] = SMALL,
        **environment: str,
    ) -> Job:
        """`sbatch OPTIONS slurm/SCRIPT ARGUMENTS`, from `folder`."""
        log = folder / "%x-%j.out"
        command = ["sbatch", "--parsable", *options, f"--output={log}", SCRIPTS / script, *arguments]
        number = self.at(folder, command, **environment)
        return self.job(number, folder)

    def job(self, number: str, folder: Path) -> Job:
        log = re.search(r" StdOut=(\S+)", output_of("scontrol", "-o", "show", "job", number))
        return Job(number, Path(log[1]) if log else folder / "missing")

    def at(self, folder: Path, command: Sequence[str | Path], **environment: str) -> str:
        """Run a command of Slurm where a user stands; its output."""
        known = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "MLFLOW_", "DMT_DS_"))}
        known |= {"SLURM_CONF": os.environ["SLURM_CONF"], "OMP_NUM_THREADS": "1", **environment}
        done = subprocess.run([str(w) for w in command], cwd=folder, env=known, capture_output=True, text=True)
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
        return done.stdout.strip()

    def node(self, action: str, node: str) -> None:
        """start, kill, cut, mend, freeze or thaw a node."""
        output_of(CLUSTER / "node.sh", action, node)

    @contextmanager
    def without_controller(self) -> Iterator[None]:
        """As while an administrator restarts it: `scontrol` and the like get no answer, jobs run on."""
        pid = self._pid_of("slurmctld")
        os.kill(int(pid), signal.SIGTERM)
        wait_until(lambda: not is_alive(pid), 30, lambda: "slurmctld doesn't end")
        try:
            yield
        finally:
            output_of("slurmctld", "-f", os.environ["SLURM_CONF"])

    def has_processes(self, node: str) -> bool:
        """Whether something of a job runs on a node, as its own processes say."""
        mark = f"SLURMD_NODENAME={node}".encode()
        for environ in Path("/proc").glob("[0-9]*/environ"):
            try:
                if mark in environ.read_bytes().split(b"\0"):
                    return True
            except OSError:
                continue
        return False

    def heal(self) -> None:
        """No jobs, all nodes idle."""
        subprocess.run(["scancel", "--user=root"], check=False)
        wait_until(lambda: not output_of("squeue", "-h"), 60, lambda: output_of("squeue"))
        for line in sorted(set(output_of("sinfo", "-h", "-N", "-o", "%N %t").splitlines())):
            node, state = line.split()
            if state.rstrip("*") != "idle" or state.endswith("*"):
                self._revive(node)
        wait_until(self._all_idle, 40, lambda: output_of("sinfo", "-N", "-l"))

    def _revive(self, node: str) -> None:
        if self.mode == "netns":
            self.node("mend", node)
        if not is_alive(self._pid_of(f"slurmd-{node}")):
            self.node("start", node)
        subprocess.run(["scontrol", "update", f"nodename={node}", "state=resume"], capture_output=True)

    @staticmethod
    def _pid_of(daemon: str) -> str:
        file = Path(os.environ["DMT_CLUSTER_ROOT"]) / "run" / f"{daemon}.pid"
        return file.read_text().strip() if file.exists() else "none"

    @staticmethod
    def _all_idle() -> bool:
        return set(output_of("sinfo", "-h", "-N", "-o", "%t").split()) == {"idle"}
