"""Fusion of teachers against the same written out for one token at a time."""

import weakref
from collections.abc import Iterator
from itertools import combinations
from typing import get_args

import pytest
import torch
from torch import Tensor

from dmt_ds.distill.centring import RunningMeans
from dmt_ds.distill.choices import FusionMode
from dmt_ds.distill.fusion import TokenFusion, target_widths

MODES = get_args(FusionMode)
NAMES = ["mae", "moco_v3", "ibot"]
ONES = dict.fromkeys(NAMES, 1.0)
ALL = dict.fromkeys(NAMES, True)


def teacher_tokens(seed: int = 0, num_images: int = 2, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Each teacher with its own constant part, as real ones have: name -> [B, 1+4, 6]."""
    constants = torch.randn(3, 1, 5, 6, generator=torch.Generator().manual_seed(99)) * 3
    moving = torch.randn(3, num_images, 5, 6, generator=torch.Generator().manual_seed(seed))
    return dict(zip(NAMES, (constants + moving).to(dtype), strict=True))


def fuse(fusion: TokenFusion, tokens: dict[str, Tensor]) -> Tensor:
    return fusion(iter(tokens.items()))["fused"]


def test_sum_is_the_plain_sum_bit_for_bit() -> None:
    tokens = teacher_tokens()
    fused = fuse(TokenFusion("sum", ONES, ALL), tokens)
    assert torch.equal(fused, (tokens["mae"] + tokens["moco_v3"]) + tokens["ibot"])


def test_one_teacher_alone_is_its_own_target() -> None:
    tokens = {"mae": teacher_tokens()["mae"]}
    assert torch.equal(fuse(TokenFusion("sum", {"mae": 1.0}, {}), tokens), tokens["mae"])


def test_bfloat16_teachers_are_added_in_float32() -> None:
    tokens = teacher_tokens(dtype=torch.bfloat16)
    fused = fuse(TokenFusion("sum", ONES, ALL), tokens)
    assert fused.dtype == torch.float32
    assert torch.equal(fused, torch.stack([t.float() for t in tokens.values()]).sum(0))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_teachers_own_tokens_stay_as_they_are(mode: FusionMode, dtype: torch.dtype) -> None:
    tokens, before = teacher_tokens(dtype=dtype), teacher_tokens(dtype=dtype)
    fusion = TokenFusion(mode, {"mae": 2.0, "moco_v3": 1.0, "ibot": 0.5}, {"mae": False})
    for _ in range(2):
        fusion(tokens.items())
        fusion.after_step()
    assert all(torch.equal(tokens[name], before[name]) for name in NAMES)


def test_weights_scale_each_teacher() -> None:
    tokens = teacher_tokens()
    fused = fuse(TokenFusion("sum", {"mae": 2.0, "moco_v3": 0.0, "ibot": 0.5}, ALL), tokens)
    torch.testing.assert_close(fused, 2 * tokens["mae"] + 0.5 * tokens["ibot"])


def test_mean_divides_by_the_weights_of_those_who_speak() -> None:
    tokens = teacher_tokens()
    fused = fuse(TokenFusion("mean", {"mae": 3.0, "moco_v3": 1.0, "ibot": 2.0}, {"mae": False}), tokens)
    torch.testing.assert_close(fused[:, 0], (tokens["moco_v3"][:, 0] + 2 * tokens["ibot"][:, 0]) / 3)
    patches = (3 * tokens["mae"] + tokens["moco_v3"] + 2 * tokens["ibot"])[:, 1:] / 6
    torch.testing.assert_close(fused[:, 1:], patches)


def test_a_teacher_without_class_token_adds_to_the_patches_only() -> None:
    tokens = teacher_tokens()
    fused = fuse(TokenFusion("sum", ONES, {"mae": False}), tokens)
    torch.testing.assert_close(fused[:, 0], tokens["moco_v3"][:, 0] + tokens["ibot"][:, 0])
    torch.testing.assert_close(fused[:, 1:], torch.stack(list(tokens.values())).sum(0)[:, 1:])


def test_unit_std_gives_every_token_the_same_spread_before_the_sum() -> None:
    tokens = teacher_tokens()
    fused = fuse(TokenFusion("unit_std", ONES, ALL), tokens)
    for b in range(2):
        for n in range(5):
            expected = torch.zeros(6)
            for name in NAMES:
                token = tokens[name][b, n]
                expected += token / ((token - token.mean()) ** 2).mean().sqrt()
            torch.testing.assert_close(fused[b, n], expected, rtol=1e-5, atol=1e-5)


def test_unit_std_does_not_feel_a_teachers_scale() -> None:
    tokens = teacher_tokens()
    louder = {**tokens, "ibot": tokens["ibot"] * 50}
    fusion = TokenFusion("unit_std", ONES, ALL)
    torch.testing.assert_close(fuse(fusion, louder), fuse(fusion, tokens), rtol=1e-5, atol=1e-5)


def test_concat_keeps_teachers_apart() -> None:
    tokens = teacher_tokens()
    targets = TokenFusion("concat", ONES, ALL)(iter(tokens.items()))
    assert list(targets) == NAMES
    assert all(torch.equal(targets[name], tokens[name]) for name in NAMES)


def test_targets_name_what_the_student_is_built_for() -> None:
    widths = {"mae": 768, "moco_v3": 384, "ibot": 768}
    assert target_widths("concat", widths) == widths
    assert target_widths("sum", dict.fromkeys(NAMES, 384)) == {"fused": 384}


def test_a_class_token_that_nobody_teaches_is_named() -> None:
    nobody = dict.fromkeys(NAMES, False)
    assert TokenFusion("sum", ONES, nobody).without_class_token == {"fused"}
    assert TokenFusion("sum", ONES, {"mae": False}).without_class_token == set()
    assert TokenFusion("concat", ONES, {"mae": False}).without_class_token == {"mae"}


def test_a_fusion_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match=r"weight of \['mae'\] must be above 0"):
        TokenFusion("sum", {"mae": 0.0}, {})
    with pytest.raises(ValueError, match=r"weight of \['ibot'\] must be above 0"):
        TokenFusion("concat", {"mae": 1.0, "ibot": 0.0}, {})


def test_teachers_in_another_order_are_refused() -> None:
    tokens = teacher_tokens()
    with pytest.raises(AssertionError, match="expected"):
        fuse(TokenFusion("sum", ONES, ALL), dict(reversed(tokens.items())))


def test_an_unknown_mode_is_refused_with_those_that_are_known() -> None:
    with pytest.raises(ValueError, match="fusion 'median' is not known: it is one of sum, mean, unit_std, centred, "):
        TokenFusion("median", ONES, ALL)


def test_no_two_modes_are_the_same() -> None:
    """A mode without a branch of its own would make the targets of another one."""
    fusions = [TokenFusion(mode, ONES, ALL) for mode in MODES if mode != "concat"]
    for fusion in fusions:
        fuse(fusion, teacher_tokens(seed=0))
        fusion.after_step()
    targets = [fuse(fusion, teacher_tokens(seed=1)) for fusion in fusions]
    assert not any(torch.allclose(one, other) for one, other in combinations(targets, 2))


def test_a_class_token_of_no_teacher_is_refused() -> None:
    with pytest.raises(ValueError, match=r"class_token of \['zz'\]: weights has \['mae', 'moco_v3', 'ibot'\] only"):
        TokenFusion("sum", ONES, {"zz": False})


@pytest.mark.parametrize("shape", [(1, 5, 6), (2, 5, 1), (2, 4, 6), (5, 6)])
def test_a_teacher_whose_tokens_do_not_fit_is_named_and_never_broadcast(shape: tuple[int, ...]) -> None:
    tokens = {**teacher_tokens(), "moco_v3": torch.zeros(shape)}
    with pytest.raises(AssertionError, match=r"teacher 'moco_v3': tokens \[.*\], those before it have \[2, 5, 6\]"):
        fuse(TokenFusion("sum", ONES, ALL), tokens)


def test_a_first_teacher_whose_tokens_are_no_batch_is_named() -> None:
    with pytest.raises(AssertionError, match=r"teacher 'mae': tokens \[5, 6\] must be \[B, 1\+N, D\]"):
        fuse(TokenFusion("sum", ONES, ALL), {name: tokens[0] for name, tokens in teacher_tokens().items()})


@pytest.mark.parametrize("mode", ["sum", "concat"])
def test_a_dict_in_place_of_pairs_is_refused_with_the_remedy(mode: FusionMode) -> None:
    with pytest.raises(AssertionError, match=r"give the dict's \.items\(\)"):
        TokenFusion(mode, ONES, ALL)(teacher_tokens())


@pytest.mark.parametrize("mode", [mode for mode in MODES if mode != "concat"])
def test_only_one_teachers_tokens_are_alive_at_a_time(mode: FusionMode) -> None:
    alive: list[weakref.ref[Tensor]] = []

    def make(seed: int) -> Tensor:
        assert all(reference() is None for reference in alive), "an earlier teacher's tokens are still held"
        tokens = torch.randn(2, 5, 6, generator=torch.Generator().manual_seed(seed))
        alive.append(weakref.ref(tokens))
        return tokens

    def on_demand() -> Iterator[tuple[str, Tensor]]:
        for seed, name in enumerate(NAMES):
            yield name, make(seed)

    fusion = TokenFusion(mode, ONES, ALL)
    for _ in range(2):
        fusion(on_demand())
        fusion.after_step()
    assert len(alive) == 6


def test_centred_subtracts_nothing_in_the_first_step() -> None:
    tokens = teacher_tokens()
    assert torch.equal(fuse(TokenFusion("centred", ONES, ALL), tokens), fuse(TokenFusion("sum", ONES, ALL), tokens))


def test_centred_subtracts_the_bias_corrected_average_of_earlier_steps() -> None:
    momentum, num_steps = 0.7, 4
    fusion = TokenFusion("centred", {"mae": 1.0, "moco_v3": 2.0, "ibot": 1.0}, {"ibot": False}, momentum)
    averages = {name: torch.zeros(2, 6) for name in NAMES}
    for step in range(num_steps):
        tokens = teacher_tokens(seed=step)
        fuse(fusion, tokens)
        fusion.after_step()
        for name in NAMES:
            mean = torch.stack([tokens[name][:, 0].mean(0), tokens[name][:, 1:].mean((0, 1))])
            averages[name] = momentum * averages[name] + (1 - momentum) * mean
    tokens = teacher_tokens(seed=num_steps)
    expected = torch.zeros(2, 5, 6)
    for name, weight in (("mae", 1.0), ("moco_v3", 2.0), ("ibot", 1.0)):
        class_mean, patch_mean = averages[name] / (1 - momentum**num_steps)
        if name != "ibot":
            expected[:, 0] += weight * (tokens[name][:, 0] - class_mean)
        expected[:, 1:] += weight * (tokens[name][:, 1:] - patch_mean)
    torch.testing.assert_close(fuse(fusion, tokens), expected)


def test_centring_removes_what_is_constant_in_a_teacher() -> None:
    fusion = TokenFusion("centred", ONES, ALL)
    plain, centred = [], []
    for step in range(5):
        tokens = teacher_tokens(seed=step, num_images=200)
        plain.append(fuse(TokenFusion("sum", ONES, ALL), tokens))
        centred.append(fuse(fusion, tokens))
        fusion.after_step()
    assert plain[-1][:, 0].mean(0).abs().max() > 1
    assert centred[-1][:, 0].mean(0).abs().max() < 0.3
    assert centred[-1][:, 1:].mean((0, 1)).abs().max() < 0.3


def test_centred_means_stand_still_between_steps() -> None:
    fusion = TokenFusion("centred", ONES, ALL)
    fuse(fusion, teacher_tokens(seed=0))
    fusion.after_step()
    first = fuse(fusion, teacher_tokens(seed=1))
    fuse(fusion, teacher_tokens(seed=2))
    assert torch.equal(fuse(fusion, teacher_tokens(seed=1)), first)


def test_centred_does_not_depend_on_accumulation() -> None:
    whole, in_parts = TokenFusion("centred", ONES, ALL), TokenFusion("centred", ONES, ALL)
    for step in range(3):
        tokens = teacher_tokens(seed=step, num_images=6)
        fuse(whole, tokens)
        for start, stop in ((0, 1), (1, 4), (4, 6)):
            fuse(in_parts, {name: t[start:stop] for name, t in tokens.items()})
        whole.after_step()
        in_parts.after_step()
    probe = teacher_tokens(seed=9)
    torch.testing.assert_close(fuse(in_parts, probe), fuse(whole, probe), rtol=1e-6, atol=1e-6)


def test_a_look_aside_leaves_the_means_alone() -> None:
    looked, plain = TokenFusion("centred", ONES, ALL), TokenFusion("centred", ONES, ALL)
    for fusion in (looked, plain):
        fuse(fusion, teacher_tokens(seed=0))
    looked(teacher_tokens(seed=1).items(), observe=False)
    looked.after_step()
    plain.after_step()
    probe = teacher_tokens(seed=9)
    assert torch.equal(fuse(looked, probe), fuse(plain, probe))


def test_centred_means_survive_a_restart() -> None:
    fusion, restarted = TokenFusion("centred", ONES, ALL), TokenFusion("centred", ONES, ALL)
    for step in range(2):
        fuse(fusion, teacher_tokens(seed=step))
        fusion.after_step()
    restarted.load_state_dict(fusion.state_dict())
    for step in range(2, 4):
        tokens = teacher_tokens(seed=step)
        assert torch.equal(fuse(restarted, tokens), fuse(fusion, tokens))
        fusion.after_step()
        restarted.after_step()


def observe(means: RunningMeans, names: list[str], seeds: range) -> None:
    for seed in seeds:
        for name in names:
            means.observe(name, teacher_tokens(seed)[name])
        means.after_step()


def test_a_teacher_that_joins_a_restart_has_the_mean_of_its_own_steps_and_one_that_left_is_forgotten() -> None:
    means, joined, alone = (RunningMeans(0.9) for _ in range(3))
    observe(means, ["mae", "ibot"], range(5))
    joined.load_state_dict(means.state_dict())
    observe(joined, ["mae", "moco_v3"], range(5, 7))
    observe(means, ["mae", "ibot"], range(5, 7))
    observe(alone, ["moco_v3"], range(5, 7))
    cpu = torch.device("cpu")
    assert torch.equal(joined.of("moco_v3", cpu), alone.of("moco_v3", cpu))
    assert torch.equal(joined.of("mae", cpu), means.of("mae", cpu))
    assert joined.of("ibot", cpu) is None and not any("ibot" in key for key in joined.state_dict())


def test_means_of_a_version_that_counted_the_steps_of_all_teachers_together_are_read() -> None:
    means, restarted = RunningMeans(0.9), RunningMeans(0.9)
    observe(means, NAMES, range(5))
    old = {key: mean for key, mean in means.state_dict().items() if key.startswith("mean/")}
    restarted.load_state_dict(old | {"steps": torch.tensor(5)})
    for name in NAMES:
        assert torch.equal(restarted.of(name, torch.device("cpu")), means.of(name, torch.device("cpu")))


def test_a_saved_state_does_not_change_with_later_steps() -> None:
    fusion = TokenFusion("centred", ONES, ALL)
    fuse(fusion, teacher_tokens(seed=0))
    fusion.after_step()
    saved = fusion.state_dict()
    copies = {key: value.clone() for key, value in saved.items()}
    fuse(fusion, teacher_tokens(seed=1))
    fusion.after_step()
    assert all(torch.equal(saved[key], copies[key]) for key in saved)


@pytest.mark.parametrize("mode", [mode for mode in MODES if mode != "centred"])
def test_the_other_modes_have_no_state(mode: FusionMode) -> None:
    fusion = TokenFusion(mode, ONES, ALL)
    fusion(teacher_tokens().items())
    fusion.after_step()
    assert fusion.state_dict() == {}


def test_centred_works_on_tokens_made_in_inference_mode() -> None:
    fusion, plain = TokenFusion("centred", ONES, ALL), TokenFusion("centred", ONES, ALL)
    for step in range(3):
        with torch.inference_mode():
            fused = fuse(fusion, teacher_tokens(seed=step))
            fuse(fusion, teacher_tokens(seed=step + 10))
        fusion.after_step()
        expected = fuse(plain, teacher_tokens(seed=step))
        fuse(plain, teacher_tokens(seed=step + 10))
        plain.after_step()
        torch.testing.assert_close(fused.clone(), expected)


@pytest.mark.parametrize("weight", [0.25, 1.0, 3.0])
def test_the_first_teachers_weight_counts_below_1_too(weight: float) -> None:
    first, second = torch.randn(2, 2, 5, 4, generator=torch.Generator().manual_seed(0))
    fused = TokenFusion("sum", {"a": weight, "b": 0.5}, {})([("a", first), ("b", second)])["fused"]
    torch.testing.assert_close(fused, weight * first + 0.5 * second)
