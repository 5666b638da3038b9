"""From a recipe to tasks."""

from pathlib import Path
from typing import Any, get_args

import pytest
import torch

from dmt_ds.commands.annotations.annotated_tasks import KINDS
from dmt_ds.commands.training.pretraining_methods import METHODS, losses_in_use, method_of
from dmt_ds.commands.training.tasks import _ALONE, _WITH_TEACHERS, build_tasks
from dmt_ds.config.load import RECIPES, load_config
from dmt_ds.config.schema import ANNOTATED_TASKS, TASKS_OF_SECTION, TEACHER_TASKS, RunConfig, TaskName
from dmt_ds.errors import ConfigError
from dmt_ds.models import start
from dmt_ds.models.encoders import FrozenEncoder
from tests import tiny_run

FAMILY = {"slim": {}, "wide": {"student": {"embed_dim": 48}}}


def test_each_task_has_one_line_in_one_table_of_those_that_build_it() -> None:
    lines = [*_WITH_TEACHERS, *_ALONE, *KINDS]
    assert sorted(lines) == sorted(get_args(TaskName))
    assert set(_WITH_TEACHERS) == set(TEACHER_TASKS)
    assert set(METHODS) == {*_WITH_TEACHERS, *_ALONE}


@pytest.mark.parametrize("task", get_args(TaskName))
def test_each_task_has_a_section_that_is_said_to_be_its_own(task: TaskName) -> None:
    section = METHODS[task].section if task in METHODS else task
    assert section in RunConfig.model_fields
    assert task in TASKS_OF_SECTION[section]


@pytest.mark.parametrize("task", TEACHER_TASKS)
def test_each_method_with_teachers_has_weights_of_its_losses(task: TaskName) -> None:
    section = getattr(RunConfig(task="mae"), METHODS[task].section)
    assert METHODS[task].losses and all(hasattr(section, f"{loss}_weight") for loss in METHODS[task].losses)


def test_each_task_has_a_recipe() -> None:
    images = ["data.source=folder", "data.path=/images"]
    tasks = {load_config(recipe, images).task for recipe in RECIPES.names()}
    assert tasks == set(get_args(TaskName))


@pytest.mark.parametrize("task", ANNOTATED_TASKS)
def test_a_task_with_annotations_is_no_method(task: TaskName) -> None:
    method, config = method_of(RunConfig(task=task)), RunConfig(task=task)
    assert not (method.adds_tokens or method.reads_inside or method.averages_weights or losses_in_use(config))


def test_a_task_that_nothing_builds_is_an_error(tmp_path: Path) -> None:
    config = load_config(tiny_run.write_recipe(tmp_path)).model_copy(update={"task": "cosreg"})
    with pytest.raises(AssertionError, match="task cosreg: nothing here builds it"):
        build_tasks([config], torch.device("cpu"))


@pytest.mark.parametrize("task", TEACHER_TASKS)
def test_a_member_starts_from_the_weights_that_it_has_alone(tmp_path: Path, task: str) -> None:
    config = load_config(tiny_run.write_recipe(tmp_path, family=FAMILY, task=task))
    members = config.students()
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
        build_tasks(list(config.students().values()), torch.device("cpu"))


@pytest.mark.parametrize("task", [*METHODS, "classify"])
def test_the_record_of_given_weights_is_of_the_bytes_that_the_student_got(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, task: str
) -> None:
    """A run that goes on may replace them between two reads."""
    source = tiny_run.make_teacher(tmp_path / "source", 5, embed_dim=24)
    expected, load = start.load_encoder(str(source)), start.load_encoder

    def read_and_replace(*args: Any) -> FrozenEncoder:
        found = load(*args)
        tiny_run.make_teacher(tmp_path / "source", 6, embed_dim=24)
        return found

    monkeypatch.setattr(start, "load_encoder", read_and_replace)
    config = load_config(
        tiny_run.write_recipe(
            tmp_path,
            task=task,
            student={"init_from": str(source)},
            classify={"ema_decay": 0.9},
            ibot={"output_dim": 16, "hidden_dim": 16, "bottleneck_dim": 8, "local_crops": 0},
            mae={"decoder_embed_dim": 16, "decoder_depth": 1, "decoder_num_heads": 2},
            moco_v3={"hidden_dim": 16, "output_dim": 8},
            **({} if task in TEACHER_TASKS else {"teachers": {}}),
        )
    )
    (built,) = build_tasks([config], torch.device("cpu"), ["one", "two"])
    assert built.init_from == expected.record
    found, wanted = built.task.backbone().state_dict(), expected.vit.state_dict()
    assert all(torch.equal(found[key], wanted[key]) for key in wanted)


def test_a_checkpoint_without_a_group_for_frozen_prototypes_is_of_other_parameters(tmp_path: Path) -> None:
    def parameters(share: float) -> str:
        ibot = {"output_dim": 16, "hidden_dim": 16, "bottleneck_dim": 8, "local_crops": 0, "freeze_last_layer": share}
        recipe = tiny_run.write_recipe(tmp_path, task="ibot", ibot=ibot, teachers={})
        return build_tasks([load_config(recipe)], torch.device("cpu"))[0].parameters

    assert parameters(0.1) == parameters(0.2) != parameters(0.0)
