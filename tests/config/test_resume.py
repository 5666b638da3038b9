"""What a resumed run may change."""

from typing import Any

import pytest

from dmt_ds.config.findings import leaves
from dmt_ds.config.load import flatten, load_config
from dmt_ds.config.resume import COMPARED_BY_RECORD, MAY_CHANGE, SEEDS_MAY_DIFFER, differences


def changed(*overrides: str) -> list[str]:
    return differences(flatten(load_config("vit_tiny")), flatten(load_config("vit_tiny", overrides)))


def test_the_same_run_has_no_differences() -> None:
    assert changed() == []


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("optim.base_lr=1e-3", "optim.base_lr: 0.00015 -> 0.001"),
        ("train.epochs=400", "train.epochs: 300.0 -> 400.0"),
        ("train.steps=4", "train.steps: null -> 4"),
        ("train.global_batch_size=2048", "train.global_batch_size: 4096 -> 2048"),
        ("seed=1", "seed: 0 -> 1"),
        ("teachers.use=[mae]", "teachers.use: null -> [mae]"),
        ("teachers.models.mae.weight=2", "teachers.models.mae.weight: 1.0 -> 2.0"),
        ("student.arch=vit_small", "student.arch: vit_tiny -> vit_small"),
        ("data.max_train_images=5", "data.max_train_images: null -> 5"),
    ],
)
def test_what_changes_the_losses_is_told(override: str, line: str) -> None:
    assert changed(override) == [line]


def test_another_teacher_is_told() -> None:
    lines = changed("teachers.models.dino.source=x")
    assert "teachers.models.dino.weight: not set -> 1.0" in lines


@pytest.mark.parametrize(
    "override",
    [
        "train.log_every_steps=1",
        "train.micro_batch_size=64",
        "train.keep_checkpoints=9",
        "data.num_workers=0",
        "data.path=/elsewhere",
        "tracking.tags.a=b",
        "tracking.uri=http://localhost",
        "teachers.sharding=replicate",
        "teachers.shard_over=world",
        "teachers.models.mae.source=/elsewhere/mae.pth",
        "output_dir=/elsewhere",
        "knn.k=5",
        "linear.max_iterations=500",
    ],
)
def test_what_leaves_the_losses_alone_may_change(override: str) -> None:
    assert changed(override) == []


def test_a_run_saved_as_json_compares_equal() -> None:
    import json

    flat = flatten(load_config("vit_tiny"))
    saved: dict[str, Any] = json.loads(json.dumps(flat))
    assert differences(saved, flat) == []


def test_every_rule_names_a_setting_that_exists() -> None:
    known = {".".join(leaf) for leaf in leaves()}
    for pattern in (*MAY_CHANGE, *SEEDS_MAY_DIFFER, *COMPARED_BY_RECORD):
        stem = pattern.split(".*")[0]
        assert any(key == stem or key.startswith(f"{stem}.") for key in known), pattern
