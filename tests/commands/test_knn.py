"""The k-NN command on real digits."""

import logging
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from dmt_ds.commands.readouts import evaluate
from dmt_ds.commands.readouts.frozen_encoders import Encoder
from dmt_ds.commands.readouts.knn import run_knn
from dmt_ds.config.evaluation import KnnConfig, LinearConfig
from dmt_ds.config.schema import DataConfig
from dmt_ds.config.teachers import TeacherConfig
from dmt_ds.errors import ConfigError, DataError, WeightsError

DIGITS = DataConfig(source="digits", image_size=8, num_workers=0)
CPU = torch.device("cpu")


class PixelTokens(nn.Module):
    """All pixels in the class token, nothing in the single patch token: [B, 2, 3*H*W]."""

    def forward(self, images: Tensor) -> Tensor:
        """Tokens of uint8 images."""
        pixels = images.flatten(1).float()
        return torch.stack([pixels, torch.ones_like(pixels)], dim=1)


def test_raw_pixels_tell_digits_apart() -> None:
    table = run_knn(DIGITS, KnnConfig(), {"pixels": "pixels"}, CPU)
    assert table.heading.endswith(": 1437 training and 360 test images, 10 classes")
    assert table.rows[0].scores["eval/knn_top1"] > 0.95
    assert table.rows[0].scores["eval/knn_top5"] > 0.99


def test_each_encoder_is_judged_by_its_own_features() -> None:
    encoders = {"pixels": "pixels", "the same as tokens": PixelTokens()}
    by_class = run_knn(DIGITS, KnnConfig(), encoders, CPU)
    assert [row.encoder for row in by_class.rows] == list(encoders)
    assert by_class.rows[0].scores == by_class.rows[1].scores
    by_patches = run_knn(DIGITS, KnnConfig(features="patch_mean"), encoders, CPU)
    assert list(by_patches.rows[0].scores.values()) == list(by_class.rows[0].scores.values())
    assert by_patches.rows[1].scores["eval/knn_patch_top1"] < 0.2  # a constant feature knows nothing


def test_scores_of_class_features_have_the_plain_names() -> None:
    table = run_knn(DIGITS, KnnConfig(), {"pixels": "pixels"}, CPU)
    assert sorted(table.rows[0].scores) == ["eval/knn_top1", "eval/knn_top5"]


def test_patch_features_have_names_of_their_own() -> None:
    table = run_knn(DIGITS, KnnConfig(features="patch_mean"), {"tokens": PixelTokens()}, CPU)
    assert sorted(table.rows[0].scores) == ["eval/knn_patch_top1", "eval/knn_patch_top5"]


def test_the_table_says_what_was_measured() -> None:
    table = run_knn(DIGITS, KnnConfig(k=5), {"pixels": "pixels", "a longer name": PixelTokens()}, CPU)
    lines = str(table).splitlines()
    percent = f"{100 * table.rows[0].scores['eval/knn_top1']:.2f}"
    assert lines[0] == "k-NN (k 5, T 0.07, class features) on digits: 1437 training and 360 test images, 10 classes"
    assert lines[2].split()[:2] == ["pixels", percent]
    assert len({len(line) for line in lines[1:]}) == 1


def judged(judge: str, data: DataConfig, encoders: Mapping[str, Encoder]) -> None:
    if judge == "knn":
        run_knn(data, KnnConfig(), encoders, CPU)
    else:
        evaluate.run(data, KnnConfig(), LinearConfig(), encoders, CPU)


@pytest.mark.parametrize("judge", ["knn", "evaluate"])
@pytest.mark.parametrize(
    ("missing", "told"),
    [
        ("nope", "nope: no such file"),
        (TeacherConfig(source="nope"), "nope: no such file"),
        ("timm:vit_base_patch16_224.maee", "has no such weights; near names: vit_base_patch16_224.mae"),
        ("hf:./nope", "hf:./nope: config.json is unavailable"),
        ("hf:/nope/x", "hf:/nope/x: config.json is unavailable"),
    ],
)
def test_an_encoder_that_is_not_there_is_told_before_another_is_judged(
    judge: str, missing: str | TeacherConfig, told: str
) -> None:
    class NeverAsked(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            raise AssertionError

    encoders: dict[str, Encoder] = {"first": NeverAsked(), "second": missing}
    with pytest.raises((WeightsError, ConfigError), match=told):
        judged(judge, DIGITS, encoders)


@pytest.mark.parametrize("judge", ["knn", "evaluate"])
def test_classes_without_training_images_are_named(judge: str, caplog: pytest.LogCaptureFixture) -> None:
    few, pixels = DIGITS.model_copy(update={"max_train_images": 2}), {"pixels": "pixels"}
    with caplog.at_level(logging.WARNING):
        judged(judge, few, pixels)
    assert len([line for line in caplog.messages if line.startswith("no training image of class '")]) == 1


def test_splits_of_different_classes_are_refused(tmp_path: Path) -> None:
    pictures = pytest.importorskip("PIL.Image")
    for folder in ("train/cat", "train/dog", "val/dog"):
        (tmp_path / folder).mkdir(parents=True)
        pictures.new("RGB", (8, 8)).save(tmp_path / folder / "1.png")
    data = DIGITS.model_copy(update={"source": "folder", "path": str(tmp_path)})
    with pytest.raises(DataError, match="class 0 is 'cat' in the training split and 'dog' in the validation split"):
        run_knn(data, KnnConfig(), {"pixels": "pixels"}, CPU)


@pytest.mark.parametrize("file", ["mae_pretrain.pth", "moco_v3.pth.tar"])
def test_a_weights_file_is_judged_with_the_settings_of_its_section(shared_dir: Path, file: str) -> None:
    section = TeacherConfig(source=str(shared_dir / "fixtures" / "teachers" / file), num_heads=4)
    table = run_knn(DIGITS.model_copy(update={"image_size": 64}), KnnConfig(), {"random": section}, CPU)
    assert 0.3 < table.rows[0].scores["eval/knn_top1"] < 1  # random weights keep some of the picture
