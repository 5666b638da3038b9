"""What a checkpoint says of its run is held against what the run is now."""

from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from dmt_ds.commands.training.resume import in_todays_settings, refuse_another_run
from dmt_ds.config.load import config_from_yaml, flatten_tree, load_config
from dmt_ds.config.resume import differences
from dmt_ds.config.schema import RunConfig
from dmt_ds.engine.checkpoints.checkpoint import Checkpoint, RunState
from dmt_ds.errors import CheckpointError


def test_settings_that_are_newer_than_a_checkpoint_count_with_their_defaults():
    now = RunConfig(task="mae").model_dump(mode="json")
    saved = {key: value for key, value in now.items() if key not in ("tinymim", "classify")}
    saved["optim"] = {key: value for key, value in saved["optim"].items() if key != "clip_grad_norm"}
    assert differences(flatten_tree(in_todays_settings(saved)), flatten_tree(now)) == []
    changed = RunConfig.model_validate(now | {"optim": {"clip_grad_norm": 1.0}}).model_dump(mode="json")
    found = differences(flatten_tree(in_todays_settings(saved)), flatten_tree(changed))
    assert found == ["optim.clip_grad_norm: 0.0 -> 1.0"]


@pytest.mark.parametrize(
    ("recipe", "init_from", "trained"),
    [
        ("small_finetune", "x", 0.02),
        ("small_finetune", None, 0.02),
        ("small_linear", "x", 0.01),
        ("deit_tiny", None, 0.02),
    ],
)
def test_a_head_that_is_older_than_its_setting_is_what_it_was(recipe, init_from, trained):
    given = [] if init_from is None else [f"student.init_from={init_from}"]
    now = load_config(recipe, given).model_dump(mode="json")
    saved = {**now, "classify": {key: value for key, value in now["classify"].items() if key != "head_std"}}
    for then in (in_todays_settings(saved), config_from_yaml(yaml.safe_dump(saved)).model_dump(mode="json")):
        assert differences(flatten_tree(then), flatten_tree(now)) == []
    other = now | {"classify": now["classify"] | {"head_std": 0.5}}
    found = differences(flatten_tree(in_todays_settings(saved)), flatten_tree(other))
    assert found == [f"classify.head_std: {trained} -> 0.5"]


def test_a_fine_tuning_that_is_older_than_the_small_head_is_told_of_it():
    now = load_config("finetune_vit_base", ["student.init_from=x"]).model_dump(mode="json")
    saved = {**now, "classify": {key: value for key, value in now["classify"].items() if key != "head_std"}}
    found = differences(flatten_tree(in_todays_settings(saved)), flatten_tree(now))
    assert found == ["classify.head_std: 0.02 -> 2e-05"]


def test_a_setting_that_is_gone_is_named():
    now = RunConfig(task="mae").model_dump(mode="json")
    found = differences(flatten_tree(in_todays_settings({**now, "magic": 3})), flatten_tree(now))
    assert found == ["magic: 3 -> not set"]


SAVED = {"torch": "2.8.0", "timm": "1.0.20", "pillow": "11.0"}
NOW = {"torch": "2.9.1", "timm": "1.0.20", "pillow": "11.0", "transformers": "4.57"}


def resume(saved: dict[str, str], now: dict[str, str], **train: object) -> list[str]:
    config = RunConfig.model_validate({"task": "mae", "train": train}).model_dump(mode="json")
    state = RunState(5, 40, 1, 2, "fp32", config)
    return refuse_another_run(
        Checkpoint(Path("step00000005"), replace(state, libraries=saved)), replace(state, libraries=now)
    )


def test_other_libraries_are_told_in_one_line():
    (line,) = resume(SAVED, NOW)
    assert line.endswith("losses may differ because of libraries: torch 2.8.0 -> 2.9.1, transformers none -> 4.57")


@pytest.mark.parametrize("saved", [NOW, {}])
def test_the_same_libraries_and_a_checkpoint_that_kept_none_are_no_word_worth(saved):
    assert resume(saved, NOW, deterministic=True) == []


def test_a_run_that_asks_for_the_same_bits_refuses_other_libraries_unless_they_are_accepted():
    with pytest.raises(CheckpointError, match=r"accept_changes=\[code\][^\n]*\nlibraries: torch 2.8.0 -> 2.9.1"):
        resume(SAVED, NOW, deterministic=True)
    (line,) = resume(SAVED, NOW, deterministic=True, accept_changes=["code"])
    assert "accepted difference: libraries: torch 2.8.0 -> 2.9.1" in line


def test_other_images_of_the_same_data_set_are_told_apart():
    state = RunState(5, 40, 1, 2, "fp32", {}, data_fingerprint="31b6fd311a3a0f52[200 spaced]")
    with pytest.raises(CheckpointError) as error:
        refuse_another_run(Checkpoint(Path("step5"), state), replace(state, data_fingerprint="31b6fd311a3a0f52"))
    assert str(error.value).endswith("data_fingerprint: 31b6fd311a3a[200 spaced] -> 31b6fd311a3a")


@pytest.mark.parametrize("code", [{"a.py": "1"}, {"a.py": "1", "b.py": "3"}, {"a.py": "1", "b.py": "2", "c.py": "4"}])
def test_a_file_of_code_that_is_gone_changed_or_new_is_told(code):
    state = RunState(5, 40, 1, 2, "fp32", {}, code={"a.py": "1", "b.py": "2"})
    name = "c.py" if "c.py" in code else "b.py"
    with pytest.raises(CheckpointError, match=rf"accept_changes=\[code\][^\n]*\ncode: {name} of dmt_ds differ"):
        refuse_another_run(Checkpoint(Path("step5"), state), replace(state, code=code))
