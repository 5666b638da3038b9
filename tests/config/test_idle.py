"""Which settings a run never looks at, as they are and as a store keeps them."""

import pytest

from dmt_ds.config.idle import idle_settings, used_teachers
from dmt_ds.config.load import flatten, load_config

TEACHERS = ["teachers.models.mae.source=/weights/mae.pth", "teachers.models.ibot.source=/weights/ibot.pth"]


def idle_of(*overrides: str) -> set[str]:
    """Of the whole settings, plain and as text."""
    settings = flatten(load_config(None, overrides))
    as_text = {key: str(value) for key, value in settings.items()}
    idle = idle_settings(settings)
    assert idle_settings(as_text) == idle
    assert used_teachers(as_text) == used_teachers(settings)
    return idle


def sections(idle: set[str]) -> set[str]:
    return {key.partition(".")[0] for key in idle}


def test_sections_of_other_tasks_are_idle_and_a_maker_of_teachers_has_none() -> None:
    others = {"tinymim", "mae", "moco_v3", "ibot", "classify", "segment", "detect"}
    assert sections(idle_of("task=dmt", *TEACHERS)) == {*others, "optim"}
    assert sections(idle_of("task=mae", *TEACHERS)) == {*others, "optim", "distill", "teachers"} - {"mae"}
    assert sections(idle_of("task=tinymim", *TEACHERS)) == {*others, "optim", "distill"} - {"tinymim"}


def test_teachers_that_are_not_in_use_are_idle() -> None:
    idle = idle_of("task=dmt", *TEACHERS, "teachers.use=[ibot]")
    assert {key for key in idle if key.startswith("teachers.models.mae.")}
    assert not any(key.startswith(("teachers.models.ibot.", "teachers.use")) for key in idle)


@pytest.mark.parametrize(
    ("setting", "idle", "used"),
    [
        ("train.steps=0", "train.epochs", "train.steps"),
        ("train.epochs=3", "", "train.epochs"),
        ("optim.warmup_steps=0", "optim.warmup_epochs", "optim.warmup_steps"),
        ("optim.schedule=steps", "", "optim.decay_at"),
        ("optim.schedule=linear", "optim.decay_at", "optim.schedule"),
        ("optim.name=sgd", "optim.betas optim.eps", "optim.momentum"),
        ("optim.name=adamw", "optim.momentum", "optim.betas"),
        ("task=moco_v3", "augment.brightness", "augment.mean"),
        ("task=mae", "", "augment.brightness"),
    ],
)
def test_what_another_setting_outdoes_is_idle(setting: str, idle: str, used: str) -> None:
    found = idle_of(*([] if setting.startswith("task=") else ["task=mae"]), setting)
    assert found >= set(idle.split())
    assert used not in found


def test_settings_without_a_task_are_none_of_another_task() -> None:
    assert idle_settings({"mae.mask_ratio": "0.75", "distill.fusion": "sum"}) == set()
