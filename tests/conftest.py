"""Fixtures that all tests share."""

import os
from pathlib import Path

import pytest

# One thread a process: tests start several, and a laptop has few cores. Set before torch is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("DS_ACCELERATOR", "cpu")


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """Folder with real images and oracle checkpoints that the project does not ship; skips where it is missing."""
    folder = Path(os.environ.get("DMT_DS_SHARED", Path(__file__).parents[2] / "shared"))
    if not (folder / "fixtures").is_dir():
        pytest.skip(f"no oracle data at {folder}; set DMT_DS_SHARED to its folder")
    return folder
