"""A hundred steps with all that makes training fast are a hundred steps with none of it, on two real ranks."""

from pathlib import Path

import pytest

from tests import processes, tiny_run

pytestmark = [pytest.mark.distributed, pytest.mark.slow]

STEPS = 100


def curve(folder: Path, way: str, *overrides: str, ranks: int = 2, **variables: str) -> tuple[dict[int, float], str]:
    """Step -> loss, and what the run wrote."""
    folder.mkdir()
    recipe = tiny_run.write_recipe(
        folder,
        data={"crop_scale": [0.3, 1.0], "horizontal_flip": 0.5},
        optim={"base_lr": 8e-3, "warmup_steps": 10, "clip_grad_norm": 0.0},
        train={"steps": STEPS, "global_batch_size": 16, "micro_batch_size": 4},
    )
    arguments = ["-m", "tests.integration.one_path", way, str(recipe), *overrides]
    done = processes.run(arguments, processes=ranks, **variables)
    return tiny_run.losses(folder / "run"), done.stdout


@pytest.mark.parametrize(("precision", "deferred", "tolerance"), [("fp32", False, 1e-5), ("bf16", True, 1e-3)])
def test_losses_of_a_hundred_steps_are_those_of_the_plain_path(precision, deferred, tolerance, tmp_path):
    json = f"train.deepspeed=student_zero2_{precision}"
    fast, told = curve(tmp_path / "fast", "fast", json)
    plain, told_plain = curve(tmp_path / "plain", "plain", json)
    assert f"DEFERRED [{deferred}]" in told and "DEFERRED [False]" in told_plain
    assert len(plain) == STEPS and plain[STEPS] < 0.8 * plain[1]
    assert tiny_run.largest_difference(fast, plain) < tolerance
