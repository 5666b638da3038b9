"""What a run publishes is there at any time, the older one or the newer, and as exact as what was trained."""

import json
import os
from pathlib import Path

import pytest
import torch
from torch import nn

from dmt_ds.commands.training.publish import backbone_state, publish_weights


def saved(folder: Path, step: int) -> Path:
    (folder / "backbone").mkdir(parents=True)
    (folder / "backbone" / "config.json").write_text(json.dumps({"model_args": {}, "step": step}))
    return folder


def published_step(run: Path) -> int:
    step = json.loads((run / "backbone" / "config.json").read_text())["step"]
    assert isinstance(step, int)
    return step


def test_the_last_checkpoints_encoder_takes_the_place_of_an_older_one(tmp_path: Path) -> None:
    publish_weights(tmp_path, saved(tmp_path / "checkpoints" / "step_1", 1))
    publish_weights(tmp_path, saved(tmp_path / "checkpoints" / "step_2", 2))
    assert published_step(tmp_path) == 2


def test_a_failure_at_the_rename_keeps_the_published_encoder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    publish_weights(tmp_path, saved(tmp_path / "checkpoints" / "step_1", 1))
    rename = os.rename

    def fail_for_the_new_one(source: Path, target: Path) -> None:
        if Path(source).name == ".backbone.partial":
            raise OSError("the server is away")
        rename(source, target)

    monkeypatch.setattr(os, "rename", fail_for_the_new_one)
    with pytest.raises(OSError, match="away"):
        publish_weights(tmp_path, saved(tmp_path / "checkpoints" / "step_2", 2))
    assert published_step(tmp_path) == 1


def test_an_encoder_has_the_float32_of_its_masters_and_what_has_none_is_published_as_it_is() -> None:
    module = nn.ModuleDict({"vit": nn.Linear(3, 2), "adapter": nn.Linear(3, 2)}).bfloat16()
    masters = {f"{part}.weight": torch.randn(2, 3) for part in module}
    state = backbone_state(module["vit"], module, masters)
    assert torch.equal(state["weight"], masters["vit.weight"])
    assert state["bias"].dtype == torch.float32 and torch.equal(state["bias"], module["vit"].bias.float())
    average = nn.Linear(3, 2)  # lies outside of what is trained
    assert torch.equal(backbone_state(average, module, masters)["weight"], average.weight)
