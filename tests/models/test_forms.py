"""A model that left gives a stranger the trainer's own answers: plain libraries, in a process of their own, decide."""

import importlib.util
import json
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest
import timm
import torch
from PIL import Image
from torch import Tensor

from dmt_ds.config.evaluation import eval_short_side
from dmt_ds.config.schema import DataConfig
from dmt_ds.config.section import IMAGENET_MEAN, IMAGENET_STD
from dmt_ds.data.augment import normalize
from dmt_ds.data.views import center_crop
from dmt_ds.downstream.classifier import Classifier
from dmt_ds.errors import ExportError, WeightsError
from dmt_ds.models.backbone_folder import save_backbone, timm_config, vit_without_weights
from dmt_ds.models.classifier_folder import save_classifier
from dmt_ds.models.forms import FORMS, Form, write_form
from dmt_ds.models.portable import PortableModel, Preprocessing, read_portable
from dmt_ds.models.vit import build_vit, shape_of
from tests import processes
from tests.models import strangers, tiny

TOLERANCES = {"timm": 1e-5, "transformers": 1e-5, "torch_export": 1e-5, "onnx": 1e-4}
CLASSES = ("tench", 'a "quoted" one', "Löffel")
ENCODERS: dict[str, dict[str, object]] = {
    "plain": {"drop_path": 0.1},
    "of twice the heads": {"num_heads": 4},  # as MoCo v3's ViT-S: no shape tells
    "with learned positions": {"positions": "learned", "depth": 3},
}
WRITTEN = {
    "plain": tuple(FORMS),
    "of twice the heads": ("timm", "transformers"),  # they build the model anew; the others hold the computation
    "with learned positions": ("timm", "transformers"),
    "classes by class token": ("timm", "transformers"),
    "classes by patches": ("timm", "onnx"),
}
Pooling = Literal["class", "patch_mean"]


def encoder(folder: Path, **changes: object) -> tuple[Callable[[Tensor], Tensor], PortableModel]:
    """What the trainer's ViT answers, and what is read from the folder that the trainer leaves."""
    torch.manual_seed(0)
    section = tiny.section(**changes)
    vit = build_vit(section, tiny.IMAGE_SIZE).eval()
    positions = vit.pos_embed.detach().clone()
    tiny.randomise(vit)
    if section.positions == "sincos":
        vit.pos_embed.data.copy_(positions)
    save_backbone(folder, vit.state_dict(), section, tiny.IMAGE_SIZE, provenance={"task": "dmt", "teachers": {}})
    return lambda images: tiny.tokens(vit, images), read_portable(folder)


def classifier(folder: Path, pooling: Pooling) -> tuple[Callable[[Tensor], Tensor], PortableModel]:
    torch.manual_seed(0)
    module = Classifier(build_vit(tiny.section(), tiny.IMAGE_SIZE), len(CLASSES), pooling).eval()
    tiny.randomise(module)
    data = DataConfig(image_size=tiny.IMAGE_SIZE)
    normalisation = {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.25, 0.3)}
    save_classifier(
        folder, module.timm_state({}), tiny.section(), data, pooling, CLASSES,
        norms_the_mean=module.norms_the_mean, **normalisation, provenance={},
    )  # fmt: skip
    return lambda images: module(images, torch.zeros(len(images))).detach(), read_portable(folder)


@pytest.fixture(scope="module")
def answers(tmp_path_factory) -> tuple[dict[str, list[Tensor]], dict[str, dict[str, list[Tensor]]]]:
    """The trainer's own answers, and those of each form, by model; for a batch of 1 and one of 7."""
    root = tmp_path_factory.mktemp("forms")
    models = {name: encoder(root / "runs" / name, **changes) for name, changes in ENCODERS.items()}
    models["classes by class token"] = classifier(root / "runs" / "by class", "class")
    models["classes by patches"] = classifier(root / "runs" / "by patches", "patch_mean")
    batches = [tiny.normalised(1, seed=3), tiny.normalised(7, seed=4)]
    for name, (_, model) in models.items():
        for form in WRITTEN[name]:
            folder = root / "exported" / name / form
            folder.mkdir(parents=True)
            write_form(form, model, folder)
            assert str(Path(__file__).parents[2]).encode() not in b"".join(f.read_bytes() for f in folder.iterdir())
        torch.save(batches, root / "exported" / name / "images.pt")
    command = [sys.executable, strangers.__file__, str(root / "exported"), str(root / "answers.pt")]
    done = subprocess.run(command, cwd=root, env=processes.environment(PYTHONPATH=""), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return {name: [ours(b) for b in batches] for name, (ours, _) in models.items()}, torch.load(root / "answers.pt")


@pytest.mark.parametrize(("name", "form"), [(name, form) for name, forms in WRITTEN.items() for form in forms])
def test_a_stranger_gets_the_trainers_own_answers(name, form, answers):
    ours, theirs = answers
    for expected, found in zip(ours[name], theirs[name][form], strict=True):
        assert expected.shape == found.shape and expected.std() > 0.1
        torch.testing.assert_close(found, expected, atol=TOLERANCES[form], rtol=0)


def test_heads_that_no_shape_tells_make_a_difference(answers):
    ours, _ = answers
    assert not torch.allclose(ours["plain"][0], ours["of twice the heads"][0], atol=1e-3)


@pytest.mark.parametrize(
    ("image_size", "picture"), [(32, (40, 60)), (64, (100, 90)), (64, (60, 150))]
)  # an odd margin may be halved otherwise
def test_transformers_prepares_a_picture_as_it_is_judged_here(image_size, picture, tmp_path):
    from transformers import AutoImageProcessor

    section = tiny.section()
    save_backbone(
        tmp_path / "backbone",
        build_vit(section, image_size).state_dict(),
        section,
        image_size,
        mean=(0.5, 0.4, 0.3),
        std=(0.2, 0.25, 0.3),
        provenance={},
    )
    FORMS["transformers"].write(read_portable(tmp_path / "backbone"), tmp_path)
    smooth = torch.nn.functional.interpolate(torch.rand(1, 3, 5, 7), picture, mode="bilinear")[0]
    pixels = (255 * smooth).to(torch.uint8)
    prepare = AutoImageProcessor.from_pretrained(tmp_path)
    theirs = prepare(Image.fromarray(pixels.permute(1, 2, 0).numpy()), return_tensors="pt")["pixel_values"]
    ours = normalize(center_crop(pixels, image_size)[None], (0.5, 0.4, 0.3), (0.2, 0.25, 0.3))
    torch.testing.assert_close(theirs, ours, atol=2 / 255 / 0.2, rtol=0)


def test_an_onnx_file_says_how_its_images_are_prepared_and_what_its_classes_are(tmp_path):
    import onnxruntime

    FORMS["onnx"].write(classifier(tmp_path / "classifier", "class")[1], tmp_path)
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    told = session.get_modelmeta().custom_metadata_map
    assert json.loads(told["mean"]) == [0.5, 0.4, 0.3] and json.loads(told["std"]) == [0.2, 0.25, 0.3]
    assert tuple(json.loads(told["class_names"])) == CLASSES
    (image,), (logits,) = session.get_inputs(), session.get_outputs()
    assert (image.name, image.shape) == ("images", ["batch", 3, tiny.IMAGE_SIZE, tiny.IMAGE_SIZE])
    assert (logits.name, logits.shape) == ("logits", ["batch", len(CLASSES)])


def test_a_last_block_with_other_heads_leaves_only_in_the_forms_that_hold_the_computation(tmp_path):
    answer, model = encoder(tmp_path / "backbone", last_block_num_heads=4)
    for form in ("timm", "transformers"):
        with pytest.raises(ExportError, match=rf"--format {form}: .*last block has 4 heads, the others 2"):
            write_form(form, model, tmp_path)
    assert write_form("torch_export", model, tmp_path) < 1e-5
    assert torch.equal(model(tiny.normalised()), answer(tiny.normalised()))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"arch": "vit_base_patch16_reg4_gap_256"}, "5 tokens before the patches"),
        ({"arch": "deit3_small_patch16_224"}, "ls1.gamma' has no place"),
        ({"arch": "vit_base_patch16_clip_quickgelu_224"}, "norm_pre.weight' has no place"),
    ],
)
def test_what_transformers_vit_does_not_have_is_named(changes, reason, tmp_path):
    _, model = encoder(tmp_path / "backbone", patch_size=16, **changes)
    with pytest.raises(ExportError, match=re.escape(reason) + ".*take --format timm"):
        write_form("transformers", model, tmp_path)


def test_classes_told_from_patches_are_refused_as_transformers_classifier(tmp_path):
    _, model = classifier(tmp_path / "classifier", "patch_mean")
    with pytest.raises(ExportError, match="classifies from the mean patch token"):
        write_form("transformers", model, tmp_path)


def test_what_answers_otherwise_than_the_model_is_refused(tmp_path, monkeypatch):
    _, model = encoder(tmp_path / "backbone")
    monkeypatch.setitem(FORMS, "timm", Form(lambda *_: None, lambda _: lambda images: model(images) + 1e-4))
    with pytest.raises(ExportError, match=r"outputs differ from the model's \(by 1.0e-04"):
        write_form("timm", model, tmp_path)


def test_missing_packages_are_named_with_the_way_to_get_them(tmp_path, monkeypatch):
    _, model = encoder(tmp_path / "backbone")
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name.startswith("onnx") else found(name))
    with pytest.raises(ExportError, match=r"onnx, onnxscript, onnxruntime: pip install 'dmt_ds\[export\]'"):
        write_form("onnx", model, tmp_path)


def test_a_classifier_without_its_names_is_refused(tmp_path):
    classifier(tmp_path / "classifier", "class")
    names = tmp_path / "classifier" / "classes.json"
    names.write_text('["one"]')
    with pytest.raises(WeightsError, match=r"classes\.json: 1 names for the 3 classes"):
        read_portable(tmp_path / "classifier")
    names.write_text("{")
    with pytest.raises(WeightsError, match=r"classes\.json: no list of class names"):
        read_portable(tmp_path / "classifier")


def test_the_short_side_is_the_one_that_it_was_judged_on_and_that_timm_takes():
    shape = vit_without_weights(tiny.section(), tiny.IMAGE_SIZE)
    for image_size in range(8, 1025):
        described = replace(shape_of(shape), image_size=image_size)
        config = timm_config(tiny.section(), described, IMAGENET_MEAN, IMAGENET_STD, "bicubic", {})
        assert Preprocessing.of_config(config["pretrained_cfg"]).short_side == eval_short_side(image_size)
    for share in (0.875, 0.9, 0.95, 1.0):
        (resize, *_) = timm.data.create_transform(224, crop_pct=share).transforms
        assert Preprocessing(224, share).short_side == resize.size


def test_the_short_side_comes_from_timms_share():
    data = {"input_size": [3, 224, 224], "crop_pct": 0.875, "mean": [0.1, 0.2, 0.3], "std": [1, 1, 1]}
    assert Preprocessing.of_config(data).short_side == 256
    assert Preprocessing.of_config({"input_size": [3, 32, 32]}).short_side == 32
