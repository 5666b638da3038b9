"""A loss's anchors and boxes: as many as torchvision draws, the same for an image wherever it is."""

import torch
from torchvision.models.detection._utils import BalancedPositiveNegativeSampler

from dmt_ds.downstream.detection.sampling import SeededSampler

LABELS = [
    torch.tensor([1] * 3 + [0] * 50 + [-1] * 7),  # few positives
    torch.tensor([2] * 40 + [0] * 4 + [-1] * 9),  # few negatives
    torch.tensor([0.0] * 30),  # none
]
SEEDS = torch.tensor([11, 12, 13])


def sampler(stream: str = "boxes", seeds: torch.Tensor = SEEDS) -> SeededSampler:
    made = SeededSampler(16, 0.5, stream)
    made.seeds = seeds
    return made


def test_as_many_are_drawn_of_each_kind_as_torchvision_draws() -> None:
    ours, theirs = sampler()(LABELS), BalancedPositiveNegativeSampler(16, 0.5)(LABELS)
    for kind, allowed in zip((0, 1), (lambda labels: labels >= 1, lambda labels: labels == 0), strict=True):
        assert [int(mask.sum()) for mask in ours[kind]] == [int(mask.sum()) for mask in theirs[kind]]
        assert all(bool(allowed(labels)[mask].all()) for labels, mask in zip(LABELS, ours[kind], strict=True))


def test_an_image_has_its_samples_beside_any_others() -> None:
    together, alone = sampler()(LABELS), sampler(seeds=SEEDS[1:2])(LABELS[1:2])
    assert torch.equal(together[0][1], alone[0][0]) and torch.equal(together[1][1], alone[1][0])


def test_streams_and_seeds_draw_differently() -> None:
    many = [torch.zeros(1000)]
    drawn = [sampler(stream, torch.tensor([seed]))(many)[1][0] for stream, seed in (("a", 1), ("b", 1), ("a", 2))]
    assert all(int((drawn[0] & other).sum()) < 4 for other in drawn[1:])


def test_all_places_are_drawn_alike_often() -> None:
    counts = torch.zeros(20)
    for seed in range(400):
        counts += sampler(seeds=torch.tensor([seed * 7919]))([torch.zeros(20)])[1][0]
    assert (counts / 400 - 16 / 20).abs().max() < 0.08
