"""The diagnostics' picture shows what a run measured: panels by its metrics, curves read back from the pixels."""

from itertools import combinations
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from dmt_ds.distill.diagnostics import TeacherDiagnostics
from dmt_ds.tracking.diagnostic_pictures import diagnostic_curves, panels_of


def measured(teachers: dict[str, int], targets: tuple[str, ...] = ("fused",)) -> dict[str, float]:
    """What the diagnostics give for teachers of these widths."""
    generator = torch.Generator().manual_seed(0)
    tokens = {name: torch.randn(4, 5, width, generator=generator) for name, width in teachers.items()}
    target = {name: torch.randn(4, 5, 8, generator=generator) for name in targets}
    diagnostics = TeacherDiagnostics()
    metrics = diagnostics(tokens, target) | diagnostics.of_student(target, target)
    return {name: value.item() for name, value in metrics.items()}


def curves(metrics: dict[str, float]) -> list[int]:
    """Number of curves in each panel."""
    return [len(panel.curves) for panel in panels_of(set(metrics))]


def test_three_teachers_of_one_width_fill_six_panels() -> None:
    metrics = measured({"mae": 8, "moco_v3": 8, "ibot": 8})
    assert curves(metrics) == [6, 3, 3, 3, 2, 1]
    shown = {curve.metric for panel in panels_of(set(metrics)) for curve in panel.curves}
    assert shown <= metrics.keys()
    pairs = {
        f"teachers/{kind}/{a}-{b}"
        for kind in ("agreement_centred", "cka")
        for a, b in combinations(("mae", "moco_v3", "ibot"), 2)
    }
    assert pairs | {"teachers/mae/share", "teachers/mae/share_centred", "teachers/fused/student_cosine"} <= shown


def test_teachers_of_different_widths_have_no_shares_and_no_cosines() -> None:
    assert curves(measured({"a": 8, "b": 6}, targets=("a", "b"))) == [0, 0, 1, 2, 4, 2]


def test_a_teacher_has_one_colour_in_all_panels_and_is_named_once_in_each() -> None:
    shares, _, _, moving, *_ = panels_of(set(measured({"mae": 8, "ibot": 8})))
    for panel in (shares, moving):
        assert [curve.label for curve in panel.curves if curve.label] == ["ibot", "mae"]
    colours = {curve.metric.split("/")[1]: curve.colour for curve in moving.curves}
    assert len(set(colours.values())) == 2
    assert all(curve.colour == colours[curve.metric.split("/")[1]] for curve in shares.curves)


def test_a_run_without_diagnostics_leaves_no_picture(tmp_path: Path) -> None:
    assert not diagnostic_curves([{"step": 1, "metrics": {"train/loss": 2.0}}], tmp_path / "none.png")
    assert not (tmp_path / "none.png").exists()


def test_a_student_that_nears_its_target_is_a_rising_curve(tmp_path: Path) -> None:
    points = [
        {"step": step, "metrics": {"teachers/fused/tfd_entropy": 0.5, "teachers/fused/student_cosine": step / 100}}
        for step in range(101)
    ]
    assert diagnostic_curves(points, tmp_path / "two.png")
    pixels = np.asarray(Image.open(tmp_path / "two.png").convert("RGB")).astype(int)
    height, width, _ = pixels.shape
    plot = pixels[int(0.15 * height) : int(0.7 * height), width // 2 :]  # of the student's panel, without its title
    curve = np.argwhere(np.abs(plot - (0x1F, 0x29, 0x33)).sum(axis=2) < 30)  # rows and columns in ink
    first, last = (curve[curve[:, 1] == column, 0].mean() for column in (curve[:, 1].min(), curve[:, 1].max()))
    assert first - last > 0.4 * height  # rises over most of the panel


def test_a_diverged_run_can_still_be_drawn(tmp_path: Path) -> None:
    metrics = measured({"a": 8, "b": 8})
    points = [
        {"step": 1, "metrics": metrics},
        {"step": 2, "metrics": dict.fromkeys(metrics, float("nan"))},
        {"step": 3, "metrics": dict.fromkeys(metrics, float("inf"))},
    ]
    assert diagnostic_curves(points, tmp_path / "bad.png", "run")
