"""One cluster for the tests of this folder, gone when they are; each test finds it healthy and empty."""

import fcntl
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.slurm.slurm_cluster import CLUSTER, Cluster, program

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.slurm)


@pytest.fixture(scope="package")
def running_cluster() -> Iterator[Cluster]:
    if os.geteuid() != 0:
        pytest.skip("a test cluster needs root")
    missing = [program for program in PROGRAMS if shutil.which(program) is None]
    if missing:
        pytest.skip(f"no {', '.join(missing)}: apt-get install slurmctld slurmd slurm-client munge iproute2")
    with Path(tempfile.gettempdir(), "dmt-cluster.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # its network has fixed names: one cluster a machine
        try:
            yield start_cluster()
        finally:
            subprocess.run([CLUSTER / "stop.sh"], check=True)


def start_cluster() -> Cluster:
    """Start it and put its address into this process's environment."""
    started = subprocess.run([CLUSTER / "start.sh"], capture_output=True, text=True)
    if started.returncode != 0:
        pytest.fail(f"no cluster\n{started.stderr[-4000:]}")
    exported = dict(word.split("=", 1) for word in started.stdout.split()[1:])
    os.environ.update(exported)
    return Cluster((Path(exported["DMT_CLUSTER_ROOT"]) / "mode").read_text().strip())


@pytest.fixture
def cluster(running_cluster: Cluster) -> Iterator[Cluster]:
    yield running_cluster
    running_cluster.heal()


@pytest.fixture
def stand_in(tmp_path: Path) -> str:
    """A program that takes the place of Python in the scripts."""
    program(tmp_path, "python", f'exec {sys.executable} {Path(__file__).with_name("stand_in.py")} "$@"')
    return str(tmp_path / "python")
