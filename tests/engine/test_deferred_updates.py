"""Unsound updates that the device leaves out and the host hears of a step later: the guarantees stay."""

import json
from typing import Any

import pytest

from tests import processes

pytestmark = pytest.mark.distributed


@pytest.fixture(scope="module")
def facts() -> dict[str, list[dict[str, Any]]]:
    done = processes.run(["-m", "tests.engine.deferred_updates"], processes=2)
    line = next(line for line in done.stdout.splitlines() if line.startswith("FACTS "))
    return json.loads(line.removeprefix("FACTS "))


def test_a_sound_run_is_that_of_deepspeeds_own_check(facts):
    plain, deferred = facts["at once"][0], facts["deferred"][0]
    assert (plain["skips_on_device"], deferred["skips_on_device"]) == (False, True)
    assert plain["losses"].keys() == deferred["losses"].keys() == {"1", "5", "8"}
    assert deferred["losses"] == pytest.approx(plain["losses"], rel=1e-3)
    assert deferred["norms"] == pytest.approx(plain["norms"], rel=1e-3)
    assert deferred["norms"]["1"] == pytest.approx(plain["norms"]["1"], rel=1e-6)  # of the same gradients
    assert deferred["outcome"] == "FINISHED" and deferred["saved"] == ["step00000008"]


def test_the_loss_that_is_logged_is_the_mean_of_its_update_over_micro_steps_and_ranks(facts):
    for step, logged in facts["at once"][0]["losses"].items():
        of_ranks = [rank["own_losses"][int(step) - 1] for rank in facts["at once"]]
        assert of_ranks[0] != of_ranks[1]
        assert logged == pytest.approx(sum(map(sum, of_ranks)) / sum(map(len, of_ranks)), rel=1e-6)


@pytest.mark.parametrize(("case", "last"), [("signal", 4), ("signal on a log step", 5)])
def test_all_ranks_stop_at_the_same_step_saved(facts, case, last):
    for rank in facts[case]:
        assert (rank["outcome"], rank["steps_done"], rank["saved"]) == ("STOPPED", last, [f"step{last:08d}"])


@pytest.mark.parametrize("case", ["unsound loss", "unsound gradient"])
def test_an_unsound_update_is_not_made_and_the_run_ends_a_step_later_on_all_ranks(facts, case):
    sound = facts["deferred"][0]["weights"]
    for rank in facts[case]:
        assert rank["outcome"] == "FAILED" and rank["saved"] == []
        assert len(rank["weights"]) == 4  # the fourth step's forward ran
        assert rank["weights"][:3] == sound[:3]
        assert rank["weights"][3] == rank["weights"][2] != sound[3]  # left out, so the weights stood still
    assert facts[case][0]["error"].startswith("step 3: the " + case.removeprefix("unsound ") + " is not finite")
    assert set(facts[case][0]["losses"]) == {"1"}


def test_at_stage_0_where_deepspeed_looks_at_no_gradient_an_unsound_one_is_in_no_weight(facts):
    for rank in facts["unsound gradient at stage 0"]:
        assert rank["outcome"] == "FAILED" and rank["saved"] == []
        assert rank["error"].startswith("step 3: the gradient is not finite, though the loss is")
        assert len(rank["weights"]) == 3 and rank["last_weights"] == rank["weights"][2]


@pytest.mark.parametrize("shown", ["saved", "stopped"])
def test_what_an_unsound_gradient_leaves_where_a_json_turns_deepspeeds_look_off_is_never_saved(facts, shown):
    for rank in facts[f"unchecked, {shown}"]:
        assert rank["outcome"] == "FAILED" and rank["saved"] == []
        assert rank["error"].startswith("step 3: the gradient is not finite, though the loss is")


def test_the_message_names_the_rank_and_the_images_of_the_unsound_step(facts):
    assert "on rank 1;" in facts["unsound loss"][0]["error"]
    assert "rank 1: image 4, image 5, ..." in facts["unsound loss"][0]["error"]  # two micro-steps a step


def test_nothing_is_saved_before_its_update_is_known_to_be_sound(facts):
    for rank in facts["unsound loss before a save"]:
        assert rank["outcome"] == "FAILED" and rank["saved"] == []
        assert len(rank["weights"]) == 3  # it was read in its own step
