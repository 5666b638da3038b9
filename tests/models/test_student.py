import math

import pytest
import torch
from torch import nn

from dmt_ds.errors import ConfigError
from dmt_ds.models.relations import RelationStudent
from dmt_ds.models.student import Student, build_adapter
from tests.models import tiny

SEEDS = torch.arange(2)


def test_a_student_gives_tokens_of_each_targets_width():
    student = Student(tiny.vit(), {"mae": 48, "ibot": 32}, "auto")
    out = student(tiny.normalised(), SEEDS)
    assert {name: tuple(t.shape) for name, t in out.items()} == {
        "mae": (2, tiny.NUM_TOKENS, 48),
        "ibot": (2, tiny.NUM_TOKENS, 32),
    }


def test_bytes_that_nobody_has_normalised_are_refused():
    for student in (Student(tiny.vit(), {"fused": 48}), RelationStudent(tiny.vit())):
        with pytest.raises(TypeError, match=r"images are torch\.uint8: a student takes normalised floats"):
            student(tiny.pictures(), SEEDS)


def test_an_adapter_between_equal_widths_is_the_identity_unless_asked_for():
    assert isinstance(build_adapter("auto", 32, 32), nn.Identity)
    assert isinstance(build_adapter("linear", 32, 32), nn.Linear)


@pytest.mark.parametrize("kind", ["auto", "linear", "ln_linear", "mlp"])
def test_every_adapter_maps_to_the_teachers_width(kind):
    assert build_adapter(kind, 32, 48)(torch.randn(2, 5, 32)).shape == (2, 5, 48)


def test_a_linear_adapter_has_a_bias_and_nothing_after_it():
    adapter = build_adapter("auto", 32, 48)
    assert isinstance(adapter, nn.Linear)
    assert adapter.bias is not None


@pytest.mark.parametrize("kind", ["auto", "linear", "ln_linear", "mlp"])
def test_the_linear_maps_of_an_adapter_start_as_the_vits_own(kind):
    for linear in (part for part in build_adapter(kind, 32, 48).modules() if isinstance(part, nn.Linear)):
        largest = math.sqrt(6 / (linear.in_features + linear.out_features))  # Xavier's
        assert 0.98 * largest < linear.weight.abs().max() <= largest
        assert linear.bias.abs().max() == 0


def test_an_identity_between_different_widths_is_refused_with_both():
    with pytest.raises(ConfigError, match="32 wide and its teacher 48"):
        Student(tiny.vit(), {"fused": 48}, "identity")


def test_gradients_reach_the_vit_and_every_adapter():
    student = Student(tiny.vit(), {"a": 48, "b": 40}, "auto").train()
    sum(t.square().mean() for t in student(tiny.normalised(), SEEDS).values()).backward()
    without = [name for name, p in student.named_parameters() if p.requires_grad and p.grad is None]
    assert without == []


def test_a_bf16_student_takes_float32_images():
    student = Student(tiny.vit(), {"fused": 48}, "auto").to(torch.bfloat16)
    assert student(tiny.normalised(), SEEDS)["fused"].dtype == torch.bfloat16


def test_the_encoder_alone_is_what_stays_after_training():
    vit = tiny.vit()
    assert Student(vit, {"fused": 48}).vit is vit
