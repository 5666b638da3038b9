"""Pictures show what was put in: read back from the file."""

import math
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from dmt_ds.tracking.pictures import loss_curves, pca_of_tokens


def points(names: tuple[str, ...], count: int) -> list[dict[str, object]]:
    return [{"step": step, "metrics": {name: math.exp(-step / 50) for name in names}} for step in range(count)]


def test_there_is_a_panel_for_each_curve_that_has_points(tmp_path: Path) -> None:
    loss_curves(points(("train/loss",), 100), tmp_path / "one.png")
    loss_curves(points(("train/loss", "train/loss_patch", "train/lr"), 100), tmp_path / "three.png", title="run")
    one, three = (Image.open(tmp_path / name).size for name in ("one.png", "three.png"))
    assert three[0] == 3 * one[0] and three[1] == one[1]


def test_no_points_yet_is_no_error(tmp_path: Path) -> None:
    loss_curves([], tmp_path / "new" / "none.png")
    assert (tmp_path / "new" / "none.png").exists()


def test_of_a_diverged_run_the_finite_losses_are_drawn(tmp_path: Path) -> None:
    values = (1.0, 0.5, math.inf, math.nan)
    bad = [{"step": step, "metrics": {"train/loss": value}} for step, value in enumerate(values)]
    loss_curves(bad, tmp_path / "bad.png")
    loss_curves(bad[:2], tmp_path / "finite.png")
    assert (tmp_path / "bad.png").read_bytes() == (tmp_path / "finite.png").read_bytes()


def test_regions_of_equal_tokens_have_one_colour_and_columns_that_agree_look_alike(tmp_path: Path) -> None:
    torch.manual_seed(0)
    region = torch.arange(64).reshape(8, 8) // 32  # upper and lower half
    tokens = torch.randn(2, 12)[region.flatten()].expand(2, 64, 12) + 1e-3 * torch.randn(2, 64, 12)
    tokens = torch.cat([torch.full((2, 1, 12), 100.0), tokens], dim=1)  # the class token is not drawn
    turned = tokens @ torch.linalg.qr(torch.randn(12, 12)).Q  # same content in another basis
    images = torch.zeros(2, 3, 16, 16, dtype=torch.uint8)
    pca_of_tokens(images, {"teacher": tokens, "student": turned}, tmp_path / "pca.png")
    pixels = np.asarray(Image.open(tmp_path / "pca.png").convert("RGB")).astype(float)
    width, height = pixels.shape[1] // 3, pixels.shape[0] // 2
    upper, lower = (pixels[int(height * at), :, :] for at in (0.35, 0.85))
    teacher, student = slice(width + 40, 2 * width - 40), slice(2 * width + 40, 3 * width - 40)
    assert abs(upper[teacher].mean(0) - lower[teacher].mean(0)).max() > 100
    assert abs(upper[teacher, 0].mean() - upper[student, 0].mean()) < 30


def test_tokens_of_fewer_channels_than_colours_and_dead_ones_are_drawn(tmp_path: Path) -> None:
    images = torch.zeros(1, 3, 16, 16, dtype=torch.uint8)
    named = {"two channels": torch.randn(1, 17, 2), "dead": torch.ones(1, 17, 8)}
    pca_of_tokens(images, named, tmp_path / "pca.png")
    assert (tmp_path / "pca.png").exists()
