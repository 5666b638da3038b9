"""What holds for every method that makes a teacher: it learns, it can be continued, it computes in bf16."""

import copy

import pytest
import torch

from dmt_ds.config.schema import StudentConfig
from dmt_ds.data.views import center_crop
from dmt_ds.engine.checkpoints.untrained import restore_untrained, untrained_state
from dmt_ds.engine.task import Progress, Task
from dmt_ds.errors import ConfigError
from dmt_ds.methods.mae import MaeTask
from dmt_ds.models.vit import tokens_of
from tests.methods import tiny

each_method = pytest.mark.parametrize("name", tiny.NAMES)


def class_token_accuracy(task: Task) -> float:
    """Share of the validation digits whose nearest training digit, by cosine of class tokens, has their label."""
    vit = copy.deepcopy(task.backbone()).eval()
    features, labels = [], []
    for split in ("train", "val"):
        images, of_split = tiny.digits(split)
        small = torch.stack([center_crop(image, 16, "bilinear") for image in images])
        with torch.no_grad():
            tokens = tokens_of(vit, tiny.normalised(small))[:, 0]
        features.append(torch.nn.functional.normalize(tokens, dim=1))
        labels.append(of_split)
    nearest = (features[1] @ features[0].T).argmax(dim=1)
    return (labels[0][nearest] == labels[1]).float().mean().item()


def mean_over(history: list[dict[str, float]], name: str) -> float:
    return sum(metrics[name] for metrics in history) / len(history)


def test_the_guess_of_hidden_pixels_gets_better() -> None:
    history = tiny.train(tiny.task("mae"), steps=40)
    assert mean_over(history[-5:], "loss") < 0.7 * mean_over(history[:5], "loss")


def test_contrast_finds_the_other_crop_and_learns_to_tell_digits_apart() -> None:
    task = tiny.task("moco_v3", student=tiny.STUDENT.model_copy(update={"drop_path": 0.0}))
    untrained = class_token_accuracy(task)
    history = tiny.train(task, steps=300, size=48)
    assert mean_over(history[-10:], "loss") < 0.9 * mean_over(history[:10], "loss")
    assert mean_over(history[-10:], "train/contrastive_accuracy") > 3 / 48  # chance is 1 in 48
    assert class_token_accuracy(task) > untrained + 0.05


@pytest.mark.parametrize("name", ["ibot", "dino"])
def test_the_student_predicts_its_teacher_better_than_who_knows_only_the_mean_target(name: str) -> None:
    # The loss itself is no sign: it rises while targets soften, and falls when the teacher collapses.
    history = tiny.train(tiny.easy_self_distillation(name), steps=60)
    for metrics in history:
        metrics["gain"] = metrics["train/teacher_entropy_mean"] - metrics["train/loss_class"]
    assert mean_over(history[:5], "gain") < 0
    assert mean_over(history[-10:], "gain") > 0.1  # nats; 0 is what knowing the mean gives


@each_method
def test_a_run_continued_from_its_state_is_bit_equal_to_an_unbroken_one(name: str) -> None:
    unbroken = tiny.task(name)
    tiny.train(unbroken, steps=2, size=8)
    resumed = tiny.task(name, seed=1)
    trained = {key for key, parameter in resumed.module.named_parameters() if parameter.requires_grad}
    # As after a checkpoint for another number of ranks: only optimized weights come back by themselves.
    weights = {key: value for key, value in unbroken.module.state_dict().items() if key in trained}
    resumed.module.load_state_dict(weights, strict=False)
    restore_untrained(resumed.module, copy.deepcopy(untrained_state(unbroken.module)))
    resumed.load_state_dict(copy.deepcopy(unbroken.state_dict()))
    data = tiny.batch(unbroken, 8, epoch=5)
    losses = [task.losses(task.module, data, Progress(2, 10), False).loss for task in (unbroken, resumed)]
    assert torch.equal(losses[0], losses[1])


@each_method
def test_what_is_loaded_is_not_shared_with_where_it_came_from(name: str) -> None:
    first, second = tiny.task(name), tiny.task(name, seed=1)
    second.load_state_dict(first.state_dict())
    before = copy.deepcopy(first.state_dict())
    tiny.train(second, steps=1, size=8)
    assert all(torch.equal(value, before[key]) for key, value in first.state_dict().items())


@each_method
def test_bf16_weights_give_a_float32_loss_and_finite_gradients(name: str) -> None:
    task = tiny.task(name)
    task.module.to(torch.bfloat16)
    loss = task.losses(task.module, tiny.batch(task), Progress(0, 10), True).loss
    assert loss.dtype == torch.float32
    loss.backward()
    gradients = [parameter.grad for parameter in task.module.parameters() if parameter.grad is not None]
    assert all(gradient.isfinite().all() for gradient in gradients)


@each_method
def test_every_trained_parameter_gets_a_gradient(name: str) -> None:
    task = tiny.task(name)
    task.losses(task.module, tiny.batch(task), Progress(5, 10), False).loss.backward()
    without = {key for key, p in task.module.named_parameters() if p.requires_grad and p.grad is None}
    assert without == ({"mask_token"} if name == "dino" else set())


@each_method
def test_metrics_are_detached_scalars(name: str) -> None:
    task = tiny.task(name)
    metrics = task.losses(task.module, tiny.batch(task), Progress(0, 10), True).metrics
    assert metrics
    for value in metrics.values():
        assert value.ndim == 0 and not value.requires_grad


def test_register_tokens_are_refused_with_what_to_take_instead() -> None:
    with pytest.raises(ConfigError, match=r"register tokens.*take vit_tiny"):
        MaeTask(StudentConfig(arch="vit_little_patch16_reg4_gap_256"), tiny.MAE, 224, tiny.PLAIN)
