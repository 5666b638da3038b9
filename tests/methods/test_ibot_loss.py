"""iBOT's losses, temperatures and centres against loops and formulas."""

import math

import pytest
import torch

from dmt_ds.methods.ibot_loss import CentredTargets, class_loss, entropies, patch_loss, warmed_up
from dmt_ds.methods.masking import hide_patches


def cross_entropy(target, logits, temperature):
    """Of one distribution, one prototype at a time."""
    exponentials = [math.exp(float(logit) / temperature) for logit in logits]
    return -sum(float(p) * math.log(e / sum(exponentials)) for p, e in zip(target, exponentials, strict=True))


def test_class_loss_is_a_loop_over_pairs_of_different_crops():
    torch.manual_seed(0)
    images, crops = 3, 4
    student, teacher = torch.randn(crops * images, 5), torch.randn(2 * images, 5).softmax(dim=1)
    terms = [
        cross_entropy(teacher[q * images + i], student[v * images + i], 0.1)
        for q in range(2)
        for v in range(crops)
        if q != v
        for i in range(images)
    ]
    torch.testing.assert_close(class_loss(student, teacher, 0.1, images), torch.tensor(sum(terms) / len(terms)))


def test_patch_loss_is_a_loop_over_hidden_patches_of_all_crops():
    torch.manual_seed(0)
    hidden = hide_patches(torch.arange(6), "mask", 8, (0.2, 0.5), 0.5)
    student, teacher = torch.randn(6, 8, 5), torch.randn(6, 8, 5).softmax(dim=2)
    terms = []
    for crop in range(6):
        places = [patch for patch in range(8) if hidden.mask[crop, patch]]
        terms.append(sum(cross_entropy(teacher[crop, p], student[crop, p], 0.1) for p in places) / max(1, len(places)))
    at_slots = [
        torch.stack([rows[slots] for rows, slots in zip(t, hidden.slots, strict=True)]) for t in (student, teacher)
    ]
    loss = patch_loss(*at_slots, hidden.weights, 0.1)
    assert 0 < sum(term > 0 for term in terms) < 6
    torch.testing.assert_close(loss, torch.tensor(sum(terms) / 6))


def test_targets_are_softmaxed_after_the_centre_is_taken_off():
    targets = CentredTargets(3, 0.9, lambda fraction: 0.04 + fraction)
    targets.centre.copy_(torch.tensor([0.1, -0.2, 0.3]))
    logits = torch.randn(2, 4, 3)
    torch.testing.assert_close(targets(logits, 0.01), ((logits - targets.centre) / 0.05).softmax(dim=2))


def test_the_centre_moves_once_a_step_towards_the_mean_of_all_its_rows():
    targets = CentredTargets(3, 0.9, lambda fraction: 0.04)
    start = torch.tensor([1.0, 2.0, 3.0])
    targets.centre.copy_(start)
    first, second = torch.randn(4, 3), torch.randn(2, 5, 3)
    targets(first, 0.0)
    targets(second, 0.0)
    assert torch.equal(targets.centre, start)
    targets.after_step()
    torch.testing.assert_close(targets.centre, 0.9 * start + 0.1 * torch.cat([first, second.flatten(0, 1)]).mean(dim=0))


def test_a_step_forgets_the_rows_of_the_step_before():
    targets = CentredTargets(2, 0.0, lambda fraction: 0.04)
    for rows in (torch.full((3, 2), 7.0), torch.full((5, 2), -1.0)):
        targets(rows, 0.0)
        targets.after_step()
    torch.testing.assert_close(targets.centre, torch.full((2,), -1.0))


@pytest.mark.parametrize(("fraction", "temperature"), [(0.0, 0.04), (0.15, 0.055), (0.3, 0.07), (0.9, 0.07)])
def test_a_temperature_rises_linearly_and_stays(fraction, temperature):
    assert warmed_up(0.04, 0.07, 0.3, fraction) == pytest.approx(temperature)


def test_without_a_warm_up_the_temperature_is_the_final_one():
    assert warmed_up(0.04, 0.07, 0.0, 0.0) == 0.07


def test_entropies_tell_uniform_one_sided_and_healthy_targets_apart():
    uniform, one_sided, healthy = torch.full((8, 8), 1 / 8), torch.eye(8)[:1].expand(8, 8), torch.eye(8)
    for targets, each, mean in ((uniform, math.log(8), math.log(8)), (one_sided, 0, 0), (healthy, 0, math.log(8))):
        assert [value.item() for value in entropies(targets)] == pytest.approx([each, mean])
