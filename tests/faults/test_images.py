"""A folder with a picture of each odd kind and a broken one of each kind: a run reads the one and names the other."""

import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests import processes, tiny_run
from tests.faults import places
from tests.faults.test_ranks import errors
from tests.image_files import encode

pytestmark = pytest.mark.distributed
PIXELS = Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8))


def rotated() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return encode(PIXELS, "JPEG", exif=exif)


def bomb() -> bytes:
    """A PNG of a few bytes that says it has 60000 x 60000 pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    )


GOOD = {
    "cmyk.jpg": encode(PIXELS.convert("CMYK"), "JPEG"),
    "palette.png": encode(PIXELS.convert("P"), "PNG"),
    "sixteen_bits.png": encode(Image.fromarray(np.arange(600, dtype=np.uint16).reshape(20, 30) * 100), "PNG"),
    "animated.webp": encode(PIXELS, "WEBP", save_all=True, append_images=[PIXELS.rotate(90)]),
    "rotated.jpg": rotated(),
    "one_pixel.png": encode(PIXELS.crop((0, 0, 1, 1)), "PNG"),
    "transparent.png": encode(PIXELS.convert("RGBA"), "PNG"),
    "one pixel high.jpg": encode(PIXELS.crop((0, 0, 30, 1)), "JPEG"),
}
BROKEN = {
    "truncated.jpg": encode(PIXELS, "JPEG")[:-300],
    "corrupt.png": encode(PIXELS, "PNG")[:60] + bytes(40) + encode(PIXELS, "PNG")[100:],
    "zero_bytes.jpg": b"",
    "text.png": b"<html>404</html>",
    "bomb.png": bomb(),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (place := tmp_path / "images" / "train" / "all").mkdir(parents=True)
    for name, content in {**GOOD, **BROKEN}.items():
        (place / name).write_bytes(content)
    return place


def recipe_of(tmp_path: Path, bad_images: str) -> Path:
    data = {"source": "folder", "path": str(tmp_path / "images"), "bad_images": bad_images}
    return tiny_run.write_recipe(tmp_path, data=data, train={"steps": 2}, teachers={"use": ["red"]})


def test_each_odd_picture_is_read_and_each_broken_one_is_named_and_left_out(tmp_path: Path, folder: Path) -> None:
    processes.run(tiny_run.pretrain(recipe_of(tmp_path, "skip")))
    log = (tmp_path / "run" / "train.log").read_text()
    assert {name for name in {**GOOD, **BROKEN} if f"skipped: {folder / name}" in log} == set(BROKEN)
    assert sorted(tiny_run.losses(tmp_path / "run")) == [1, 2]


@pytest.mark.parametrize("name", ["truncated.jpg", "bomb.png"])  # the test above has shown that all are found
def test_a_broken_picture_ends_a_run_in_one_line(tmp_path: Path, folder: Path, name: str) -> None:
    for other in BROKEN:
        if other != name:
            (folder / other).unlink()
    done = processes.run(tiny_run.pretrain(recipe_of(tmp_path, "stop")), check=False)
    (line,) = errors(done.stderr)
    assert done.returncode == 2 and str(folder / name) in line and "Traceback" not in done.stderr


@contextmanager
def at_work(tmp_path: Path, folder: Path, bad_images: str, steps: int = 5000) -> Iterator[processes.Launched]:
    """A run on the good pictures that has done two steps."""
    for name in BROKEN:
        (folder / name).unlink()
    recipe = recipe_of(tmp_path, bad_images)
    with processes.launched(tiny_run.pretrain(recipe, f"train.steps={steps}"), 1, tmp_path / "log") as ranks:
        while f"step 2/{steps}" not in ranks.log:
            assert ranks.codes() == [None], ranks.log
        yield ranks


def test_files_that_vanish_while_they_are_read_are_named_and_left_out(tmp_path: Path, folder: Path) -> None:
    with at_work(tmp_path, folder, "skip", steps=40) as ranks:
        for name in list(GOOD)[:3]:
            (folder / name).unlink()
        assert ranks.wait() == [0], ranks.log
    assert {name for name in GOOD if f"skipped: {folder / name}: can't be read" in ranks.log} == set(list(GOOD)[:3])


def test_a_picture_that_vanishes_ends_a_run_in_one_line_where_that_is_asked_for(tmp_path: Path, folder: Path) -> None:
    with at_work(tmp_path, folder, "stop") as ranks:
        (folder / "cmyk.jpg").unlink()
        assert ranks.wait() == [2], ranks.log
    (line,) = errors(ranks.log)
    assert f"{folder / 'cmyk.jpg'}: can't be read" in line and "Traceback" not in ranks.log


@pytest.mark.parametrize("bad_images", ["stop", "skip"])
def test_a_picture_without_an_answer_ends_a_run_in_one_line_that_is_worth_another_try(
    tmp_path: Path, folder: Path, bad_images: str
) -> None:
    for name in BROKEN:
        (folder / name).unlink()
    places.without_answer(folder / "cmyk.jpg")
    done = processes.run(tiny_run.pretrain(recipe_of(tmp_path, bad_images)), check=False)
    (line,) = errors(done.stderr)
    assert done.returncode == 75 and f"{folder / 'cmyk.jpg'}: can't be read (Input/output error)" in line
    assert "Traceback" not in done.stderr


def test_a_data_folder_that_is_gone_as_a_whole_ends_a_run_in_one_line(tmp_path: Path, folder: Path) -> None:
    """Also where bad images are left out: nothing would be left."""
    with at_work(tmp_path, folder, "skip") as ranks:
        (tmp_path / "images").rename(tmp_path / "elsewhere")
        assert ranks.wait() == [2], ranks.log
    (line,) = errors(ranks.log)
    assert str(folder) in line and "Traceback" not in ranks.log
