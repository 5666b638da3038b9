"""A weights file that would run a program is refused in every form in which one can be named, and nothing has run."""

import json
import os
import pickle
from pathlib import Path

import pytest
import torch

from dmt_ds.errors import DmtError
from dmt_ds.models.encoders import load_encoder
from tests.models import tiny


class Bomb:
    """Makes a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch '{self.mark}'",)


def _whole(bomb: Bomb) -> object:
    return bomb


def _in_dict(bomb: Bomb) -> object:
    return {**tiny.vit().state_dict(), "x": bomb}


LAYOUTS = {
    "alone": _whole,
    "flat": _in_dict,
    "mae": lambda bomb: {"model": tiny.vit().state_dict(), "args": bomb},
    "moco_v3": lambda bomb: {"state_dict": {"module.base_encoder.x": bomb}, "optimizer": {}},
    "ibot": lambda bomb: {"teacher": tiny.vit().state_dict(), "ibot_loss": {"center": bomb}},
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_a_checkpoint_that_would_run_a_program_is_refused(layout, zipped, tmp_path):
    mark = tmp_path / "has run"
    torch.save(LAYOUTS[layout](Bomb(mark)), tmp_path / "a.pth", _use_new_zipfile_serialization=zipped)
    with pytest.raises(DmtError, match=r"a\.pth: refused, loading it would run .*system"):
        load_encoder(str(tmp_path / "a.pth"))
    assert not mark.exists()


@pytest.mark.parametrize("name", ["a.pth", "a.bin", "a.safetensors"])
def test_a_bare_pickle_is_refused_whatever_it_is_called(name, tmp_path):
    mark = tmp_path / "has run"
    (tmp_path / name).write_bytes(pickle.dumps(Bomb(mark)))
    with pytest.raises(DmtError, match=name):
        load_encoder(str(tmp_path / name))
    assert not mark.exists()


def test_a_transformers_folder_with_a_pickle_is_refused(tmp_path):
    from transformers import ViTConfig

    mark = tmp_path / "has run"
    ViTConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2).save_pretrained(tmp_path)
    torch.save({"x": Bomb(mark)}, tmp_path / "pytorch_model.bin")
    with pytest.raises(DmtError, match=r"pytorch_model\.bin: refused, loading it would run"):
        load_encoder(f"hf:{tmp_path}")
    assert not mark.exists()


@pytest.mark.parametrize("model_type", ["vit", "of_its_own"])
def test_code_beside_a_transformers_model_is_not_run_and_nobody_is_asked(model_type, tmp_path, monkeypatch):
    from transformers import ViTConfig

    asked: list[str] = []
    monkeypatch.setattr("builtins.input", lambda prompt: asked.append(prompt) or "y")
    mark = tmp_path / "has run"
    ViTConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config |= {"model_type": model_type, "auto_map": {"AutoConfig": "evil.Config", "AutoModel": "evil.Model"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "evil.py").write_text(f"open({str(mark)!r}, 'w')\n")
    reason = "asks for code of its own, which is never run" if model_type == "of_its_own" else "no readable model"
    with pytest.raises(DmtError, match=reason) as caught:
        load_encoder(f"hf:{tmp_path}")
    assert "\n" not in str(caught.value) and not mark.exists() and asked == []


def test_the_bomb_goes_off_where_nothing_holds_it(tmp_path):
    pickle.loads(pickle.dumps(Bomb(tmp_path / "has run")))
    assert (tmp_path / "has run").exists()
