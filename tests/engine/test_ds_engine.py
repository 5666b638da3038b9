"""A ViT-B teacher cut over two real processes, beside a student engine in the same processes."""

import json

import pytest

from tests import processes
from tests.engine.sharded_teacher import TIMEOUT_SECONDS


@pytest.fixture(scope="module")
def facts() -> dict[str, object]:
    done = processes.run(["-m", "tests.engine.sharded_teacher"], processes=2)
    line = next(line for line in done.stdout.splitlines() if line.startswith("FACTS "))
    return json.loads(line.removeprefix("FACTS "))


pytestmark = pytest.mark.distributed


def test_each_rank_holds_half_of_the_teachers_bytes(facts):
    assert facts["full"] == facts["whole"]
    assert facts["held"] == [facts["full"] / 2] * 2


def test_a_sharded_teachers_tokens_equal_the_whole_ones_bit_for_bit(facts):
    assert facts["difference"] == 0.0


def test_a_sharded_relation_teacher_gives_the_whole_ones_queries_keys_and_values_bit_for_bit(facts):
    assert facts["relation_shape"] == [1, 3, 3, 197, 64]
    assert facts["relation_difference"] == 0.0 < facts["relation_size"]
    assert facts["relation_held_share"] == pytest.approx(0.5, abs=1e-3)


def test_less_than_a_quarter_of_a_vit_b_is_gathered_at_a_time(facts):
    assert 0 < facts["peak_share"] < 0.25


def test_the_process_keeps_torchs_linear_and_the_student_is_not_cut(facts):
    assert facts["linear_untouched"] and not facts["student_has_ds_id"]


def test_teacher_weights_are_true_bf16(facts):
    assert facts["dtype"] == "torch.bfloat16"


def test_deepspeed_is_imported_without_mlflow_which_still_can_be():
    program = (
        "import sys; from dmt_ds.engine.deepspeed import ds_engine; ds_engine.library(); "
        "print('mlflow' in sys.modules); import mlflow; print(mlflow.__name__)"
    )
    assert processes.run(["-c", program]).stdout.split() == ["False", "mlflow"]


def test_compiled_teachers_cut_or_whole_give_the_plain_tokens_bit_for_bit(facts):
    assert facts["compiled_differences"] == [0.0, 0.0, 0.0, 0.0]


def test_equal_blocks_share_compiled_code_and_so_do_equal_whole_teachers_and_no_hook_breaks_it(facts):
    assert facts["compiled_breaks"] == 0
    assert facts["compiled_graphs"] == 2  # a block that is cut, and a whole teacher


def test_teachers_that_add_in_their_products_give_the_plain_tokens_cut_or_whole(facts):
    assert max(facts["summing_differences"]) < 2e-4  # of tokens near 1, in float32
    assert facts["summing_equal"]
    assert facts["summing_held_share"] == pytest.approx(0.5, abs=1e-3)


def test_the_collectives_of_every_group_wait_as_long_as_those_of_the_group_of_all(facts):
    assert len(facts["group_timeouts"]) >= 3, "of all, DeepSpeed's copy of it, a node's"
    assert set(facts["group_timeouts"]) == {TIMEOUT_SECONDS}
