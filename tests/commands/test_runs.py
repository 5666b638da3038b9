"""What ranks find out before anything large is built."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests import processes, tiny_run

CLASSES = ("ant", "bee", "cat")


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Noise in folders of classes."""
    rng = np.random.default_rng(0)
    for name in CLASSES:
        (folder := tmp_path / "images" / "train" / name).mkdir(parents=True)
        for number in range(8):
            Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(folder / f"{number}.png")
    return tmp_path / "images"


@pytest.mark.distributed
def test_folders_are_listed_once_for_all_ranks(tmp_path: Path, images: Path) -> None:
    recipe = tiny_run.write_recipe(
        tmp_path, data={"source": "folder", "path": str(images)}, train={"steps": 1}, teachers={"use": ["red"]}
    )
    notes = tmp_path / "notes"
    noting = ("tests.faults.harm.note_reading", [str(images), str(notes)])
    with processes.launched(tiny_run.pretrain(recipe), 2, tmp_path / "log", harm=noting) as ranks:
        assert ranks.wait() == [0, 0], ranks.log
    lines = [line.split() for line in notes.read_text().splitlines()]
    listed = Counter((rank, Path(path).name) for rank, event, path in lines if event == "os.scandir")
    assert {name: listed[("0", name)] for name in CLASSES} == dict.fromkeys(CLASSES, 1)
    assert {rank for rank, _ in listed} == {"0"}
    assert {rank for rank, event, _ in lines if event == "open"} == {"0", "1"}, "each rank reads images"
