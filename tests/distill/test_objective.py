"""The sum of both losses over all targets."""

from collections.abc import Callable
from typing import Any, get_args

import pytest
import torch
from torch import Tensor

from dmt_ds.distill.choices import Direction, Divergence
from dmt_ds.distill.kernels.terms import Kernel
from dmt_ds.distill.losses import spatial_fusion_loss, token_fusion_loss
from dmt_ds.distill.objective import DistillationObjective

KERNELS: tuple[Kernel, Kernel] = ("chunked", "eager")


def tokens(seed: int, *names: str, num_channels: int = 6) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(2, 5, num_channels, generator=generator) for name in names}


def test_total_is_tfd_plus_sfd_by_default() -> None:
    student, target = tokens(0, "fused"), tokens(1, "fused")
    losses = DistillationObjective()(student, target)
    assert torch.equal(losses.tfd, token_fusion_loss(student["fused"], target["fused"]))
    assert torch.equal(losses.sfd, spatial_fusion_loss(student["fused"], target["fused"]))
    assert torch.equal(losses.total, losses.tfd + losses.sfd)


def test_weights_weigh_the_total_and_leave_each_loss_as_it_is() -> None:
    student, target = tokens(0, "fused"), tokens(1, "fused")
    plain = DistillationObjective()(student, target)
    weighted = DistillationObjective(tfd_weight=0.5, sfd_weight=3.0)(student, target)
    assert (weighted.tfd, weighted.sfd) == (plain.tfd, plain.sfd)
    torch.testing.assert_close(weighted.total, 0.5 * plain.tfd + 3.0 * plain.sfd)


@pytest.mark.parametrize("left_out", ["tfd", "sfd"])
def test_a_loss_of_weight_zero_is_not_computed_even_where_it_would_be_nan(left_out: str) -> None:
    student, target = tokens(0, "fused"), tokens(1, "fused")
    if left_out == "tfd":
        target["fused"][:, 0] = float("nan")  # only TFD looks at the class token
    else:
        student, target = {"fused": student["fused"][:, :1]}, {"fused": target["fused"][:, :1]}  # no patch: SFD is nan
    objective = DistillationObjective(tfd_weight=float(left_out != "tfd"), sfd_weight=float(left_out != "sfd"))
    losses = objective(student, target)
    assert getattr(losses, left_out) == 0
    own = (spatial_fusion_loss if left_out == "tfd" else token_fusion_loss)(student["fused"], target["fused"])
    assert losses.total == own and own > 0  # the other one alone


@pytest.mark.parametrize("divergence", get_args(Divergence))
@pytest.mark.parametrize("direction", get_args(Direction))
def test_divergence_and_direction_reach_both_losses(divergence: Divergence, direction: Direction) -> None:
    student, target = tokens(0, "fused"), tokens(1, "fused")
    losses = DistillationObjective(divergence, direction)(student, target)
    tfd = token_fusion_loss(student["fused"], target["fused"], divergence=divergence, direction=direction)
    sfd = spatial_fusion_loss(student["fused"], target["fused"], divergence=divergence, direction=direction)
    assert (losses.tfd, losses.sfd) == (tfd, sfd)


def test_targets_kept_apart_add_up_with_their_weights_at_any_width() -> None:
    student = tokens(0, "mae") | tokens(1, "ibot", num_channels=9)
    target = tokens(2, "mae") | tokens(3, "ibot", num_channels=9)
    losses = DistillationObjective(target_weights={"ibot": 0.25})(student, target)
    expected = token_fusion_loss(student["mae"], target["mae"]) + 0.25 * token_fusion_loss(
        student["ibot"], target["ibot"]
    )
    torch.testing.assert_close(losses.tfd, expected)


def test_an_untaught_class_token_gets_no_gradient() -> None:
    student, target = tokens(0, "mae", "ibot"), tokens(1, "mae", "ibot")
    for each in student.values():
        each.requires_grad_()
    DistillationObjective(without_class_token={"mae"})(student, target).total.backward()
    assert student["mae"].grad is not None and student["ibot"].grad is not None
    assert student["mae"].grad[:, 0].abs().max() == 0
    assert student["mae"].grad[:, 1:].abs().max() > 0
    assert student["ibot"].grad[:, 0].abs().max() > 0


def test_an_untaught_class_token_leaves_the_mean_over_patches() -> None:
    student, target = tokens(0, "mae"), tokens(1, "mae")
    losses = DistillationObjective(without_class_token={"mae"})(student, target)
    assert torch.equal(losses.tfd, token_fusion_loss(student["mae"][:, 1:], target["mae"][:, 1:]))


def test_gradient_reaches_every_student_head_and_no_target() -> None:
    student, target = tokens(0, "mae", "ibot"), tokens(1, "mae", "ibot")
    for each in (*student.values(), *target.values()):
        each.requires_grad_()
    DistillationObjective()(student, target).total.backward()
    assert all(each.grad is not None and each.grad.abs().sum() > 0 for each in student.values())
    assert all(each.grad is None for each in target.values())


def test_both_directions_are_kl_without_a_graph_whatever_is_trained() -> None:
    student, target = tokens(0, "fused"), tokens(1, "fused")
    student["fused"].requires_grad_()
    metrics = DistillationObjective("mse", tfd_weight=0.0).both_directions(student, target)
    for direction in ("student_teacher", "teacher_student"):
        tfd = token_fusion_loss(student["fused"], target["fused"], direction=direction)
        sfd = spatial_fusion_loss(student["fused"], target["fused"], direction=direction)
        assert metrics[f"train/kl_tfd_{direction}"] == tfd
        assert metrics[f"train/kl_sfd_{direction}"] == sfd
    assert len(metrics) == 4
    assert not any(value.requires_grad for value in metrics.values())


@pytest.mark.parametrize("direction", get_args(Direction))
def test_both_directions_of_a_fused_kernel_are_those_of_the_losses_as_written(direction: Direction) -> None:
    student, target = tokens(0, "mae", "ibot"), tokens(1, "mae", "ibot")
    student["mae"].requires_grad_()
    settings: dict[str, Any] = {"target_weights": {"ibot": 0.25}, "without_class_token": {"mae"}}
    fused, written = (
        DistillationObjective("kl", direction, 0.5, 3.0, kernel=kernel, **settings).both_directions(student, target)
        for kernel in KERNELS
    )
    assert written.keys() == fused.keys()
    for name, value in written.items():
        torch.testing.assert_close(fused[name], value, msg=name)
        assert not fused[name].requires_grad


def test_students_for_other_targets_are_refused() -> None:
    with pytest.raises(AssertionError, match="student \\['fused'\\], targets \\['mae'\\]"):
        DistillationObjective()(tokens(0, "fused"), tokens(1, "mae"))


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"divergence": "js"}, "divergence 'js' is not known: it is one of kl, mse"),
        ({"divergence": "mse", "direction": "reverse"}, "direction 'reverse' is not known: it is one of student_"),
        ({"tfd_weight": 0.0, "sfd_weight": 0.0}, "both 0: there is nothing to learn"),
    ],
)
def test_an_objective_of_unknown_names_or_no_weight_is_refused(settings: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        DistillationObjective(**settings)


@pytest.mark.parametrize(
    "make",
    [
        lambda: DistillationObjective(target_weights={"zz": 3.0}),
        lambda: DistillationObjective(without_class_token={"zz"}),
        lambda: DistillationObjective(target_weights={"zz": 3.0}, kernel="chunked"),
    ],
)
def test_settings_of_a_target_that_is_not_there_are_refused(make: Callable[[], DistillationObjective]) -> None:
    with pytest.raises(AssertionError, match=r"settings of targets \['zz'\], which are not among \['fused'\]"):
        make()(tokens(0, "fused"), tokens(1, "fused"))


@pytest.mark.parametrize("kernel", ["eager", "chunked"])
def test_no_targets_are_refused(kernel: Kernel) -> None:
    with pytest.raises(AssertionError, match="no targets"):
        DistillationObjective(kernel=kernel)({}, {})


@pytest.mark.parametrize("direction", get_args(Direction))
def test_a_fused_kernel_gives_the_same_losses_and_gradients(direction: Direction) -> None:
    target = tokens(2, "mae") | tokens(3, "ibot", num_channels=9)
    found = []
    for kernel in ("eager", "chunked"):
        student = tokens(0, "mae") | tokens(1, "ibot", num_channels=9)
        for each in student.values():
            each.requires_grad_()
        objective = DistillationObjective(
            direction=direction,
            tfd_weight=0.5,
            sfd_weight=3.0,
            target_weights={"ibot": 0.25},
            without_class_token={"mae"},
            kernel=kernel,
        )
        losses = objective(student, target)
        losses.total.backward()
        found.append((*losses, *(each.grad for each in student.values())))
    torch.testing.assert_close(found[1], found[0], rtol=1e-5, atol=1e-6)
