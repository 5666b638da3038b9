"""Each DeepSpeed JSON that is shipped trains, is judged on the way, resumes and publishes on two processes."""

import pytest

from tests import processes, tiny_run
from tests.integration.knn_points import knn_of_published, knn_points

pytestmark = pytest.mark.distributed


@pytest.mark.parametrize(
    ("student", "teachers"),
    [
        ("student_zero1_bf16", "teacher_zero3_inference"),
        ("student_zero2_bf16", "teacher_zero3_cpu_offload"),
        ("student_zero3_bf16", "teacher_zero3_inference"),
    ],
)
def test_a_run_in_two_slices_finishes_with_an_encoder(tmp_path, student, teachers):
    train = {"deepspeed": student, "steps": 4, "eval_every_epochs": 3 * 32 / 1437}
    recipe = tiny_run.write_recipe(tmp_path, train=train, teachers={"deepspeed": teachers})
    processes.run(tiny_run.pretrain(recipe, "train.stop_after_step=2"), processes=2)
    processes.run(tiny_run.pretrain(recipe), processes=2)
    curve = tiny_run.losses(tmp_path / "run")
    assert sorted(curve) == [1, 2, 3, 4] and curve[4] < curve[1]
    from dmt_ds.models.encoders import load_encoder

    shape = load_encoder(str(tmp_path / "run"), 16).record.shape
    assert (shape.embed_dim, shape.depth) == (24, 2)
    judged = knn_points(tmp_path / "run")
    assert sorted(judged) == [0, 3, 4]
    assert judged[4] == knn_of_published(tmp_path / "run")
