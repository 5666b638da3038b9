"""The chunked closed form against the losses as written, and what any divergence keeps."""

import pytest
import torch
from torch import Tensor

from dmt_ds.distill.choices import Direction
from dmt_ds.distill.dual_loss import _op, dual_loss
from dmt_ds.distill.kernels import chunked
from tests.distill.kernels.cases import DIRECTIONS, WEIGHTS, as_written, compare, hard_cases, random_tokens

pytestmark = pytest.mark.parametrize("direction", DIRECTIONS)


def fused_loss(student: Tensor, target: Tensor, direction: Direction) -> Tensor:
    return dual_loss(student, target, direction=direction, kernel="chunked").total


@pytest.fixture(params=["shared exponentials", "log-softmaxes"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways through the closed form; the second is taken where sums are too small: make all of them so."""
    if request.param == "log-softmaxes":
        monkeypatch.setattr(chunked, "_SMALLEST_SUM", float("inf"))
    return request.param


@pytest.mark.parametrize("first_row", [0, 1])
@pytest.mark.parametrize("shape", [(2, 197, 768), (3, 17, 192), (9, 50, 7)])
def test_values_and_gradient_are_those_of_the_losses_as_written(
    shape: tuple[int, ...], first_row: int, direction: Direction, way: str
) -> None:
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 4e-3)):
        student, fused = random_tokens(0, *shape, dtype=dtype), random_tokens(1, *shape, dtype=dtype)
        errors = compare(student, fused, "chunked", direction, first_row)
        assert errors.gradient < tolerance
        assert max(errors.tfd, errors.sfd, errors.total) < max(1e-12, min(tolerance, 1e-5))


def test_a_student_that_has_nearly_arrived_is_not_lost_in_rounding(direction: Direction, way: str) -> None:
    fused = random_tokens(1, 4, 50, 192)
    student = fused + random_tokens(0, 4, 50, 192, scale=0.1)
    assert compare(student, fused, "chunked", direction).gradient < 1e-5


def test_a_batch_of_several_chunks_and_a_rest_is_one_mean(
    direction: Direction, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chunked, "_ELEMENTS_AT_ONCE", 3 * 6 * 20)
    errors = compare(random_tokens(0, 7, 6, 20), random_tokens(1, 7, 6, 20), "chunked", direction)
    assert max(errors) < 1e-5


def test_the_closed_form_is_that_of_finite_differences(direction: Direction, way: str) -> None:
    student, fused = random_tokens(0, 2, 4, 3, dtype=torch.float64), random_tokens(1, 2, 4, 3, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda s: fused_loss(s, fused, direction), student.requires_grad_())


@pytest.mark.parametrize("case", hard_cases())
def test_extreme_tokens_give_what_float64_gives(case: str, direction: Direction) -> None:
    student, fused = hard_cases()[case]
    errors = compare(student, fused, "chunked", direction)
    assert max(errors) < 2e-5


def test_sums_that_float32_would_lose_are_seen(direction: Direction, monkeypatch: pytest.MonkeyPatch) -> None:
    ways = []
    careful = chunked._by_log_softmax
    monkeypatch.setattr(chunked, "_by_log_softmax", lambda *args: ways.append("careful") or careful(*args))
    student, fused = random_tokens(0, 1, 6, 20), random_tokens(1, 1, 6, 20)
    fused_loss(student, fused, direction)
    assert not ways
    fused_loss(student, hard_cases()["outlier channel"][1][:1], direction)
    assert ways == ["careful"]


def test_sfd_ignores_the_class_token_and_tfd_does_where_nobody_teaches_it(direction: Direction) -> None:
    student, fused = random_tokens(0, 2, 6, 20), random_tokens(1, 2, 6, 20)
    other = student.clone()
    other[:, 0] = random_tokens(2, 2, 20)
    settings = {"direction": direction, "kernel": "chunked"}
    before, after = dual_loss(student, fused, **settings), dual_loss(other, fused, **settings)
    assert before.sfd == after.sfd
    assert before.tfd != after.tfd
    student.requires_grad_()
    untaught, without = (dual_loss(s, fused, first_row=1, **settings) for s in (student, other))
    assert untaught.tfd == without.tfd
    untaught.total.backward()
    assert student.grad is not None and student.grad[:, 0].abs().max() == 0


def test_a_token_may_be_shifted_for_tfd_and_a_channel_for_sfd(direction: Direction) -> None:
    student, fused = (random_tokens(seed, 2, 6, 20, dtype=torch.float64) for seed in (0, 1))
    settings = {"direction": direction, "kernel": "chunked"}
    plain = dual_loss(student, fused, **settings)
    by_token = dual_loss(student + random_tokens(2, 2, 6, 1, dtype=torch.float64), fused, **settings)
    by_channel = dual_loss(student + random_tokens(3, 2, 1, 20, dtype=torch.float64), fused, **settings)
    torch.testing.assert_close(by_token.tfd, plain.tfd)
    torch.testing.assert_close(by_channel.sfd, plain.sfd)


def test_equal_tokens_cost_nothing_and_pull_nowhere(direction: Direction) -> None:
    fused = random_tokens(0, 2, 17, 96)
    student = fused.clone().requires_grad_()
    total = fused_loss(student, fused, direction)
    total.backward()
    assert total.item() == pytest.approx(0, abs=1e-6)
    assert student.grad is not None and student.grad.abs().max() < 1e-9


def test_an_image_has_the_gradient_that_it_has_alone(direction: Direction) -> None:
    student, fused = random_tokens(0, 5, 6, 20), random_tokens(1, 5, 6, 20)
    student.requires_grad_()
    alone = [torch.autograd.grad(fused_loss(s[None], f[None], direction), s)[0] for s, f in zip(student, fused)]  # noqa: B905
    together = torch.autograd.grad(fused_loss(student, fused, direction), student)[0]
    torch.testing.assert_close(5 * together, torch.stack(alone), rtol=1e-5, atol=1e-7)


def test_autocast_does_not_lower_the_precision(direction: Direction) -> None:
    student, fused = random_tokens(0, 2, 17, 96), random_tokens(1, 2, 17, 96)
    with torch.autocast("cpu", torch.bfloat16):
        under_autocast = fused_loss(student, fused, direction)
    assert torch.equal(under_autocast, fused_loss(student, fused, direction))


def test_float16_tokens_have_a_gradient_that_a_loss_scale_can_still_save(direction: Direction) -> None:
    student, fused = (random_tokens(seed, 64, 50, 96, scale=0.1, dtype=torch.float16) for seed in (0, 1))
    exact = student.double().requires_grad_()
    (as_written(exact, fused.double(), direction, 0)[0] * 2.0**16).backward()
    student.requires_grad_()
    (dual_loss(student, fused, direction=direction, kernel="chunked", **WEIGHTS).total * 2.0**16).backward()
    assert student.grad is not None and exact.grad is not None
    assert (student.grad.double() - exact.grad).norm() / exact.grad.norm() < 4e-3


def test_a_share_of_the_loss_has_that_share_of_the_gradient_in_bf16_too(direction: Direction) -> None:
    student, fused = (random_tokens(seed, 8, 50, 192, dtype=torch.bfloat16) for seed in (0, 1))
    exact = student.double().requires_grad_()
    (as_written(exact, fused.double(), direction, 0)[0] / 3).backward()
    student.requires_grad_()
    (dual_loss(student, fused, direction=direction, kernel="chunked", **WEIGHTS).total / 3).backward()
    assert student.grad is not None and exact.grad is not None
    share = (student.grad.double() * exact.grad).sum() / exact.grad.square().sum()
    assert share.item() == pytest.approx(1, abs=3e-4)


def test_targets_made_in_inference_mode_can_be_learnt_from(direction: Direction) -> None:
    with torch.inference_mode():
        fused = random_tokens(1, 2, 6, 20)
    student = random_tokens(0, 2, 6, 20).requires_grad_()
    fused_loss(student, fused, direction).backward()
    assert student.grad is not None


def test_a_graph_that_is_kept_gives_the_gradient_again(direction: Direction) -> None:
    student = random_tokens(0, 2, 6, 20).requires_grad_()
    total = 3 * fused_loss(student, random_tokens(1, 2, 6, 20), direction)
    gradients = [torch.autograd.grad(total, student, retain_graph=kept)[0] for kept in (True, True, False)]
    assert torch.equal(gradients[0], gradients[1])
    assert torch.equal(gradients[0], gradients[2])


def test_a_second_derivative_is_refused(direction: Direction) -> None:
    student = random_tokens(0, 2, 6, 20).requires_grad_()
    (slope,) = torch.autograd.grad(
        fused_loss(student, random_tokens(1, 2, 6, 20), direction), student, create_graph=True
    )
    with pytest.raises(RuntimeError, match="does not require grad"):
        slope.sum().backward()


def test_no_gradient_is_made_where_none_is_asked_for(direction: Direction) -> None:
    with torch.no_grad():
        loss = fused_loss(random_tokens(0, 2, 6, 20).requires_grad_(), random_tokens(1, 2, 6, 20), direction)
    assert not loss.requires_grad
    *_, gradient = _op(random_tokens(0, 2, 6, 20), random_tokens(1, 2, 6, 20), True, 1.0, 1.0, 0, "chunked", False)
    assert gradient.numel() == 0


def test_beside_the_inputs_there_is_one_gradient_and_one_chunk(
    direction: Direction, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chunked, "_ELEMENTS_AT_ONCE", 17 * 96)  # an image
    student, fused = random_tokens(0, 64, 17, 96).requires_grad_(), random_tokens(1, 64, 17, 96)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        torch.autograd.grad(fused_loss(student, fused, direction), student)
    recorded = sorted((e.start_ns(), e.nbytes()) for e in profile.profiler.kineto_results.events() if e.nbytes())
    alive = most = 0
    for _, change in recorded:
        alive += change
        most = max(most, alive)
    assert student.nbytes <= most < 1.2 * student.nbytes


def test_nan_is_not_hidden(direction: Direction) -> None:
    student = random_tokens(0, 2, 6, 20)
    student[1, 3, 4] = float("nan")
    assert fused_loss(student, random_tokens(1, 2, 6, 20), direction).isnan()


def test_a_function_with_it_is_compiled_in_one_graph(direction: Direction) -> None:
    def step(x: Tensor, fused: Tensor) -> Tensor:
        return 2 * fused_loss(x * 3, fused, direction)

    x, fused = random_tokens(0, 2, 6, 20).requires_grad_(), random_tokens(1, 2, 6, 20)
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")  # fullgraph: a break is an error
    gradients = [torch.autograd.grad(function(x, fused), x)[0] for function in (step, compiled)]
    torch.testing.assert_close(*gradients, rtol=1e-6, atol=0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_op_keeps_the_dispatchers_rules(direction: Direction, dtype: torch.dtype) -> None:
    student, fused = (random_tokens(seed, 2, 6, 5, dtype=dtype) for seed in (0, 1))
    settings = (direction == "student_teacher", 1.0, 1.0, 0, "chunked", True)
    results = torch.library.opcheck(_op, (student.requires_grad_(), fused, *settings))
    assert set(results.values()) == {"SUCCESS"}
