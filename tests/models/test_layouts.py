"""Small checkpoints in their authors' layouts, made here: each must give the tokens of the model it was made of."""

import argparse
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from dmt_ds.config.section import IMAGENET_MEAN, IMAGENET_STD
from dmt_ds.errors import WeightsError
from dmt_ds.models.blueprint import build_from
from dmt_ds.models.encoders import load_encoder
from dmt_ds.models.vit import build_vit, create, shape_of
from dmt_ds.models.weights import read_weights
from tests.models import tiny

OTHERS = torch.ones(3)


def _prefixed(state, prefix):
    return {f"{prefix}{key}": value for key, value in state.items()}


def _tokens_of_file(path: Path, key: str | None = None, heads: int | None = tiny.HEADS) -> torch.Tensor:
    return tiny.tokens(build_from(read_weights(path, key), num_heads=heads).eval())


@pytest.fixture(scope="module")
def vit() -> nn.Module:
    return tiny.vit()


def _mae(state):
    extra = {"mask_token": OTHERS, "decoder_pos_embed": OTHERS, "decoder_blocks.0.norm1.weight": OTHERS}
    return {"model": state | extra, "optimizer": {"state": {}}, "epoch": 3, "args": argparse.Namespace(lr=1.0)}


def _moco_v3(state):
    encoders = _prefixed(state, "module.base_encoder.") | {"module.base_encoder.head.0.weight": OTHERS}
    momentum = _prefixed({k: v + 1 for k, v in state.items()}, "module.momentum_encoder.")
    return {"epoch": 300, "arch": "vit_base", "state_dict": encoders | momentum | {"module.predictor.0.weight": OTHERS}}


def _ibot(state):
    student = _prefixed({k: v + 1 for k, v in state.items()}, "module.backbone.")
    return {
        "student": student | {"module.backbone.masked_embed": OTHERS, "module.head.mlp.0.weight": OTHERS},
        "teacher": _prefixed(state, "backbone.") | {"head.mlp.0.weight": OTHERS},
        "args": argparse.Namespace(arch="vit_base"),
        "ibot_loss": {},
    }


def _dinov2(state):
    """As `dinov2/eval` of a training writes it; its ViT has LayerScale."""
    return {"teacher": _prefixed(_scaled(state), "backbone.") | {"dino_head.mlp.0.weight": OTHERS}}


def _scaled(state):
    scales = {f"blocks.{block}.ls{place}.gamma": torch.ones(tiny.WIDTH) for block in (0, 1) for place in (1, 2)}
    return state | scales | {"mask_token": OTHERS}


def _in_chunks(state):
    """A block a chunk, as `block_chunks` makes them."""
    return {re.sub(r"blocks\.(\d+)\.", r"blocks.\1.\1.", key): value for key, value in state.items()}


def _dino(state):
    return {"teacher": _prefixed(state, "module.backbone.") | {"module.head.mlp.0.weight": OTHERS}, "dino_loss": {}}


FILES = {
    "mae release": (lambda s: {"model": s}, "mae", "CC-BY-NC-4.0"),
    "mae with decoder": (_mae, "mae", "CC-BY-NC-4.0"),
    "moco_v3": (_moco_v3, "moco_v3", "CC-BY-NC-4.0"),
    "ibot backbone": (lambda s: {"state_dict": s}, "ibot", "Apache-2.0"),
    "ibot full": (_ibot, "ibot", "Apache-2.0"),
    "dino full": (_dino, "dino", "Apache-2.0"),
    "dinov2 release": (_scaled, "dinov2", "Apache-2.0"),
    "dinov2 training": (_dinov2, "dinov2", "Apache-2.0"),
    "dinov2 training in chunks": (lambda s: {"teacher": _in_chunks(_dinov2(s)["teacher"])}, "dinov2", "Apache-2.0"),
    "timm's training": (lambda s: {"state_dict": s | {"head.weight": OTHERS}}, "timm", None),
    "flat": (lambda s: s, "timm", None),
    "compiled": (lambda s: _prefixed(s, "_orig_mod."), "timm", None),
    "deepspeed": (lambda s: {"module": _prefixed(s, "module.")}, "timm", None),
    "deit": (lambda s: {"model": s | {"head.weight": OTHERS}}, "deit", "Apache-2.0"),
}


@pytest.mark.parametrize("name", FILES)
def test_a_checkpoint_gives_the_tokens_of_its_encoder(name, vit, tmp_path):
    wrap, layout, licence = FILES[name]
    torch.save(wrap(vit.state_dict()), tmp_path / "file.pth")
    weights = read_weights(tmp_path / "file.pth")
    assert (weights.layout, weights.licence) == (layout, licence)
    assert torch.equal(_tokens_of_file(tmp_path / "file.pth"), tiny.tokens(vit))


@pytest.mark.parametrize("name", FILES)
def test_every_tensor_of_a_checkpoint_is_used_or_reported_as_dropped(name, vit, tmp_path):
    torch.save(FILES[name][0](vit.state_dict()), tmp_path / "file.pth")
    weights = read_weights(tmp_path / "file.pth")
    used = set(weights.file_keys.values())
    scales = {key for key in weights.state if re.search(r"\.ls\d\.gamma$", key)}  # of 1, where the file has them
    assert set(weights.state) - scales == set(vit.state_dict())
    assert len(used) + len(weights.dropped) == len(used | set(weights.dropped))


def test_safetensors_give_the_same_tokens(vit, tmp_path):
    save_file(dict(vit.state_dict()), tmp_path / "file.safetensors")
    assert torch.equal(_tokens_of_file(tmp_path / "file.safetensors"), tiny.tokens(vit))


@pytest.mark.parametrize(("wrap", "key"), [(_moco_v3, "momentum_encoder"), (_ibot, "student")])
def test_the_other_network_of_a_full_checkpoint_is_taken_by_its_key(wrap, key, vit, tmp_path):
    torch.save(wrap(vit.state_dict()), tmp_path / "file.pth")
    other = tiny.vit()
    other.load_state_dict({k: v + 1 for k, v in vit.state_dict().items()})
    assert torch.equal(_tokens_of_file(tmp_path / "file.pth", key), tiny.tokens(other))


def test_a_key_that_is_not_there_is_refused_with_those_that_are(vit, tmp_path):
    torch.save(_ibot(vit.state_dict()), tmp_path / "file.pth")
    with pytest.raises(WeightsError, match=r"'studnt'.*'student', 'teacher'"):
        read_weights(tmp_path / "file.pth", "studnt")
    with pytest.raises(WeightsError, match="is for MoCo v3's layout"):
        read_weights(tmp_path / "file.pth", "base_encoder")


def test_a_block_that_is_missing_in_a_chunk_is_named_as_the_file_names_its_siblings(vit, tmp_path):
    state = _in_chunks(_prefixed(_scaled(vit.state_dict()), "backbone."))
    del state["backbone.blocks.1.1.norm1.weight"]
    torch.save({"teacher": state}, tmp_path / "file.pth")
    with pytest.raises(WeightsError, match=r"missing 'backbone\.blocks\.0\.1\.norm1\.weight'"):
        _tokens_of_file(tmp_path / "file.pth")


def test_chunks_that_count_their_blocks_from_zero_each_are_refused_and_no_block_is_lost(vit, tmp_path):
    state = {re.sub(r"blocks\.(\d+)\.", r"blocks.\1.0.", key): value for key, value in vit.state_dict().items()}
    torch.save(state, tmp_path / "file.pth")
    with pytest.raises(WeightsError, match=r"missing 'blocks\.0\.mlp\.fc1\.weight'"):
        _tokens_of_file(tmp_path / "file.pth")


def test_a_moco_v3_vit_small_has_twelve_heads(tmp_path):
    vit = tiny.vit(embed_dim=384, num_heads=12, depth=1)
    torch.save({"state_dict": _prefixed(vit.state_dict(), "module.base_encoder.")}, tmp_path / "vit-s.pth.tar")
    weights = read_weights(tmp_path / "vit-s.pth.tar")
    built = build_from(weights)
    assert shape_of(built).num_heads == 12
    assert torch.equal(tiny.tokens(built.eval()), tiny.tokens(vit))
    with pytest.raises(WeightsError, match=r"num_heads 6 is asked for.*12 heads"):
        build_from(weights, num_heads=6)


def _moco_v3_table(width: int, side: int) -> torch.Tensor:
    """By its authors' formula, a number at a time: the first half of the channels tells the row, the second the column.

    [1, 1 + side^2, width], 0 for the class token.
    """
    table, quarter = torch.zeros(1, 1 + side * side, width), width // 4
    for row in range(side):
        for column in range(side):
            for k in range(quarter):
                waves = [f(place / 10000 ** (k / quarter)) for place in (row, column) for f in (math.sin, math.cos)]
                table[0, 1 + row * side + column, k::quarter] = torch.tensor(waves)
    return table


@pytest.mark.parametrize("half", [False, True])
def test_a_moco_v3_file_that_was_converted_to_timms_names_is_told_from_maes(half, tmp_path):
    vit = tiny.vit(embed_dim=384, num_heads=12, depth=1)
    with torch.no_grad():
        vit.pos_embed.copy_(_moco_v3_table(384, tiny.IMAGE_SIZE // tiny.PATCH_SIZE))
    state = {key: value.half() if half else value for key, value in vit.state_dict().items()}
    torch.save({"model": state}, tmp_path / "vit-s-300ep-deit.pth")
    weights = read_weights(tmp_path / "vit-s-300ep-deit.pth")
    assert (weights.layout, shape_of(build_from(weights)).num_heads) == ("moco_v3", 12)


def test_maes_own_table_does_not_make_a_file_moco_v3s(tmp_path):
    vit = tiny.vit(positions="sincos")
    with torch.no_grad():
        vit.pos_embed.copy_(build_vit(tiny.section(), tiny.IMAGE_SIZE).pos_embed)
    torch.save({"model": vit.state_dict()}, tmp_path / "mae.pth")
    assert read_weights(tmp_path / "mae.pth").layout == "mae"


def test_a_dino_vit_small_has_six_heads(tmp_path):
    vit = tiny.vit(embed_dim=384, num_heads=6, depth=1)
    torch.save(dict(vit.state_dict()), tmp_path / "file.pth")
    assert shape_of(build_from(read_weights(tmp_path / "file.pth"))).num_heads == 6


def test_an_unusual_width_needs_its_heads_said(vit, tmp_path):
    torch.save(dict(vit.state_dict()), tmp_path / "file.pth")
    with pytest.raises(WeightsError, match="set num_heads"):
        build_from(read_weights(tmp_path / "file.pth"))


def _timm(arch: str, **args: object) -> nn.Module:
    torch.manual_seed(0)
    sizes = {"embed_dim": 32, "depth": 2, "num_heads": 2, "img_size": 32, "patch_size": 8, "num_classes": 0}
    model = create(arch, **sizes, **args, global_pool="token").eval()
    tiny.randomise(model)
    return model


def test_distilled_deit_loads_and_leaves_its_second_token_out(tmp_path):
    deit = _timm("deit_base_distilled_patch16_224")
    torch.save({"model": deit.state_dict() | {"head.bias": OTHERS, "head_dist.bias": OTHERS}}, tmp_path / "deit.pth")
    assert _tokens_of_file(tmp_path / "deit.pth").shape == (2, tiny.NUM_TOKENS, 32)
    assert torch.equal(_tokens_of_file(tmp_path / "deit.pth"), tiny.tokens(deit))


def test_deit_three_keeps_its_layer_scale_and_patch_only_positions(tmp_path):
    deit = _timm("vit_base_patch16_224", init_values=1e-6, no_embed_class=True)
    names = {key: key.replace("ls1.gamma", "gamma_1").replace("ls2.gamma", "gamma_2") for key in deit.state_dict()}
    torch.save({"model": {names[key]: value for key, value in deit.state_dict().items()}}, tmp_path / "deit3.pth")
    assert torch.equal(_tokens_of_file(tmp_path / "deit3.pth"), tiny.tokens(deit))


@pytest.mark.parametrize("shared", [False, True])
def test_beit_loads_with_relative_positions_and_its_final_norm(shared, tmp_path):
    beit = _timm("beit_base_patch16_224", use_rel_pos_bias=not shared, use_shared_rel_pos_bias=shared)
    torch.save({"model": beit.state_dict() | {"mask_token": OTHERS, "lm_head.weight": OTHERS}}, tmp_path / "beit.pth")
    weights = read_weights(tmp_path / "beit.pth")
    assert (weights.layout, weights.licence) == ("beit", "Apache-2.0")
    assert torch.equal(_tokens_of_file(tmp_path / "beit.pth", heads=None), tiny.tokens(beit))


def test_each_layout_has_its_authors_normalisation(vit, tmp_path):
    for name, (wrap, layout, _) in FILES.items():
        torch.save(wrap(vit.state_dict()), tmp_path / "file.pth")
        weights = read_weights(tmp_path / "file.pth")
        known = (IMAGENET_MEAN, IMAGENET_STD) if layout != "timm" else (None, None)  # many use timm's names
        assert (weights.mean, weights.std) == known, name
    torch.save({"model": _timm("beit_base_patch16_224", use_rel_pos_bias=True).state_dict()}, tmp_path / "beit.pth")
    record = load_encoder(str(tmp_path / "beit.pth")).record
    assert (record.mean, record.std) == ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


def test_beit_two_with_another_normalisation_is_refused(tmp_path):
    state = _timm("beit_base_patch16_224", use_rel_pos_bias=True).state_dict()
    torch.save({"model": state | {"cls_pt_layers.0.norm1.weight": torch.ones(32)}}, tmp_path / "beit2.pth")
    with pytest.raises(WeightsError, match=r"unexpected 'cls_pt_layers\.0\.norm1\.weight'"):
        build_from(read_weights(tmp_path / "beit2.pth"))


def test_a_fine_tuned_beit_has_no_norm_over_its_tokens_and_is_refused(tmp_path):
    state = _timm("beit_base_patch16_224").state_dict()
    renamed = {key.replace("norm.", "fc_norm.") if key.startswith("norm.") else key: v for key, v in state.items()}
    torch.save({"model": renamed}, tmp_path / "beit.pth")
    with pytest.raises(WeightsError, match=r"'norm\.weight'.*pt22k"):
        build_from(read_weights(tmp_path / "beit.pth"))


def test_numpy_scalars_beside_the_weights_are_read(vit, tmp_path):
    torch.save({"state_dict": vit.state_dict(), "best_acc1": np.float64(0.5), "n": np.int64(3)}, tmp_path / "file.pth")
    assert torch.equal(_tokens_of_file(tmp_path / "file.pth"), tiny.tokens(vit))
