"""transformers' own models are the oracle: small random ones, saved by them, read by us."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from dmt_ds.errors import WeightsError
from dmt_ds.models.blueprint import build_from
from dmt_ds.models.hf_vit import read_file, read_hf
from tests.models import tiny

transformers = pytest.importorskip("transformers")

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 32, "patch_size": 8}
MODELS = {
    "ViT": {"intermediate_size": 96},
    "DeiT": {"intermediate_size": 96},
    "Beit": {"intermediate_size": 96, "use_relative_position_bias": True, "use_mean_pooling": False},
    "Dinov2": {"layerscale_value": 0.5},
    "Dinov2WithRegisters": {"layerscale_value": 0.5, "num_register_tokens": 3},
}


def _model(name: str, **settings: object) -> torch.nn.Module:
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**SIZES, **MODELS[name], **settings)
    pooling = {} if name.startswith("Dinov2") else {"add_pooling_layer": False}
    model = getattr(transformers, f"{name}Model")(config, **pooling).eval()
    tiny.randomise(model)
    return model


@torch.no_grad()
def _their_tokens(model: torch.nn.Module, prefix: int) -> torch.Tensor:
    hidden = model(tiny.normalised()).last_hidden_state
    return torch.cat([hidden[:, :1], hidden[:, prefix:]], dim=1)


@pytest.mark.parametrize(
    ("name", "prefix"), [("ViT", 1), ("DeiT", 2), ("Beit", 1), ("Dinov2", 1), ("Dinov2WithRegisters", 4)]
)
def test_a_saved_model_gives_its_own_tokens(name, prefix, tmp_path):
    model = _model(name)
    model.save_pretrained(tmp_path)
    ours = tiny.tokens(build_from(read_hf(str(tmp_path))).eval())
    torch.testing.assert_close(ours, _their_tokens(model, prefix), atol=1e-5, rtol=0)


def test_the_names_that_transformers_five_has_in_memory_are_read_too(tmp_path):
    model = _model("ViT")
    model.save_pretrained(tmp_path)
    save_file(dict(model.state_dict()), tmp_path / "model.safetensors")
    ours = tiny.tokens(build_from(read_hf(str(tmp_path))).eval())
    torch.testing.assert_close(ours, _their_tokens(model, 1), atol=1e-5, rtol=0)


def test_a_masked_autoencoder_gives_its_unmasked_encoders_tokens(tmp_path):
    torch.manual_seed(0)
    config = transformers.ViTMAEConfig(
        **SIZES, **MODELS["ViT"], decoder_hidden_size=16, decoder_num_hidden_layers=1, decoder_intermediate_size=16,
        decoder_num_attention_heads=2, mask_ratio=0.0,
    )  # fmt: skip
    mae = transformers.ViTMAEForPreTraining(config).eval()
    tiny.randomise(mae)
    mae.save_pretrained(tmp_path)
    weights = read_hf(str(tmp_path))
    assert all(key.startswith("decoder.") for key in weights.dropped)
    with torch.no_grad():
        unshuffled = torch.arange(16.0).expand(2, -1)
        theirs = mae.vit(tiny.normalised(), noise=unshuffled).last_hidden_state
    torch.testing.assert_close(tiny.tokens(build_from(weights).eval()), theirs, atol=1e-5, rtol=0)


def test_the_configs_epsilon_is_respected(tmp_path):
    model = _model("ViT", layer_norm_eps=1e-2)
    model.save_pretrained(tmp_path)
    weights = read_hf(str(tmp_path))
    assert weights.norm_eps == 1e-2
    torch.testing.assert_close(tiny.tokens(build_from(weights).eval()), _their_tokens(model, 1), atol=1e-5, rtol=0)


def test_heads_and_normalisation_come_from_the_folder(tmp_path):
    _model("ViT").save_pretrained(tmp_path)
    processor = {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.3, 0.4]}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(processor))
    weights = read_hf(str(tmp_path))
    assert (weights.num_heads, weights.mean, weights.std) == (2, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
    with pytest.raises(WeightsError, match=r"num_heads 4 is asked for.*have 2 heads"):
        build_from(weights, num_heads=4)


def test_a_file_is_read_with_the_config_that_lies_beside_it(tmp_path):
    model = _model("ViT", layer_norm_eps=1e-2)
    model.save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0.5, 0.4, 0.3]}))
    weights = read_file(tmp_path / "model.safetensors")
    assert (weights.num_heads, weights.norm_eps, weights.mean) == (2, 1e-2, (0.5, 0.4, 0.3))
    torch.testing.assert_close(tiny.tokens(build_from(weights).eval()), _their_tokens(model, 1), atol=1e-5, rtol=0)


@pytest.mark.parametrize("changes", [{"hidden_size": 64}, {"num_hidden_layers": 3}, {"model_type": "clip"}, None])
def test_a_config_that_is_of_other_weights_says_nothing_of_a_file(changes, tmp_path):
    _model("ViT").save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text("damaged" if changes is None else json.dumps(json.loads(path.read_text()) | changes))
    assert read_file(tmp_path / "model.safetensors").num_heads is None


def test_a_file_of_another_name_is_none_that_the_config_is_of(tmp_path):
    _model("ViT").save_pretrained(tmp_path)
    other = (tmp_path / "model.safetensors").rename(tmp_path / "other.safetensors")
    assert read_file(other).num_heads is None


def test_a_file_whose_config_has_another_activation_is_refused(tmp_path):
    _model("ViT", hidden_act="relu").save_pretrained(tmp_path)
    with pytest.raises(WeightsError, match=r"model.safetensors: hidden_act 'relu' is not supported, only gelu is"):
        read_file(tmp_path / "model.safetensors")


def test_a_folder_that_says_nothing_of_its_normalisation_has_its_layouts(tmp_path):
    _model("Beit").save_pretrained(tmp_path)
    weights = read_hf(str(tmp_path))
    assert (weights.mean, weights.std) == ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


def test_a_folder_that_normalises_nothing_leaves_pixels_in_0_to_1(tmp_path):
    _model("ViT").save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"do_normalize": False, "image_mean": [0.5] * 3}))
    weights = read_hf(str(tmp_path))
    assert (weights.mean, weights.std) == ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


@pytest.mark.parametrize(
    ("key", "change"),
    [
        ("encoder.layer.1.layernorm_before.weight", "missing"),
        ("encoder.layer.0.attention.attention.key.weight", "missing"),
        ("encoder.layer.0.attention.attention.key.bias", "missing"),
        ("encoder.layer.1.output.dense.bias", "renamed"),
        ("layernorm.weight", "missing"),
        ("embeddings.position_embeddings", "renamed"),
        ("encoder.layer.1.intermediate.dense.weight", "reshaped"),
        ("encoder.layer.1.attention.attention.query.bias", "reshaped"),
    ],
)
def test_a_damaged_model_is_refused_with_transformers_own_name_of_the_key(key, change, tmp_path):
    _model("ViT").save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    tensor = state.pop(key)
    if change != "missing":
        state[key if change == "reshaped" else f"{key}_x"] = torch.ones(5) if change == "reshaped" else tensor
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(WeightsError) as caught:
        build_from(read_hf(str(tmp_path)))
    assert f"'{key}'" in str(caught.value)


def test_another_kind_of_model_is_refused(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "resnet"}))
    with pytest.raises(WeightsError, match="model_type 'resnet' is none of vit,"):
        read_hf(str(tmp_path))


def test_a_folder_without_a_model_is_refused(tmp_path):
    with pytest.raises(WeightsError, match=r"no readable config\.json"):
        read_hf(str(tmp_path))
    _model("ViT").config.save_pretrained(tmp_path)
    with pytest.raises(WeightsError, match=r"no readable model\.safetensors or pytorch_model\.bin"):
        read_hf(str(tmp_path))
