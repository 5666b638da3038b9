"""What the teachers contribute, on tokens whose answer is known."""

import math

import pytest
import torch
from torch import Tensor

from dmt_ds.distill.diagnostics import TeacherDiagnostics, linear_cka, relative_entropy


def random_tokens(seed: int, num_images: int = 8, num_channels: int = 16) -> Tensor:
    return torch.randn(num_images, 10, num_channels, generator=torch.Generator().manual_seed(seed))


def diagnose(teachers: dict[str, Tensor], **settings: object) -> dict[str, float]:
    fused = torch.stack(list(teachers.values())).sum(dim=0)
    metrics = TeacherDiagnostics(**settings)(teachers, {"fused": fused})  # type: ignore[arg-type]
    return {name: value.item() for name, value in metrics.items()}


def test_shares_of_the_sum_add_up_to_one() -> None:
    teachers = {"a": random_tokens(0), "b": 2 * random_tokens(1) + 1, "c": random_tokens(2) * 0.1}
    metrics = diagnose(teachers)
    for kind in ("share", "share_centred", "class_share", "class_share_centred"):
        assert sum(metrics[f"teachers/{name}/{kind}"] for name in teachers) == pytest.approx(1, abs=1e-5)


def test_weights_count_in_the_shares() -> None:
    tokens = random_tokens(0)
    metrics = diagnose({"a": tokens, "b": tokens}, weights={"a": 3.0, "b": 1.0})
    assert metrics["teachers/a/share"] == pytest.approx(0.75)
    assert metrics["teachers/b/share"] == pytest.approx(0.25)


def test_class_tokens_have_shares_of_their_own_and_leave_those_of_the_patches_alone() -> None:
    tokens = random_tokens(0)
    other = tokens.clone()
    other[:, 0] *= -3
    metrics = diagnose({"a": tokens, "b": other})
    assert metrics["teachers/a/share"] == pytest.approx(1 / 2, abs=1e-6)
    assert metrics["teachers/a/class_share"] == pytest.approx(-1 / 2, abs=1e-6)  # against a sum of -2 of its own
    assert metrics["teachers/b/class_share"] == pytest.approx(3 / 2, abs=1e-6)
    assert metrics["teachers/a/cosine"] == pytest.approx(1, abs=1e-6)
    assert metrics["teachers/agreement/a-b"] == pytest.approx(1, abs=1e-6)


def test_a_constant_teacher_holds_the_raw_sum_but_nothing_after_centring() -> None:
    constant = 5 * random_tokens(0, num_images=1)[:, :1].expand(8, 10, 16)
    metrics = diagnose({"constant": constant, "moving": random_tokens(1)})
    assert metrics["teachers/constant/share"] > 0.9
    assert metrics["teachers/constant/share_centred"] == pytest.approx(0, abs=1e-5)
    assert metrics["teachers/constant/moving"] == pytest.approx(0, abs=1e-10)
    assert metrics["teachers/moving/share_centred"] == pytest.approx(1, abs=1e-5)
    assert metrics["teachers/moving/moving"] == pytest.approx(1, abs=0.1)


def test_agreement_is_the_cosine_of_two_teachers_raw_and_centred() -> None:
    moving, constant = random_tokens(0), 10 * random_tokens(1, num_images=1)[:, :1]
    metrics = diagnose({"a": moving, "b": constant - 2 * moving, "c": 3 * moving})
    assert metrics["teachers/agreement/a-c"] == pytest.approx(1, abs=1e-6)
    assert metrics["teachers/agreement_centred/a-b"] == pytest.approx(-1, abs=1e-5)
    assert abs(metrics["teachers/agreement/a-b"]) < 0.6
    assert {name for name in metrics if "agreement/" in name} == {
        "teachers/agreement/a-b", "teachers/agreement/a-c", "teachers/agreement/b-c",
    }  # fmt: skip


def test_cka_is_its_definition_by_kernels() -> None:
    a, b = random_tokens(0, 4, 16)[:, 1:].flatten(0, 1).double(), random_tokens(1, 4, 6)[:, 1:].flatten(0, 1).double()
    b[:, :3] += a[:, :3]
    n = len(a)
    centring = torch.eye(n, dtype=torch.float64) - 1 / n

    def hsic(k: Tensor, m: Tensor) -> float:
        left, right = (centring @ k @ centring).tolist(), (centring @ m @ centring).tolist()
        return sum(left[i][j] * right[j][i] for i in range(n) for j in range(n))

    k, m = a @ a.T, b @ b.T
    expected = hsic(k, m) / math.sqrt(hsic(k, k) * hsic(m, m))
    assert linear_cka(a, b).item() == pytest.approx(expected, rel=1e-9)
    assert 0.1 < expected < 0.9


def test_cka_sees_the_same_content_in_another_basis_and_width() -> None:
    tokens = random_tokens(0)
    basis = torch.linalg.qr(torch.randn(24, 24, generator=torch.Generator().manual_seed(1))).Q[:16]  # [16, 24]
    turned = 3 * tokens @ basis + 5
    turned[:, 0] = 0  # the class token is not looked at
    other = random_tokens(2, num_channels=24)
    metrics = TeacherDiagnostics()({"a": tokens, "turned": turned, "other": other}, {})
    assert metrics["teachers/cka/a-turned"].item() == pytest.approx(1, abs=1e-5)
    assert metrics["teachers/cka/a-other"].item() < 0.6
    turned, straight = (metrics[f"teachers/cka/{name}-other"].item() for name in ("turned", "a"))
    assert turned == pytest.approx(straight, abs=1e-4)


def test_std_is_the_spread_over_channels_of_a_patch_token() -> None:
    tokens = random_tokens(0)
    expected = [
        math.sqrt(sum((x - sum(token) / 16) ** 2 for x in token) / 16)
        for image in tokens[:, 1:].tolist()
        for token in image
    ]
    assert diagnose({"a": tokens})["teachers/a/std"] == pytest.approx(sum(expected) / len(expected), rel=1e-5)


def test_entropy_is_one_for_flat_and_zero_for_one_hot_tokens() -> None:
    one_hot = torch.zeros(2, 5, 8)
    one_hot[..., 3] = 1e4
    assert relative_entropy(torch.zeros(2, 5, 8), dim=-1).item() == pytest.approx(1, abs=1e-6)
    assert relative_entropy(one_hot, dim=-1).item() == pytest.approx(0, abs=1e-6)


def test_an_outlier_channel_shows_in_the_tfd_entropy_only() -> None:
    tokens = 0.1 * random_tokens(0)
    tokens[..., 3] += 30
    metrics = diagnose({"a": tokens})
    assert metrics["teachers/fused/tfd_entropy"] < 0.01
    assert metrics["teachers/fused/sfd_entropy"] > 0.95


def test_a_large_class_token_shows_in_no_entropy_over_positions() -> None:
    tokens = 0.1 * random_tokens(0)
    tokens[:, 0] += 30  # all channels alike, so the entropy over channels stays as well
    metrics = diagnose({"a": tokens})
    assert metrics["teachers/fused/sfd_entropy"] > 0.95 and metrics["teachers/fused/tfd_entropy"] > 0.95


def test_students_agreement_with_its_target_is_a_cosine() -> None:
    fused = random_tokens(0)
    same = TeacherDiagnostics().of_student({"fused": 7 * fused}, {"fused": fused})
    opposite = TeacherDiagnostics().of_student({"fused": -fused}, {"fused": fused})
    assert same["teachers/fused/student_cosine"].item() == pytest.approx(1, abs=1e-6)
    assert opposite["teachers/fused/student_cosine"].item() == pytest.approx(-1, abs=1e-6)


def test_a_class_token_that_nobody_teaches_counts_as_a_cosine_of_0() -> None:
    tokens = random_tokens(0)
    taught = tokens.clone()
    taught[:, 0] = 0
    found = TeacherDiagnostics().of_student({"fused": tokens}, {"fused": taught})["teachers/fused/student_cosine"]
    assert found.item() == pytest.approx(9 / 10, abs=1e-6)  # of 1 + N = 10 tokens


def test_teachers_of_different_widths_are_described_without_their_relations() -> None:
    tokens = {"a": random_tokens(0), "b": random_tokens(1, num_channels=24)}
    diagnostics = TeacherDiagnostics()
    metrics = diagnostics(tokens, tokens) | diagnostics.of_student(tokens, tokens)
    known = ("a/std", "b/moving", "a/tfd_entropy", "b/student_cosine")
    assert {f"teachers/{name}" for name in known} <= metrics.keys()
    assert not any("share" in name or "agreement" in name for name in metrics)


def test_centring_uses_the_running_means_once_there_are_any() -> None:
    diagnostics, tokens = TeacherDiagnostics(momentum=0.5), random_tokens(0)
    diagnostics({"a": tokens}, {})
    diagnostics.after_step()
    later = diagnostics({"a": tokens + 100}, {})
    assert later["teachers/a/moving"].item() == pytest.approx(1, abs=0.05)  # the old mean does not explain the shift


def test_running_means_survive_a_restart() -> None:
    diagnostics, restarted = TeacherDiagnostics(), TeacherDiagnostics()
    diagnostics({"a": random_tokens(0)}, {})
    diagnostics.after_step()
    restarted.load_state_dict(diagnostics.state_dict())
    assert restarted({"a": random_tokens(1)}, {}) == diagnostics({"a": random_tokens(1)}, {})


def test_one_image_alone_gives_finite_numbers() -> None:
    metrics = diagnose({"a": random_tokens(0, num_images=1), "b": random_tokens(1, num_images=1)})
    assert all(math.isfinite(value) for value in metrics.values())


def test_only_the_first_images_are_looked_at() -> None:
    tokens = random_tokens(0)
    spoiled = tokens.clone()
    spoiled[4:] = float("nan")
    assert diagnose({"a": spoiled}, max_images=4) == diagnose({"a": tokens[:4]})
    found = TeacherDiagnostics(max_images=4).of_student({"fused": spoiled}, {"fused": spoiled})
    assert found["teachers/fused/student_cosine"].item() == pytest.approx(1, abs=1e-6)


def test_every_metric_is_a_detached_scalar_also_for_bfloat16_teachers() -> None:
    teachers = {"a": random_tokens(0).bfloat16(), "b": random_tokens(1).bfloat16()}
    student = {"fused": random_tokens(2).bfloat16().requires_grad_()}
    diagnostics, targets = TeacherDiagnostics(), {"fused": random_tokens(3)}
    metrics = diagnostics(teachers, targets) | diagnostics.of_student(student, targets)
    for value in metrics.values():
        assert value.shape == () and value.dtype == torch.float32 and not value.requires_grad
