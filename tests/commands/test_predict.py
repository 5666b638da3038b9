"""`dmt-ds predict` on real files: labels as JSON and as a sheet, features as arrays, whatever files are called."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from click.testing import CliRunner, Result
from PIL import Image

from dmt_ds.cli import main
from dmt_ds.commands.export import run as export
from dmt_ds.config.schema import DataConfig
from dmt_ds.config.section import IMAGENET_MEAN, IMAGENET_STD
from dmt_ds.data.augment import normalize
from dmt_ds.data.files import find_images
from dmt_ds.data.views import center_crop
from dmt_ds.downstream.classifier import Classifier
from dmt_ds.errors import DataError
from dmt_ds.models.backbone_folder import save_backbone
from dmt_ds.models.classifier_folder import save_classifier
from dmt_ds.models.vit import build_vit
from tests.models import tiny

CLASSES = ("tench", "a $x$ \n label", "Löffel")
CRAFTED = ('it\'s "quoted".png', "two\nlines.png", "$\\frac$.png", os.fsdecode(b"latin-\xe9.png"), "{a}: [b].png")


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a run with labels leaves, without its settings."""
    folder = tmp_path_factory.mktemp("run")
    torch.manual_seed(0)
    module = Classifier(build_vit(tiny.section(), tiny.IMAGE_SIZE), len(CLASSES), "class").eval()
    tiny.randomise(module)
    save_classifier(
        folder / "classifier", module.timm_state({}), tiny.section(), DataConfig(image_size=tiny.IMAGE_SIZE), "class",
        CLASSES, norms_the_mean=module.norms_the_mean, mean=IMAGENET_MEAN, std=IMAGENET_STD, provenance={},
    )  # fmt: skip
    save_backbone(folder / "backbone", module.vit.state_dict(), tiny.section(), tiny.IMAGE_SIZE, provenance={})
    return folder


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nine images in nested folders, two of them unreadable, beside what is no image."""
    root = tmp_path_factory.mktemp("photos")
    generator = np.random.default_rng(0)
    for name in ("b.jpg", "a.jpg", "nested/deep/c.png", *CRAFTED):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 256, (40, 50, 3), dtype=np.uint8)).save(root / name)
    (root / "broken.jpg").write_bytes((root / "a.jpg").read_bytes()[:40])
    (root / "nested" / "empty.png").write_bytes(b"")
    (root / "notes.txt").write_text("no image")
    (root / ".hidden").mkdir()
    (root / ".hidden" / "x.png").write_bytes(b"")
    return root


def call(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["predict", *map(str, arguments)])


def prepared(path: Path) -> torch.Tensor:
    pixels = torch.from_numpy(np.array(Image.open(path).convert("RGB"))).permute(2, 0, 1)
    return normalize(center_crop(pixels, tiny.IMAGE_SIZE)[None], IMAGENET_MEAN, IMAGENET_STD)


def test_a_classifier_tells_labels_with_the_probabilities_that_plain_timm_gives(run_folder, photos, tmp_path):
    result = call("-e", run_folder, photos, "-o", tmp_path / "out", "--batch-size", 3, "--top-k", 2)
    assert result.exit_code == 0, result.output
    told = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert list(told["images"]) == [path for path in find_images([str(photos)]) if path not in told["unreadable"]]
    assert len(told["images"]) == 3 + len(CRAFTED)
    model = timm.create_model(f"local-dir:{run_folder / 'classifier'}", pretrained=True).eval()
    for name, answers in told["images"].items():
        if name.endswith(".jpg"):
            continue  # decoders of JPEG differ by rounding
        expected = model(prepared(Path(name))).softmax(dim=1)[0].detach()
        values, numbers = expected.topk(2)
        assert [answer["label"] for answer in answers] == [CLASSES[number] for number in numbers]
        assert [answer["probability"] for answer in answers] == pytest.approx(values.tolist(), abs=1e-5)
    with Image.open(tmp_path / "out" / "contact_sheet.png") as sheet:
        assert sheet.size[0] > 300 and len(set(sheet.convert("L").tobytes())) > 50


def test_what_can_not_be_read_is_named_and_left_out(run_folder, photos, tmp_path, caplog):
    call("-e", run_folder, photos, "-o", tmp_path / "out")
    told = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert sorted(told["unreadable"]) == sorted([str(photos / "broken.jpg"), str(photos / "nested" / "empty.png")])
    assert "empty (0 bytes)" in told["unreadable"][str(photos / "nested" / "empty.png")]
    assert not any("bad_images" in reason for reason in told["unreadable"].values()), "a setting of training"
    assert "broken.jpg" in caplog.text and "empty.png" in caplog.text


def test_an_encoder_gives_its_class_token_and_mean_patch_token(run_folder, photos, tmp_path):
    assert call("-e", run_folder / "backbone", photos, "-o", tmp_path / "out").exit_code == 0
    with np.load(tmp_path / "out" / "features.npz") as found:
        names, class_token, patch_mean = (found[key] for key in ("names", "class_token", "patch_mean"))
    assert class_token.shape == patch_mean.shape == (3 + len(CRAFTED), tiny.WIDTH)
    assert class_token.dtype == np.float32
    model = timm.create_model(f"local-dir:{run_folder / 'backbone'}", pretrained=True).eval()
    for name, first, mean in zip(names, class_token, patch_mean, strict=True):
        if not name.endswith(".jpg"):
            tokens = model.forward_features(prepared(Path(str(name))))[0].detach()
            np.testing.assert_allclose(first, tokens[0], atol=1e-4)
            np.testing.assert_allclose(mean, tokens[1:].mean(dim=0), atol=1e-4)


def test_an_exported_folder_answers_as_the_run_and_batches_don_t_matter(run_folder, photos, tmp_path):
    export(str(run_folder), ["timm"], tmp_path)
    sources = {"run": (run_folder, 64), "exported": (tmp_path / "timm", 2)}
    for name, (source, size) in sources.items():
        assert call("-e", source, photos, "-o", tmp_path / name, "--batch-size", size).exit_code == 0
    told = [json.loads((tmp_path / name / "predictions.json").read_text())["images"] for name in sources]
    assert list(told[0]) == list(told[1])
    for name in told[0]:
        for ours, theirs in zip(told[0][name], told[1][name], strict=True):
            assert ours["label"] == theirs["label"]
            assert ours["probability"] == pytest.approx(theirs["probability"], abs=2e-6)


def test_nothing_is_overwritten(run_folder, photos, tmp_path):
    assert call("-e", run_folder, photos, "-o", tmp_path).exit_code == 0
    result = call("-e", run_folder, photos, "-o", tmp_path)
    assert result.exit_code == 2 and "predictions.json: is there already" in result.stderr


def test_options_that_a_model_has_no_use_for_are_refused(run_folder, photos, tmp_path):
    for source, option, told in (
        (run_folder, "--score-threshold", "not used for a classifier"),
        (run_folder / "backbone", "--top-k", "not used for an encoder"),
    ):
        result = call("-e", source, photos, "-o", tmp_path / "out", option, 1)
        assert result.exit_code == 2 and f"{option}: {told}" in result.stderr
        assert not (tmp_path / "out").exists()


def test_nothing_readable_or_nothing_there_is_an_error(run_folder, photos, tmp_path):
    for paths, reason in (
        ([photos / "broken.jpg"], "none of 1 images can be read, the first one: "),
        ([tmp_path / "nothing"], "nothing: no such file or folder"),
        ([_empty(tmp_path)], "there is no image"),
    ):
        result = call("-e", run_folder, *paths, "-o", tmp_path / "out")
        assert result.exit_code == 2 and reason in result.stderr
        assert not (tmp_path / "out").exists()


def test_a_transformers_classifier_is_refused_with_what_to_name(run_folder, photos, tmp_path):
    export(str(run_folder), ["transformers"], tmp_path)
    result = call("-e", tmp_path / "transformers", photos, "-o", tmp_path / "out")
    assert result.exit_code == 2 and "from a `--format timm` export" in result.stderr


def test_files_come_in_order_once_and_links_that_turn_back_end(photos, tmp_path):
    for name in ("b/2.png", "b/1.JPG", "a/3.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "a" / "back").symlink_to(tmp_path)
    names = [str(tmp_path / name) for name in ("a/3.png", "b/1.JPG", "b/2.png")]
    assert find_images([str(tmp_path), names[1]]) == names
    with pytest.raises(DataError, match="no such file"):
        find_images([str(tmp_path / "c")])


def _empty(folder: Path) -> Path:
    (folder / "empty").mkdir(exist_ok=True)
    return folder / "empty"
