"""The tasks with annotations agree with the schema and with the folders that runs leave."""

import pytest

from dmt_ds.commands.annotations.annotated_tasks import KINDS, kind_of
from dmt_ds.commands.training.finetune import _asked_for, _task_of
from dmt_ds.config.load import find_recipe, load_config
from dmt_ds.config.schema import ANNOTATED_TASKS, RunConfig
from dmt_ds.errors import ConfigError
from dmt_ds.run_files import PUBLISHED


def test_each_task_with_annotations_has_its_kind_and_no_other_has_one() -> None:
    assert set(KINDS) == set(ANNOTATED_TASKS)
    assert kind_of(RunConfig(task="mae")) is None


def test_each_kind_leaves_a_folder_of_its_own_that_readers_of_runs_know() -> None:
    folders = [kind.folder for kind in KINDS.values()]
    assert len(set(folders)) == len(folders)
    assert set(folders) < set(PUBLISHED)


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("size", ["tiny", "small", "base"])
def test_each_kind_has_a_recipe_for_each_size_of_encoder(kind, size: str) -> None:
    recipe = kind.recipe_of(size)
    assert find_recipe(recipe).is_file()
    assert KINDS[load_config(recipe, ["data.path=/images"]).task] is kind


def test_the_task_is_the_one_asked_for_or_else_the_recipes_or_classification() -> None:
    assert _task_of(None, None) == "classify"
    assert _task_of("linear_probe", None) == "classify"
    assert _task_of("vit_tiny", "classify") == "classify"


def test_a_task_among_the_overrides_is_asked_for_as_a_jobs_script_does() -> None:
    assert _asked_for(["data.path=x", "task=detect"]) == "detect"
    assert _asked_for(["data.path=x"]) is None and _asked_for(["task=mae"]) is None


def test_a_recipe_of_another_task_with_annotations_is_refused() -> None:
    with pytest.raises(ConfigError, match="recipe linear_probe: is of task classify, not segment"):
        _task_of("linear_probe", "segment")
