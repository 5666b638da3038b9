"""What is refused, and with which words."""

import hashlib
import os
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from dmt_ds.errors import ConfigError, WeightsError
from dmt_ds.models.blueprint import build_from
from dmt_ds.models.weights import read_weights
from tests.models import tiny


@pytest.fixture(scope="module")
def state():
    return tiny.vit().state_dict()


def _load(path: Path, **settings):
    return build_from(read_weights(path), num_heads=tiny.HEADS, **settings)


def _refused(state, tmp_path, match: str, prefix: str = "") -> str:
    torch.save({"state_dict": {f"{prefix}{key}": value for key, value in state.items()}}, tmp_path / "file.pth")
    with pytest.raises(WeightsError, match=match) as caught:
        _load(tmp_path / "file.pth")
    assert "\n" not in str(caught.value)
    assert str(tmp_path / "file.pth") in str(caught.value)
    return str(caught.value)


PREFIXES = ["", "module.base_encoder.", "module.backbone."]


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize(
    "key", ["cls_token", "pos_embed", "patch_embed.proj.weight", "blocks.1.mlp.fc1.weight", "norm.bias"]
)
def test_a_missing_key_is_named_as_the_file_would_call_it(state, tmp_path, key, prefix):
    _refused({name: t for name, t in state.items() if name != key}, tmp_path, f"missing '{prefix}{key}'", prefix)


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("key", ["pos_embed", "patch_embed.proj.bias", "blocks.0.attn.qkv.weight", "norm.weight"])
def test_a_renamed_key_is_named(state, tmp_path, key, prefix):
    renamed = {f"{name}_x" if name == key else name: tensor for name, tensor in state.items()}
    message = _refused(renamed, tmp_path, f"missing '{prefix}{key}'", prefix)
    assert key == "pos_embed" or f"unexpected '{prefix}{key}_x'" in message


@pytest.mark.parametrize("key", ["patch_embed.proj.bias", "blocks.1.attn.qkv.weight", "norm.weight"])
def test_a_tensor_of_another_shape_is_named_with_both_shapes(state, tmp_path, key):
    wrong = dict(state) | {key: torch.ones(5)}
    _refused(wrong, tmp_path, rf"'{key}' \(file \[5\], model \[{state[key].shape[0]}")


def test_positions_that_are_no_square_grid_are_refused(state, tmp_path):
    _refused(dict(state) | {"pos_embed": torch.ones(1, 15, tiny.WIDTH)}, tmp_path, "'pos_embed' has 15 positions")


def test_a_named_architecture_must_be_that_of_the_file(state, tmp_path):
    torch.save(dict(state), tmp_path / "file.pth")
    with pytest.raises(WeightsError, match="embed_dim 192 against 32, depth 12 against 2, patch_size 16 against 8"):
        _load(tmp_path / "file.pth", arch="vit_tiny")
    with pytest.raises(ConfigError, match="Did you mean 'vit_tiny'"):
        _load(tmp_path / "file.pth", arch="vit_tinny")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(WeightsError, match=r"nope\.pth: no such file"):
        read_weights(tmp_path / "nope.pth")


@pytest.mark.parametrize("name", ["file.pth", "file.safetensors"])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.95])
def test_a_truncated_file_is_called_damaged(state, tmp_path, name, share):
    path = tmp_path / name
    torch.save(dict(state), path) if name.endswith("pth") else save_file(dict(state), path)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(WeightsError, match="damaged") as caught:
        read_weights(path)
    assert "\n" not in str(caught.value)


def test_a_text_file_is_no_weights_file(tmp_path):
    (tmp_path / "file.pth").write_text("<html>404</html>")
    with pytest.raises(WeightsError, match="not a PyTorch file"):
        read_weights(tmp_path / "file.pth")


def test_a_checkpoint_without_a_state_dict_names_what_it_holds(tmp_path):
    torch.save({"epoch": 3, "lr": 0.1}, tmp_path / "file.pth")
    with pytest.raises(WeightsError, match="no state dict found, the file holds 'epoch', 'lr'"):
        read_weights(tmp_path / "file.pth")


def test_a_list_is_no_checkpoint(tmp_path):
    torch.save([torch.ones(2)], tmp_path / "file.pth")
    with pytest.raises(WeightsError, match="holds a list"):
        read_weights(tmp_path / "file.pth")


class _Trap:
    """Unpickled, it would make a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_file_that_would_run_code_is_refused_by_name_and_not_run(state, tmp_path, zipped):
    trap = {"model": dict(state), "extra": _Trap(tmp_path / "was_run")}
    torch.save(trap, tmp_path / "trap.pth", _use_new_zipfile_serialization=zipped)
    with pytest.raises(WeightsError, match=r"(posix|nt)\.mkdir"):
        read_weights(tmp_path / "trap.pth")
    assert not (tmp_path / "was_run").exists()


def test_a_bare_pickle_that_would_run_code_is_not_run(tmp_path):
    (tmp_path / "trap.pth").write_bytes(pickle.dumps(_Trap(tmp_path / "was_run")))
    with pytest.raises(WeightsError):
        read_weights(tmp_path / "trap.pth")
    assert not (tmp_path / "was_run").exists()


def test_the_hash_is_that_of_the_file(state, tmp_path):
    torch.save(dict(state), tmp_path / "file.pth")
    expected = hashlib.sha256((tmp_path / "file.pth").read_bytes()).hexdigest()
    assert read_weights(tmp_path / "file.pth").sha256 == expected
