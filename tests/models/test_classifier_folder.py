"""A classifier's folder in plain timm: the same answers, and the same pixels before them."""

import json
from pathlib import Path
from typing import Literal

import pytest
import timm
import torch
from PIL import Image
from torchvision.transforms.v2.functional import pil_to_tensor

from dmt_ds.config.methods import AugmentConfig, ClassifyConfig
from dmt_ds.config.schema import DataConfig, StudentConfig
from dmt_ds.data.augment import normalize
from dmt_ds.data.views import center_crop
from dmt_ds.downstream.classification import ClassificationTask
from dmt_ds.downstream.classifier import Classifier
from dmt_ds.errors import WeightsError
from dmt_ds.models.backbone_folder import needs_dmt_ds
from dmt_ds.models.classifier_folder import save_classifier
from dmt_ds.models.encoders import load_encoder
from dmt_ds.models.vit import build_vit

STUDENT = StudentConfig(patch_size=8, embed_dim=24, depth=2, num_heads=3)
Pooling = Literal["class", "patch_mean"]
CLASSES = ("tench", "Löffel", "church")
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)


def saved(
    folder: Path, pooling: Pooling, data: DataConfig, student: StudentConfig = STUDENT, frozen: bool = False
) -> Classifier:
    torch.manual_seed(0)
    module = Classifier(build_vit(student, data.image_size), len(CLASSES), pooling, frozen).eval()
    if frozen:
        torch.nn.init.normal_(module.feature_norm.running_mean)
        torch.nn.init.uniform_(module.feature_norm.running_var, 0.1, 2)
    torch.nn.init.normal_(module.vit.norm.weight)
    torch.nn.init.normal_(module.head.weight)
    save_classifier(
        folder, module.timm_state({}), student, data, pooling, CLASSES, norms_the_mean=module.norms_the_mean,
        mean=MEAN, std=STD, provenance={"teachers": {"mae": {"licence": "CC-BY-NC-4.0"}}},
    )  # fmt: skip
    return module


def test_writing_it_while_a_run_trains_draws_no_random_number(tmp_path: Path) -> None:
    data = DataConfig(image_size=32)
    module = Classifier(build_vit(STUDENT, 32), len(CLASSES), "class", False)
    before = torch.get_rng_state()
    save_classifier(
        tmp_path / "classifier", module.timm_state({}), STUDENT, data, "class", CLASSES, norms_the_mean=True,
        mean=MEAN, std=STD, provenance={},
    )  # fmt: skip
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("pooling", ["class", "patch_mean"])
def test_plain_timm_gives_the_same_scores(tmp_path: Path, pooling: Pooling, frozen: bool) -> None:
    module = saved(tmp_path / "classifier", pooling, DataConfig(image_size=32), frozen=frozen)
    theirs = timm.create_model(f"local-dir:{tmp_path / 'classifier'}", pretrained=True).eval()
    images = torch.randn(7, 3, 32, 32)
    torch.testing.assert_close(theirs(images), module(images, torch.arange(7)), rtol=0, atol=1e-5)
    assert isinstance(theirs.fc_norm, torch.nn.Identity) == (pooling == "class" or frozen)
    assert theirs.pretrained_cfg["label_names"] == list(CLASSES)
    assert theirs.pretrained_cfg["license"] == "cc-by-nc-4.0"
    assert json.loads((tmp_path / "classifier" / "classes.json").read_text(encoding="utf-8")) == list(CLASSES)


@pytest.mark.parametrize("image_size", [32, 96])
def test_timms_evaluation_transform_shows_the_pixels_that_it_was_judged_on(tmp_path: Path, image_size: int) -> None:
    saved(tmp_path / "classifier", "class", DataConfig(image_size=image_size, interpolation="bilinear"))
    theirs = timm.create_model(f"local-dir:{tmp_path / 'classifier'}", pretrained=True)
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(theirs))
    ramp = torch.arange(150 * 201).reshape(150, 201) % 251
    image = Image.fromarray(torch.stack([ramp, ramp.flip(0), ramp.flip(1)], dim=2).to(torch.uint8).numpy())
    ours = normalize(center_crop(pil_to_tensor(image), image_size, "bilinear")[None], MEAN, STD)[0]
    assert (transform(image) - ours).abs().max() < 1.5 / 255 / min(STD)  # a step of rounding


def test_a_last_block_with_other_heads_says_that_timm_can_not_build_it(tmp_path: Path) -> None:
    student = STUDENT.model_copy(update={"last_block_num_heads": 2})
    saved(tmp_path / "classifier", "class", DataConfig(image_size=32), student)
    assert needs_dmt_ds(tmp_path / "classifier")


@pytest.mark.parametrize("pooling", ["class", "patch_mean"])
def test_training_goes_on_with_its_head(tmp_path: Path, pooling: Pooling) -> None:
    module = saved(tmp_path / "classifier", pooling, DataConfig(image_size=32))
    again = ClassificationTask(init_from(tmp_path), ClassifyConfig(pooling=pooling), 32, AugmentConfig(), CLASSES)
    images = torch.randn(3, 3, 32, 32)
    assert torch.equal(again.module.eval()(images, torch.arange(3)), module(images, torch.arange(3)))


@pytest.mark.parametrize("pooling", ["class", "patch_mean"])
def test_as_an_encoder_it_is_its_vit(tmp_path: Path, pooling: Pooling) -> None:
    module = saved(tmp_path / "classifier", pooling, DataConfig(image_size=32))
    state = load_encoder(str(tmp_path / "classifier"), 32).vit.state_dict()
    assert all(torch.equal(state[key], value) for key, value in module.vit.state_dict().items())
    assert state.keys() == module.vit.state_dict().keys()


@pytest.mark.parametrize(
    ("classes", "pooling", "message"),
    [
        (("tench", "church"), "class", r"its head has 3 classes .*, the images have 2 \(tench, church\)"),
        (("tench", "spoon", "church"), "class", "class 1 is 'Löffel', of the images 'spoon'"),
        (CLASSES, "patch_mean", "its head is for classify.pooling=class"),
    ],
)
def test_a_head_of_other_classes_or_pooling_is_refused_with_the_way_out(
    tmp_path: Path, classes: tuple[str, ...], pooling: Pooling, message: str
) -> None:
    saved(tmp_path / "classifier", "class", DataConfig(image_size=32))
    with pytest.raises(WeightsError, match=rf"{tmp_path}/classifier: {message}.*take the encoder alone"):
        ClassificationTask(init_from(tmp_path), ClassifyConfig(pooling=pooling), 32, AugmentConfig(), classes)


def init_from(folder: Path) -> StudentConfig:
    return STUDENT.model_copy(update={"init_from": str(folder / "classifier")})
