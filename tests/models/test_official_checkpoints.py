"""The authors' own model code is the oracle: its checkpoints, and the tokens that it gave for them."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from dmt_ds.config.teachers import TeacherConfig
from dmt_ds.errors import WeightsError
from dmt_ds.models.blueprint import build_from
from dmt_ds.models.encoders import load_teacher
from dmt_ds.models.hf_vit import read_hf
from dmt_ds.models.weights import Weights, read_weights
from tests.models import tiny

FILES = [
    ("mae_pretrain.pth", None, "mae"),
    ("mae_full.pth", None, "mae"),
    ("moco_v3.pth.tar", None, "moco_v3"),
    ("moco_v3.pth.tar", "base_encoder", "moco_v3"),
    ("moco_v3.pth.tar", "momentum_encoder", "moco_v3_momentum"),
    ("ibot_checkpoint_teacher.pth", None, "ibot_teacher"),
    ("ibot_full.pth", None, "ibot_teacher"),
    ("ibot_full.pth", "teacher", "ibot_teacher"),
    ("ibot_full.pth", "student", "ibot_student"),
    ("dino_backbone.pth", None, "ibot_teacher"),
    ("hf_vit", None, "hf_vit"),
]
ONE_OF_EACH = [("mae_full.pth", "model", ""), ("moco_v3.pth.tar", "state_dict", "module.base_encoder."),
               ("ibot_full.pth", "teacher", "backbone."), ("ibot_checkpoint_teacher.pth", "state_dict", ""),
               ("dino_backbone.pth", None, "")]  # fmt: skip
KEYS = ["cls_token", "blocks.1.attn.qkv.weight", "norm.bias"]


@pytest.fixture(scope="module")
def folder(shared_dir) -> Path:
    return shared_dir / "fixtures" / "teachers"


@pytest.fixture(scope="module")
def heads(folder) -> int:
    return int(json.loads((folder / "spec.json").read_text())["num_heads"])


@pytest.fixture(scope="module")
def expected(folder) -> dict[str, torch.Tensor]:
    return {key: torch.from_numpy(value) for key, value in np.load(folder / "expected.npz").items()}


def _read(path: Path, key: str | None = None) -> Weights:
    return read_hf(str(path)) if path.is_dir() else read_weights(path, key)


@pytest.mark.parametrize(("name", "key", "oracle"), FILES)
def test_a_file_gives_its_authors_tokens(name, key, oracle, folder, heads, expected):
    vit = build_from(_read(folder / name, key), num_heads=heads).eval()
    torch.testing.assert_close(tiny.tokens(vit, expected["images"]), expected[oracle], atol=1e-5, rtol=0)


@pytest.mark.parametrize(("name", "key", "oracle"), FILES)
def test_a_file_is_a_teacher(name, key, oracle, folder, heads, expected):
    section = TeacherConfig(
        source=str(folder / name), checkpoint_key=key, num_heads=heads, mean=(0, 0, 0), std=(1, 1, 1)
    )
    teacher = load_teacher(oracle, section, 64)
    black = tiny.tokens(teacher.vit, torch.zeros(1, 3, 64, 64))
    assert torch.equal(teacher(torch.zeros(1, 3, 64, 64, dtype=torch.uint8)), black)


def _changed(state: dict[str, torch.Tensor], key: str, how: str) -> dict[str, torch.Tensor]:
    state = dict(state)
    tensor = state.pop(key)
    if how == "renamed":
        state[f"{key}_renamed"] = tensor
    if how == "reshaped":
        state[key] = tensor[..., :-1].clone()
    return state


@pytest.mark.parametrize("how", ["missing", "renamed", "reshaped"])
@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize(("name", "part", "prefix"), ONE_OF_EACH)
def test_a_copy_with_one_key_changed_is_refused_with_that_key(name, part, prefix, key, how, folder, heads, tmp_path):
    import argparse

    with torch.serialization.safe_globals([argparse.Namespace]):
        checkpoint = torch.load(folder / name, weights_only=True)
    state = checkpoint[part] if part else checkpoint
    changed = _changed(state, prefix + key, how)
    torch.save(checkpoint | {part: changed} if part else changed, tmp_path / name)
    with pytest.raises(WeightsError) as caught:
        build_from(read_weights(tmp_path / name), num_heads=heads)
    assert f"'{prefix}{key}'" in str(caught.value)


@pytest.mark.parametrize("how", ["missing", "renamed", "reshaped"])
@pytest.mark.parametrize(
    "key", ["embeddings.cls_token", "encoder.layer.1.attention.attention.value.weight", "layernorm.bias"]
)
def test_a_copy_of_a_transformers_model_with_one_key_changed_is_refused_with_that_key(key, how, folder, tmp_path):
    (tmp_path / "config.json").write_text((folder / "hf_vit" / "config.json").read_text())
    save_file(_changed(load_file(folder / "hf_vit" / "model.safetensors"), key, how), tmp_path / "model.safetensors")
    with pytest.raises(WeightsError) as caught:
        build_from(read_hf(str(tmp_path)))
    assert f"'{key}'" in str(caught.value)
