import json
import subprocess
import sys

import pytest
import timm
import torch
from PIL import Image

from dmt_ds.config.section import IMAGENET_MEAN, IMAGENET_STD
from dmt_ds.data.augment import normalize
from dmt_ds.data.views import center_crop
from dmt_ds.errors import WeightsError
from dmt_ds.models.backbone_folder import (
    is_non_commercial,
    load_backbone,
    needs_dmt_ds,
    save_backbone,
    spdx_id,
    strictest_licence,
)
from dmt_ds.models.encoders import load_encoder
from dmt_ds.models.vit import build_vit, shape_of
from tests.models import tiny

PROVENANCE = {"task": "dmt", "step": 7, "teachers": {"mae": {"licence": "CC-BY-NC-4.0", "sha256": "ab"}}}


def _save(folder, vit, **changes):
    save_backbone(
        folder,
        vit.state_dict(),
        tiny.section(**changes),
        tiny.IMAGE_SIZE,
        mean=(0.1, 0.2, 0.3),
        std=(0.4, 0.5, 0.6),
        provenance=PROVENANCE,
    )


def test_a_saved_encoder_gives_the_same_tokens(tmp_path):
    vit = tiny.vit()
    _save(tmp_path / "backbone", vit)
    loaded, config, _ = load_backbone(tmp_path / "backbone")
    assert torch.equal(tiny.tokens(loaded.eval()), tiny.tokens(vit))
    assert config["dmt_ds"] == PROVENANCE
    assert config["pretrained_cfg"]["mean"] == [0.1, 0.2, 0.3]


def test_plain_timm_loads_it_with_equal_tokens_and_its_normalisation(tmp_path):
    vit = tiny.vit(depth=3)
    _save(tmp_path / "backbone", vit, depth=3)
    torch.save(tiny.normalised(), tmp_path / "images.pt")
    program = """
import sys, torch, timm
folder, images, out = sys.argv[1:]
vit = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
with torch.no_grad():
    tokens = vit.forward_features(torch.load(images))
data = timm.data.resolve_data_config({}, model=vit)
torch.save({"tokens": tokens, "mean": list(data["mean"]), "size": list(data["input_size"])}, out)
assert not any(name.startswith("dmt_ds") for name in sys.modules)
"""
    files = [tmp_path / name for name in ("backbone", "images.pt", "out.pt")]
    subprocess.run([sys.executable, "-c", program, *map(str, files)], check=True, cwd=tmp_path)
    found = torch.load(tmp_path / "out.pt")
    assert torch.equal(found["tokens"], tiny.tokens(vit))
    assert (found["mean"], found["size"]) == ([0.1, 0.2, 0.3], [3, 32, 32])


@pytest.mark.parametrize("image_size", [224, 112, 32])
def test_timm_prepares_a_picture_as_it_is_judged_here(image_size, tmp_path):
    section = tiny.section()
    vit = build_vit(section, image_size)
    save_backbone(
        tmp_path / "backbone",
        vit.state_dict(),
        section,
        image_size,
        interpolation="bilinear",
        provenance=PROVENANCE,
    )
    loaded = timm.create_model(f"local-dir:{tmp_path / 'backbone'}", pretrained=True)
    prepare = timm.data.create_transform(**timm.data.resolve_data_config({}, model=loaded))
    pixels = torch.nn.functional.interpolate(torch.rand(1, 3, 9, 12), (2 * image_size, 3 * image_size), mode="bilinear")
    pixels = (255 * pixels[0]).to(torch.uint8)
    theirs = prepare(Image.fromarray(pixels.permute(1, 2, 0).numpy()))
    ours = center_crop(pixels, image_size, "bilinear")
    torch.testing.assert_close(theirs, normalize(ours[None], IMAGENET_MEAN, IMAGENET_STD)[0], atol=0.02, rtol=0)


def test_transformers_loads_it_too(tmp_path):
    transformers = pytest.importorskip("transformers")
    vit = tiny.vit()
    _save(tmp_path / "backbone", vit)
    model = transformers.AutoModel.from_pretrained(tmp_path / "backbone").eval()
    with torch.no_grad():
        theirs = model(tiny.normalised()).last_hidden_state
    torch.testing.assert_close(theirs, tiny.tokens(vit), atol=1e-6, rtol=0)


def test_a_last_block_with_other_heads_is_saved_and_gives_the_same_tokens(tmp_path):
    vit = tiny.vit(last_block_num_heads=4)
    others = tiny.vit()
    others.load_state_dict(vit.state_dict())
    assert not torch.allclose(tiny.tokens(others), tiny.tokens(vit), atol=1e-3)
    _save(tmp_path / "backbone", vit, last_block_num_heads=4)
    loaded = load_encoder(str(tmp_path))
    assert torch.equal(tiny.tokens(loaded.vit), tiny.tokens(vit))
    assert loaded.record.shape == shape_of(vit)
    assert needs_dmt_ds(tmp_path / "backbone")
    with pytest.raises(TypeError, match="last_block_num_heads"):  # rather than other tokens
        timm.create_model(f"local-dir:{tmp_path / 'backbone'}", pretrained=True)


def test_a_last_block_with_the_heads_of_all_is_nothing_special(tmp_path):
    _save(tmp_path / "backbone", tiny.vit(), last_block_num_heads=tiny.HEADS)
    assert not needs_dmt_ds(tmp_path / "backbone")


def test_weights_are_kept_in_float32(tmp_path):
    vit = tiny.vit().to(torch.bfloat16)
    _save(tmp_path / "backbone", vit)
    assert {p.dtype for p in load_backbone(tmp_path / "backbone")[0].parameters()} == {torch.float32}


def test_saving_again_replaces_the_folder_and_leaves_nothing_beside_it(tmp_path):
    _save(tmp_path / "backbone", tiny.vit(seed=0))
    newer = tiny.vit(seed=1)
    _save(tmp_path / "backbone", newer)
    assert torch.equal(tiny.tokens(load_backbone(tmp_path / "backbone")[0].eval()), tiny.tokens(newer))
    assert [path.name for path in tmp_path.iterdir()] == ["backbone"]


def test_a_student_of_a_non_commercial_teacher_is_non_commercial(tmp_path):
    _save(tmp_path / "backbone", tiny.vit())
    config = json.loads((tmp_path / "backbone" / "config.json").read_text())
    assert config["pretrained_cfg"]["license"] == "cc-by-nc-4.0"
    assert strictest_licence(["Apache-2.0", "CC-BY-NC-4.0", None]) == "CC-BY-NC-4.0"
    assert strictest_licence(["Apache-2.0", None]) is None
    assert strictest_licence(["Apache-2.0", "Apache-2.0"]) == "Apache-2.0"
    assert strictest_licence([]) is None


@pytest.mark.parametrize(
    ("licence_in_timm", "binds"),
    [
        ("cc-by-nc-4.0", True),
        ("fair-noncommercial-research-license", True),
        ("apple-amlr", True),
        ("apache-2.0", False),
        ("dinov3-license", False),
        ("unknown", False),
        (None, False),
    ],
)
def test_what_timm_says_of_a_licence_is_understood(licence_in_timm, binds):
    licence = spdx_id(licence_in_timm)
    assert is_non_commercial(licence) == binds
    assert strictest_licence(["MIT", licence]) == (
        licence if binds or licence is None else " AND ".join(sorted(["MIT", licence]))
    )


@pytest.mark.parametrize(
    "licences", [["MIT"], ["BSD-3-Clause", "MIT"], ["Apache-2.0", "BSD-2-Clause"], ["CC-BY-4.0"], [None]]
)
def test_the_licence_of_a_folder_is_the_spdx_id_that_went_in(tmp_path, licences):
    teachers = {str(number): {"licence": licence} for number, licence in enumerate(licences)}
    state, section = tiny.vit().state_dict(), tiny.section()
    save_backbone(tmp_path, state, section, tiny.IMAGE_SIZE, provenance={"teachers": teachers})
    assert load_encoder(str(tmp_path)).record.licence == strictest_licence(licences)


def test_a_damaged_folder_is_named(tmp_path):
    _save(tmp_path / "backbone", tiny.vit())
    (tmp_path / "backbone" / "model.safetensors").write_bytes(b"x")
    with pytest.raises(WeightsError, match=r"model\.safetensors: damaged"):
        load_backbone(tmp_path / "backbone")
    (tmp_path / "backbone" / "config.json").write_text("{")
    with pytest.raises(WeightsError, match=r"config\.json: not the config of a timm model"):
        load_backbone(tmp_path / "backbone")
