"""`dmt-ds predict` of a detector: ids, pictures of the photo's own size, its own options, nothing by halves."""

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from dmt_ds.cli import main
from dmt_ds.commands.predictions import predict_objects
from dmt_ds.commands.predictions.predict_objects import image_ids
from dmt_ds.config.schema import DataConfig
from dmt_ds.config.section import IMAGENET_MEAN, IMAGENET_STD
from dmt_ds.data.coco import Category
from dmt_ds.downstream.detection.folder import save_detector
from tests.downstream.detection import tiny
from tests.tiny_coco import needs_pycocotools, write_split


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with a detector of random weights, and three photos."""
    folder = tmp_path_factory.mktemp("detected")
    detector = tiny.detector(eval_short_side=64)
    save_detector(
        folder / "detector", detector.state_dict(), tiny.STUDENT, detector.section,
        DataConfig(image_size=tiny.IMAGE_SIZE), [Category(3, "red"), Category(7, "blue")],
        mean=IMAGENET_MEAN, std=IMAGENET_STD, provenance={},
    )  # fmt: skip
    write_split(folder, "photos", 3)
    return folder


def predict(folder: Path, out: Path, *options: object) -> Result:
    words = ["predict", "-e", folder, folder / "photos", "-o", out, *options]
    return CliRunner().invoke(main, [str(word) for word in words])


def pictures(folder: Path, out: Path) -> list[tuple[np.ndarray, np.ndarray]]:
    """Of each photo its own pixels and those of its picture."""
    told = json.loads((out / "images.json").read_text())["images"]
    paths = [(image["file_name"], out / image["picture"]) for image in told]
    return [(np.asarray(Image.open(photo)), np.asarray(Image.open(picture))) for photo, picture in paths]


@needs_pycocotools
def test_objects_of_the_score_that_is_asked_for_are_drawn_at_the_photos_own_size(folder: Path, tmp_path: Path) -> None:
    for score in ("0", "1"):
        assert predict(folder, tmp_path / score, "--score-threshold", score).exit_code == 0
    assert all(photo.shape == picture.shape for photo, picture in pictures(folder, tmp_path / "0"))
    assert all((photo != picture).any() for photo, picture in pictures(folder, tmp_path / "0"))
    assert all((photo == picture).all() for photo, picture in pictures(folder, tmp_path / "1"))
    results = [(tmp_path / score / "predictions.json").read_text() for score in ("0", "1")]
    assert results[0] == results[1] and len(json.loads(results[0])) > 3  # which leaves none of them out


@pytest.mark.parametrize("option", ["--top-k", "--batch-size"])
def test_an_option_that_a_detector_has_no_use_for_is_refused(folder: Path, tmp_path: Path, option: str) -> None:
    result = predict(folder, tmp_path / "out", option, 3)
    assert result.exit_code == 2 and f"{option}: not used for a detector; leave it out" in result.stderr
    assert not (tmp_path / "out").exists()


@needs_pycocotools
def test_a_prediction_that_was_stopped_leaves_nothing_and_is_started_again(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop_at_the_second(answered: predict_objects._Answered, *rest: object) -> None:
        if answered.image_id == 1:
            raise KeyboardInterrupt

    (tmp_path / "there").mkdir()
    (tmp_path / "there/notes.txt").write_text("kept")
    with monkeypatch.context() as patch:
        patch.setattr(predict_objects, "_draw", stop_at_the_second)
        assert predict(folder, tmp_path / "new").exit_code != 0
        assert predict(folder, tmp_path / "there").exit_code != 0
    assert [path.name for path in tmp_path.rglob("*")] == ["there", "notes.txt"]
    for name in ("new", "there"):
        assert predict(folder, tmp_path / name).exit_code == 0
    assert {path.name for path in (tmp_path / "new").iterdir()} == set(predict_objects.WRITTEN)
    assert "is there already" in predict(folder, tmp_path / "new").stderr


@pytest.mark.parametrize(
    ("files", "ids"),
    [
        (["val/000000000139.jpg", "val/000000000285.jpg"], [139, 285]),  # as COCO's are called
        (["a.jpg", "b.jpg", "7.jpg"], [1, 2, 3]),
        (["x/1.jpg", "y/01.jpg"], [1, 2]),  # the same number twice
        (["²3.jpg"], [1]),
    ],
)
def test_numbers_that_all_images_are_called_are_their_ids(files: list[str], ids: list[int]) -> None:
    assert image_ids(files) == ids
