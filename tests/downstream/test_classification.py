"""The classifier against timm's, its loss and its accuracy against loops, on real digits."""

from collections.abc import Mapping
from pathlib import Path

import pytest
import timm
import torch
from torch import Tensor

from dmt_ds.config.methods import AugmentConfig, ClassifyConfig
from dmt_ds.config.schema import DataConfig, RunConfig
from dmt_ds.data.augment import normalize
from dmt_ds.data.batch import Batch
from dmt_ds.data.rand_augment import RandAugment
from dmt_ds.data.sources import ImageSource, open_source
from dmt_ds.downstream.classification import ClassificationTask, soft_cross_entropy, soft_targets
from dmt_ds.downstream.classifier import Classifier
from dmt_ds.engine.task import Progress
from dmt_ds.models.backbone_folder import save_backbone
from dmt_ds.models.vit import build_vit
from tests.downstream.classified import (
    CLASS_NAMES,
    IMAGE_SIZE,
    PLAIN,
    STUDENT,
    accuracy,
    digits_batch,
    part,
    spaced_images,
    task,
)
from tests.middles import middles


def test_targets_of_mixed_images_are_what_a_loop_says_and_sum_to_one() -> None:
    labels, others, share = torch.tensor([0, 3, 2]), torch.tensor([3, 0, 2]), torch.tensor([0.7, 0.25, 0.6])
    found = soft_targets(labels, others, share, num_classes=5, smoothing=0.1)
    expected = torch.zeros(3, 5)
    for row in range(3):
        for name in range(5):
            mixture = share[row] * (labels[row] == name) + (1 - share[row]) * (others[row] == name)
            expected[row, name] = 0.9 * mixture + 0.1 / 5
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(found.sum(dim=1), torch.ones(3))


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_the_loss_is_a_loop_over_images_and_classes_in_float32(kind: torch.dtype) -> None:
    logits = (10 * torch.randn(4, 6)).to(kind)
    targets = torch.randn(4, 6).softmax(dim=1)
    total = 0.0
    for row in range(4):
        scores = logits[row].double()
        normaliser = sum(torch.exp(scores[other] - scores.max()) for other in range(6)).log() + scores.max()
        total -= sum(targets[row, name].double() * (scores[name] - normaliser) for name in range(6))
    loss = soft_cross_entropy(logits, targets)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(float(total) / 4, rel=1e-5)


def test_without_mixing_it_is_cross_entropy_with_label_smoothing() -> None:
    logits, labels = torch.randn(8, 10), torch.arange(8)
    targets = soft_targets(labels, labels, torch.ones(8), 10, 0.1)
    expected = torch.nn.functional.cross_entropy(logits, labels, label_smoothing=0.1)
    torch.testing.assert_close(soft_cross_entropy(logits, targets), expected)


@pytest.mark.parametrize(("pooling", "of_timm"), [("class", "token"), ("patch_mean", "avg")])
def test_the_classifier_is_timms_with_the_same_weights(pooling: str, of_timm: str) -> None:
    module = Classifier(build_vit(STUDENT, IMAGE_SIZE), len(CLASS_NAMES), pooling).eval()
    theirs = timm.create_model(
        "vit_tiny_patch16_224", img_size=IMAGE_SIZE, patch_size=4, embed_dim=48, depth=2, num_heads=3,
        num_classes=len(CLASS_NAMES), global_pool=of_timm,
    ).eval()  # fmt: skip
    torch.nn.init.normal_(module.vit.norm.weight)
    torch.nn.init.normal_(module.vit.norm.bias)
    state = dict(module.vit.state_dict()) | {f"head.{key}": value for key, value in module.head.state_dict().items()}
    if pooling == "patch_mean":
        state = {key.replace("norm.", "fc_norm.") if key.startswith("norm.") else key: state[key] for key in state}
    theirs.load_state_dict(state, strict=True)
    images, seeds = torch.randn(3, 3, IMAGE_SIZE, IMAGE_SIZE), torch.arange(3)
    torch.testing.assert_close(module(images, seeds), theirs(images))


@pytest.mark.parametrize("pooling", ["class", "patch_mean"])
def test_every_trained_weight_has_a_gradient(pooling: str) -> None:
    of = task(pooling=pooling)
    of.losses(of.module, digits_batch(of), Progress(0, 1), True).loss.backward()
    for name, parameter in of.module.named_parameters():
        assert not parameter.requires_grad or (parameter.grad is not None and parameter.grad.abs().sum() > 0), name


def test_the_backbone_is_the_vit_without_head_and_loads_as_an_encoder(tmp_path: Path) -> None:
    of = task(pooling="patch_mean")
    state = of.backbone().state_dict()
    save_backbone(tmp_path / "backbone", state, STUDENT, IMAGE_SIZE, provenance={"teachers": {}})
    again = ClassificationTask(
        STUDENT.model_copy(update={"init_from": str(tmp_path)}), ClassifyConfig(), IMAGE_SIZE, PLAIN, CLASS_NAMES
    )
    assert all(torch.equal(again.backbone().state_dict()[key], value) for key, value in state.items())


@pytest.mark.parametrize(
    ("given", "settings", "std"),
    [
        (True, {}, 2e-5),
        (False, {}, 0.02),
        (True, {"frozen": True}, 0.01),
        (True, {"head_std": 0.3}, 0.3),
        (False, {"head_std": 0.3}, 0.3),
    ],
)
def test_a_head_starts_as_small_as_its_authors(tmp_path: Path, given: bool, settings: dict, std: float) -> None:
    vit = build_vit(STUDENT, IMAGE_SIZE)
    save_backbone(tmp_path / "backbone", vit.state_dict(), STUDENT, IMAGE_SIZE, provenance={"teachers": {}})
    student = STUDENT.model_copy(update={"init_from": str(tmp_path) if given else None})
    of = ClassificationTask(student, ClassifyConfig(**settings), IMAGE_SIZE, PLAIN, CLASS_NAMES)
    assert of.module.head.weight.std().item() == pytest.approx(std, rel=0.15)


def test_a_norm_in_another_place_starts_afresh_and_the_class_tokens_own_is_kept(tmp_path: Path) -> None:
    vit = build_vit(STUDENT, IMAGE_SIZE)
    torch.nn.init.constant_(vit.norm.weight, 3.0)
    save_backbone(tmp_path / "backbone", vit.state_dict(), STUDENT, IMAGE_SIZE, provenance={"teachers": {}})
    student = STUDENT.model_copy(update={"init_from": str(tmp_path)})
    gains = {}
    for pooling in ("class", "patch_mean"):
        section = ClassifyConfig(pooling=pooling)
        of = ClassificationTask(student, section, IMAGE_SIZE, PLAIN, CLASS_NAMES)
        assert torch.equal(of.module.vit.blocks[0].attn.qkv.weight, vit.blocks[0].attn.qkv.weight)
        gains[pooling] = of.module.vit.norm.weight.unique().tolist()
    assert gains == {"class": [3.0], "patch_mean": [1.0]}


def test_the_crop_carries_rand_augment_with_the_datas_colour_and_interpolation() -> None:
    data = DataConfig(image_size=32, interpolation="bilinear")
    (spec,) = task(rand_augment_magnitude=7.0).crops(data)
    assert spec.rand_augment == RandAugment(7.0, 0.5, (124, 116, 104), "bilinear")
    (plain,) = task(rand_augment_magnitude=0.0).crops(data)
    assert plain.rand_augment is None


class FixedAnswers:
    """A model that has its answer ready."""

    def __init__(self, logits: Tensor) -> None:
        self.logits = logits.requires_grad_()

    def __call__(self, images: Tensor, seeds: Tensor) -> Tensor:
        return self.logits[: len(images)]


def metrics(of: ClassificationTask, answers: list[int], batch: Batch) -> Mapping[str, Tensor]:
    logits = torch.nn.functional.one_hot(torch.tensor(answers), len(CLASS_NAMES)).float()
    return of.losses(FixedAnswers(logits), batch, Progress(0, 1), True).metrics


def test_top1_is_accuracy_where_nothing_is_mixed() -> None:
    of = task(mixup=0, cutmix=0, erasing=0)
    batch = digits_batch(of, 4)
    labels = batch.labels.tolist()
    answers = [labels[0], (labels[1] + 1) % 10, labels[2], labels[3]]
    assert metrics(of, answers, batch)["train/top1"].item() == 0.75


def test_top1_counts_the_class_with_the_larger_part_of_a_mixture() -> None:
    of = task(mixup=0.0, cutmix=1.0, erasing=0)
    batch = digits_batch(of, 64)
    _, others, own_share = of._mixed(batch)
    larger = [own if share >= 0.5 else other for own, other, share in zip(batch.labels, others, own_share, strict=True)]
    assert 0 < sum(share < 0.5 for share in own_share) < 64
    assert metrics(of, [int(label) for label in larger], batch)["train/top1"].item() == 1.0


def test_a_step_is_the_same_however_the_batch_is_cut_between_pairs() -> None:
    of = task()
    batch = digits_batch(of, 16)
    whole = of.losses(of.module, batch, Progress(0, 1), True)
    parts = [
        of.losses(of.module, part(batch, slice(start, start + 4)), Progress(0, 1), True) for start in range(0, 16, 4)
    ]
    torch.testing.assert_close(torch.stack([each.loss for each in parts]).mean(), whole.loss)
    for name, value in whole.metrics.items():
        torch.testing.assert_close(torch.stack([each.metrics[name] for each in parts]).mean(), value)


def accuracy_by_a_loop(of: ClassificationTask, source: ImageSource) -> tuple[float, float]:
    right = [0, 0]
    for batch in middles(source, IMAGE_SIZE, 1):
        scores = of.module.eval()(normalize(batch.images, PLAIN.mean, PLAIN.std), batch.seeds)[0].tolist()
        better = sum(score > scores[source.label(int(batch.indices))] for score in scores)
        right = [right[0] + (better == 0), right[1] + (better < 5)]
    return right[0] / len(source), right[1] / len(source)


def test_accuracy_counts_every_validation_image_once() -> None:
    of = task()
    of.module.train()
    source = spaced_images(open_source(DataConfig(), "val"), 37)
    found = accuracy(of, middles(source, IMAGE_SIZE, 8))
    assert of.module.training
    assert found == pytest.approx(accuracy_by_a_loop(of, source))
    assert 0 < found.top1 < found.top5 < 1


def test_an_odd_micro_batch_is_refused_where_images_are_mixed() -> None:
    settings = {"task": "classify", "train": {"micro_batch_size": 5, "global_batch_size": 5}}
    with pytest.raises(ValueError, match="micro_batch_size 5 is odd, but task classify mixes images two by two"):
        RunConfig.model_validate(settings)
    for way_out in ({"mix_probability": 0}, {"mixup": 0, "cutmix": 0}):
        RunConfig.model_validate(settings | {"classify": way_out})


def test_augmentation_of_the_recipe_reaches_the_model() -> None:
    plain = task(mixup=0, cutmix=0, erasing=0)
    jittered = ClassificationTask(
        STUDENT, ClassifyConfig(mixup=0, cutmix=0, erasing=0), IMAGE_SIZE, AugmentConfig(), CLASS_NAMES
    )
    batch = digits_batch(plain, 4)
    assert torch.equal(plain._mixed(batch)[0], normalize(batch.images, PLAIN.mean, PLAIN.std))
    assert not torch.equal(jittered._mixed(batch)[0], plain._mixed(batch)[0])


def test_a_frozen_encoder_stays_and_only_the_head_has_gradients(tmp_path: Path) -> None:
    of = frozen_task(tmp_path)
    before = {key: value.clone() for key, value in of.module.vit.state_dict().items()}
    of.module.train()
    assert not of.module.vit.training and of.module.feature_norm.training
    of.losses(of.module, digits_batch(of), Progress(0, 1), True).loss.backward()
    assert {name for name, value in of.module.named_parameters() if value.grad is not None} == {
        "head.weight",
        "head.bias",
    }
    assert all(torch.equal(of.module.vit.state_dict()[key], value) for key, value in before.items())


def test_a_frozen_encoder_leaves_as_it_came_though_its_engine_rounds_it(tmp_path: Path) -> None:
    of = frozen_task(tmp_path)
    before = {f"vit.{key}": value.clone() for key, value in of.module.vit.state_dict().items()}
    of.module.to(torch.bfloat16)
    assert of.untouched.keys() == before.keys()
    assert all(torch.equal(of.untouched[key], value) for key, value in before.items())
    assert of.module.feature_norm.running_mean.dtype == torch.float32
    assert of.module(torch.randn(2, 3, IMAGE_SIZE, IMAGE_SIZE), torch.arange(2)).dtype == torch.bfloat16


def test_fixed_positions_leave_as_they_came_under_a_trained_encoder() -> None:
    of = task(STUDENT.model_copy(update={"positions": "sincos"}))
    before = of.module.vit.pos_embed.detach().clone()
    of.module.to(torch.bfloat16)
    assert of.untouched.keys() == {"vit.pos_embed"} and torch.equal(of.untouched["vit.pos_embed"], before)


def frozen_task(folder: Path) -> ClassificationTask:
    vit = build_vit(STUDENT, IMAGE_SIZE)
    save_backbone(folder / "backbone", vit.state_dict(), STUDENT, IMAGE_SIZE, provenance={"teachers": {}})
    student = STUDENT.model_copy(update={"init_from": str(folder)})
    return task(student, frozen=True, mixup=0, cutmix=0)


def test_the_running_mean_is_a_loop_over_steps_and_is_what_is_published() -> None:
    of = task(ema_decay=0.5)
    expected = {name: value.detach().clone() for name, value in of.module.named_parameters()}
    for step in range(1, 25):
        decay = min(0.5, step / (step + 9))
        for name, value in of.module.named_parameters():
            if value.requires_grad:
                torch.nn.init.normal_(value)
            expected[name] = decay * expected[name] + (1 - decay) * value.detach()
        of.after_step(Progress(step, 100))
    state = of.state_dict()
    torch.testing.assert_close({name: state[name] for name in expected}, expected)
    again = task(ema_decay=0.5)
    again.load_state_dict(state)
    for published in (of.published, again.published):
        assert all(torch.equal(value, state[key]) for key, value in published.state_dict().items())
    assert of.backbone() is of.published.vit and of.published is not of.module


def test_weights_and_their_running_mean_are_judged_beside_each_other() -> None:
    of = task(ema_decay=0.9)
    torch.nn.init.normal_(of.module.head.weight)
    source = spaced_images(open_source(DataConfig(), "val"), 12)
    answers = of.answers(of.evaluated_models(of.module), middles(source, IMAGE_SIZE, 5))
    assert list(answers) == ["", "ema_"]
    pixels = normalize(torch.cat([b.images for b in middles(source, IMAGE_SIZE, 5)]), PLAIN.mean, PLAIN.std)
    for name, module in (("", of.module), ("ema_", of.published)):
        scores = module.eval()(pixels, torch.arange(12)).softmax(dim=1)
        torch.testing.assert_close(answers[name].probabilities, scores.sort(dim=1, descending=True).values[:, :5])
        assert answers[name].rows.tolist() == list(range(12))
    assert not torch.equal(answers[""].probabilities, answers["ema_"].probabilities)


def test_without_a_decay_there_is_no_second_network() -> None:
    of = task()
    assert of.state_dict() == {} and of.published is of.module and list(of.evaluated_models(of.module)) == [""]
