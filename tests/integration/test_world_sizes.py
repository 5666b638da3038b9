"""A run is a function of its recipe, not of the number of processes or restarts: real engines, real processes."""

from pathlib import Path

import pytest

from tests import processes, tiny_run

pytestmark = pytest.mark.distributed


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of one process that was never stopped, float32."""
    folder = tmp_path_factory.mktemp("unbroken")
    processes.run(tiny_run.pretrain(tiny_run.write_recipe(folder)))
    return folder / "run"


def test_the_loss_falls(unbroken):
    curve = tiny_run.losses(unbroken)
    assert list(curve) == list(range(1, tiny_run.NUM_STEPS + 1))
    assert curve[tiny_run.NUM_STEPS] < 0.8 * curve[1]


def test_two_processes_give_the_same_losses_in_float32(unbroken, tmp_path):
    processes.run(tiny_run.pretrain(tiny_run.write_recipe(tmp_path)), processes=2)
    assert tiny_run.largest_difference(tiny_run.losses(tmp_path / "run"), tiny_run.losses(unbroken)) < 1e-5
    assert tiny_run.backbone_difference(tmp_path / "run", unbroken) < 1e-4


def test_two_processes_give_the_same_losses_in_bf16(tmp_path):
    curves = []
    for number in (1, 2):
        folder = tmp_path / str(number)
        folder.mkdir()
        recipe = tiny_run.write_recipe(
            folder, train={"deepspeed": "student_zero2_bf16"}, teachers={"deepspeed": "teacher_zero3_inference"}
        )
        text = recipe.read_text()
        assert "student_zero2_bf16" in text
        processes.run(tiny_run.pretrain(recipe), processes=number)
        curves.append(tiny_run.losses(folder / "run"))
    assert tiny_run.largest_difference(*curves) < 1e-3


def test_one_two_one_processes_by_resume_equal_the_unbroken_run(unbroken, tmp_path):
    recipe = tiny_run.write_recipe(tmp_path, train={"save_every_steps": 3})
    for number, last_step in ((1, 3), (2, 6), (1, tiny_run.NUM_STEPS)):
        stop = () if last_step == tiny_run.NUM_STEPS else (f"train.stop_after_step={last_step}",)
        processes.run(tiny_run.pretrain(recipe, *stop), processes=number)
    assert tiny_run.largest_difference(tiny_run.losses(tmp_path / "run"), tiny_run.losses(unbroken)) < 1e-6
    # Weights are looser than losses: Adam's first updates turn rounding of small gradients into parts of a step (2e-3).
    assert tiny_run.backbone_difference(tmp_path / "run", unbroken) < 1e-4
    assert not [key for key in tiny_run.checkpoint_keys(tmp_path / "run") if "red" in key or "blue" in key]


def test_a_resume_with_as_many_processes_is_bit_equal(unbroken, tmp_path):
    recipe = tiny_run.write_recipe(tmp_path)
    processes.run(tiny_run.pretrain(recipe, "train.stop_after_step=4"))
    processes.run(tiny_run.pretrain(recipe))
    assert tiny_run.losses(tmp_path / "run") == tiny_run.losses(unbroken)
    assert tiny_run.backbone_difference(tmp_path / "run", unbroken) == 0.0
