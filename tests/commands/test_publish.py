"""What a run publishes is there at any time, the older one or the newer."""

import json
import os
from pathlib import Path

import pytest

from dmt_ds.commands.training.publish import publish_weights


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
