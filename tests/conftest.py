"""Fixtures that all tests share."""

import json
import logging
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

# One thread a process: tests start several, and a laptop has few cores. Set before torch is imported. A GPU is hidden:
# tests of several ranks would share it; those marked `gpu` show it to processes of their own.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["DS_ACCELERATOR"] = "cpu"
os.environ["CUDA_VISIBLE_DEVICES"] = ""

# The same examples in every run, however slow the machine is; DMT_DS_EXAMPLES=random has others each time, and prints
# the line that repeats the one that failed.
settings.register_profile("same", derandomize=True, deadline=None, database=None)
settings.register_profile("random", derandomize=False, deadline=None, database=None, print_blob=True)
settings.load_profile(os.environ.get("DMT_DS_EXAMPLES", "same"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest file comes first, so that no worker ends with it alone."""
    items.sort(key=lambda item: not item.path.match("slurm/test_training.py"))


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """A line a test into the file that DMT_DS_OUTCOMES names; `tests.faults.table` makes a table of them."""
    path = os.environ.get("DMT_DS_OUTCOMES")
    if path and (report.when == "call" or (report.when == "setup" and not report.passed)):
        line = {"test": report.nodeid, "outcome": report.outcome, **dict(report.user_properties)}
        with open(path, "a") as file:
            file.write(json.dumps(line) + "\n")


@pytest.fixture(autouse=True)
def logging_as_it_was() -> Iterator[None]:
    """Undo what a command that ran in this process set: levels and handlers would be the next test's."""
    loggers = [logging.getLogger(), logging.getLogger("dmt_ds")]
    before = [(each, each.level, list(each.handlers)) for each in loggers]
    yield
    for each, level, handlers in before:
        each.setLevel(level)
        for handler in set(each.handlers) - set(handlers):
            each.removeHandler(handler)
            handler.close()


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """Folder with real images and oracle checkpoints that the project does not ship; skips where it is missing."""
    folder = Path(os.environ.get("DMT_DS_SHARED", Path(__file__).parents[2] / "shared"))
    if not (folder / "fixtures").is_dir():
        pytest.skip(f"no oracle data at {folder}; set DMT_DS_SHARED to its folder")
    return folder


@pytest.fixture(scope="session")
def cuda() -> dict[str, str]:
    """Environment that shows the first GPU to a process; skips where there is none."""
    if shutil.which("nvidia-smi") is None or subprocess.run(["nvidia-smi", "-L"], capture_output=True).returncode != 0:
        pytest.skip("no NVIDIA GPU here")
    return {"CUDA_VISIBLE_DEVICES": "0", "DS_ACCELERATOR": "cuda"}


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MLflow store without runs; a copy of the file is there at once, where making one takes seconds."""
    from tests.tracking.stores import make_store

    database = tmp_path_factory.mktemp("empty") / "mlflow.db"
    make_store(f"sqlite:///{database}")
    return database
