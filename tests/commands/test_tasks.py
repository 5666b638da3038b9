"""From a recipe to tasks."""

from pathlib import Path

import pytest
import torch

from dmt_ds.commands.tasks import build_tasks
from dmt_ds.config.load import load_config
from dmt_ds.config.members import member_runs
from dmt_ds.errors import ConfigError
from tests import tiny_run

FAMILY = {"slim": {}, "wide": {"student": {"embed_dim": 48}}}


@pytest.mark.parametrize("task", ["dmt", "tinymim"])
def test_a_member_starts_from_the_weights_that_it_has_alone(tmp_path: Path, task: str) -> None:
    config = load_config(tiny_run.write_recipe(tmp_path, family=FAMILY, task=task))
    members = member_runs(config)
    together = build_tasks(list(members.values()), torch.device("cpu"))
    for built, member in zip(together, members.values(), strict=True):
        (alone,) = build_tasks([member], torch.device("cpu"))
        state, expected = built.task.module.state_dict(), alone.task.module.state_dict()
        assert state.keys() == expected.keys()
        assert all(torch.equal(state[key], expected[key]) for key in expected)


def test_a_member_that_cannot_be_built_is_named(tmp_path: Path) -> None:
    shape = {"arch": "vit_tinny", "embed_dim": 24, "depth": 1, "num_heads": 2}
    family = {"slim": {}, "wide": {"student": shape}}
    config = load_config(tiny_run.write_recipe(tmp_path, family=family))
    with pytest.raises(ConfigError, match=r"family\.wide: student\.arch: timm knows no 'vit_tinny'.*'vit_tiny'"):
        build_tasks(list(member_runs(config).values()), torch.device("cpu"))


def test_a_checkpoint_without_a_group_for_frozen_prototypes_is_of_other_parameters(tmp_path: Path) -> None:
    def parameters(share: float) -> str:
        ibot = {"output_dim": 16, "hidden_dim": 16, "bottleneck_dim": 8, "local_crops": 0, "freeze_last_layer": share}
        recipe = tiny_run.write_recipe(tmp_path, task="ibot", ibot=ibot, teachers={})
        return build_tasks([load_config(recipe)], torch.device("cpu"))[0].parameters

    assert parameters(0.1) == parameters(0.2) != parameters(0.0)
