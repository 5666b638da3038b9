"""`dmt-ds shards make`: the same images, smaller, whichever way they are made; nothing half made passes for whole."""

import io
import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image
from torch import Tensor

from dmt_ds.cli import main
from dmt_ds.config.schema import DataConfig
from dmt_ds.data.shards import ShardSettings, measure_change, shrink
from dmt_ds.data.sources import ImageSource, open_source
from dmt_ds.data.views import CropSpec
from dmt_ds.errors import DataError

CLASSES = ("cat", "dog's", "zebra")


def photograph(number: int) -> Image.Image:
    """Smooth colours, wider or higher."""
    rng = np.random.default_rng(number)
    size = (150 + 5 * number, 100) if number % 2 else (100, 160)
    return Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)).resize(size, Image.Resampling.BICUBIC)


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    for split, count in (("train", 11), ("val", 4)):
        for number in range(count):
            path = tmp_path / "photos" / split / CLASSES[number % 3] / f"{number}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            photograph(number).save(path)
    return tmp_path / "photos"


def make(photos: Path, out: Path, *more: str) -> Result:
    settings = ["data.source=folder", f"data.path={photos}", "data.image_size=32"]
    arguments = [
        "shards",
        "make",
        str(out),
        "--short-side",
        "64",
        "--images-a-shard",
        "4",
        "--workers",
        "1",
        *more,
        *settings,
    ]
    return CliRunner().invoke(main, arguments)


def shards(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(out.iterdir()) if path.suffix == ".parquet"}


def opened(out: Path, split: str = "train") -> ImageSource:
    return open_source(DataConfig(source="parquet", path=str(out)), split)  # type: ignore[arg-type]


def test_a_run_reads_the_shards_as_they_are(photos: Path, tmp_path: Path) -> None:
    result = make(photos, tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert f"data.source=parquet data.path={tmp_path / 'out'}\n" in result.output
    assert len(shards(tmp_path / "out")) == 3 + 1
    original = open_source(DataConfig(source="folder", path=str(photos)), "train")
    for split, count in (("train", 11), ("val", 4)):
        source = opened(tmp_path / "out", split)
        assert len(source) == count and source.class_names == CLASSES
    source = opened(tmp_path / "out")
    for index in range(11):
        assert source.label(index) == original.label(index)
        image = Image.fromarray(original.read(index).permute(1, 2, 0).numpy())
        factor = 64 / min(image.size)
        small = image.resize((round(image.width * factor), round(image.height * factor)), Image.Resampling.BICUBIC)
        difference = torch.from_numpy(np.array(small)).permute(2, 0, 1).float() - source.read(index)
        assert difference.abs().mean() < 3 and source.read(index).shape[1:] == (small.height, small.width)


def test_small_shards_are_not_called_nothing_and_what_is_as_before_is_called_that(photos: Path, tmp_path: Path) -> None:
    said = make(photos, tmp_path / "out").output.splitlines()[0]
    assert re.search(r"about 0\.0\d+ MB\. ", said), said
    for short_side, share in (
        ("512", "0 % of them are enlarged, as before"),
        ("8", "100 % of them are enlarged instead of"),
    ):
        said = make(photos, tmp_path / short_side, "--short-side", short_side).output.splitlines()[0]
        assert share in said


def test_a_setting_in_the_place_of_the_folder_is_told(photos: Path) -> None:
    settings = ["data.source=folder", f"data.path={photos}"]
    result = CliRunner().invoke(main, ["shards", "make", *settings, "out"])
    assert result.exit_code == 2 and "OUT comes first: data.source=folder looks like a setting" in result.stderr


def test_any_number_of_processes_gives_the_same_bytes(photos: Path, tmp_path: Path) -> None:
    for number in ("1", "3"):
        assert make(photos, tmp_path / number, "--workers", number).exit_code == 0
    assert shards(tmp_path / "1") == shards(tmp_path / "3")


def test_a_second_start_makes_only_what_is_missing(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert make(photos, out, "--split", "train").exit_code == 0
    whole, times = shards(out), {path.name: os.stat(path).st_mtime_ns for path in out.iterdir()}
    lost = "train-00001-of-00003.parquet"
    (out / lost).unlink()
    (out / f".{lost}.part").write_bytes(b"cut off")
    with pytest.raises(DataError, match=r"holds 2 of 3 files like train-00000-of-00003\.parquet"):
        opened(out)
    result = make(photos, out)
    assert result.exit_code == 0 and "train: 2 of 3 shards" in result.output
    assert {name: data for name, data in shards(out).items() if name in whole} == whole
    assert not list(out.glob(".*"))
    for name in whole.keys() - {lost}:
        assert os.stat(out / name).st_mtime_ns == times[name]


@pytest.mark.parametrize("change", ["settings", "images"])
def test_shards_of_something_else_are_not_added_to(change: str, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert make(photos, out).exit_code == 0
    before, record = shards(out), json.loads((out / "shards.json").read_text())
    if change == "images":
        photograph(1).save(photos / "train" / "cat" / "new.jpg")
    result = make(photos, out, *(["--quality", "80"] if change == "settings" else []))
    assert result.exit_code == 2 and len(result.stderr.splitlines()) == 1
    assert ("quality 95, not 80" if change == "settings" else "'images': 11") in result.stderr
    assert shards(out) == before and json.loads((out / "shards.json").read_text()) == record


def test_a_folder_with_other_parquet_files_is_left_alone(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "train-0.parquet").write_bytes(b"mine")
    assert "holds parquet files but no shards.json" in make(photos, tmp_path / "out").stderr


def test_a_broken_image_is_named_or_left_out(photos: Path, tmp_path: Path) -> None:
    broken = photos / "train" / "dog's" / "7.jpg"
    broken.write_bytes(broken.read_bytes()[:500])
    result = make(photos, tmp_path / "out", "--split", "train")
    assert result.exit_code == 2 and str(broken) in result.stderr
    result = make(photos, tmp_path / "skipped", "--split", "train", "data.bad_images=skip")
    assert result.exit_code == 0, result.stderr
    assert len(opened(tmp_path / "skipped")) == 10


class Photographs:
    """The same in memory."""

    class_names: tuple[str, ...] = ()
    fingerprint = "photographs"

    def __len__(self) -> int:
        return 20

    def read(self, index: int) -> Tensor:
        return torch.from_numpy(np.array(photograph(index))).permute(2, 0, 1)

    def label(self, index: int) -> int:
        return -1

    def name(self, index: int) -> str:
        return str(index)


def test_what_making_smaller_does_is_measured() -> None:
    crop, source = CropSpec(64), Photographs()
    sizes = [measure_change(source, ShardSettings(side, 95), crop) for side in (200, 80, 40)]
    differences = [change.mean_difference for change in sizes]
    assert differences[0] < 1.5 and differences == sorted(differences)  # at 200 only JPEG changes anything
    assert sizes[0].enlarged_after == sizes[0].enlarged_before < sizes[2].enlarged_after == 1
    assert sizes[0].bytes_an_image > sizes[2].bytes_an_image


@pytest.mark.parametrize("shape", [(3, 50, 80), (3, 1, 1), (3, 1000, 9)])
def test_a_small_image_keeps_its_size(shape: tuple[int, int, int]) -> None:
    image = torch.zeros(shape, dtype=torch.uint8)
    with Image.open(io.BytesIO(shrink(image, ShardSettings(64, 95)))) as copy:
        assert (copy.height, copy.width) == shape[1:]
