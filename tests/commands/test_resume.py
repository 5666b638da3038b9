"""What a checkpoint says of its run is held against what the run is now."""

from dmt_ds.commands.resume import in_todays_settings
from dmt_ds.config.load import flatten_tree
from dmt_ds.config.resume import differences
from dmt_ds.config.schema import RunConfig


def test_settings_that_are_newer_than_a_checkpoint_count_with_their_defaults():
    now = RunConfig(task="mae").model_dump(mode="json")
    saved = {key: value for key, value in now.items() if key not in ("tinymim", "classify")}
    saved["optim"] = {key: value for key, value in saved["optim"].items() if key != "clip_grad_norm"}
    assert differences(flatten_tree(in_todays_settings(saved)), flatten_tree(now)) == []
    changed = RunConfig.model_validate(now | {"optim": {"clip_grad_norm": 1.0}}).model_dump(mode="json")
    found = differences(flatten_tree(in_todays_settings(saved)), flatten_tree(changed))
    assert found == ["optim.clip_grad_norm: 0.0 -> 1.0"]


def test_a_setting_that_is_gone_is_named():
    now = RunConfig(task="mae").model_dump(mode="json")
    found = differences(flatten_tree(in_todays_settings({**now, "magic": 3})), flatten_tree(now))
    assert found == ["magic: 3 -> not set"]
