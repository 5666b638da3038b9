"""A cascade of one stage is torchvision's heads; of three, each refines the boxes of the one before."""

import pytest
import torch
from torch import Tensor
from torchvision.models.detection import roi_heads

from dmt_ds.downstream.detection.box_masks import cut_out
from dmt_ds.downstream.detection.cascade import LOSS_WEIGHTS, STAGES, CascadeHeads
from dmt_ds.downstream.detection.heads import build_box_heads
from tests.downstream.detection import tiny

MAPS = {"0": 64, "1": 32, "2": 16, "3": 8}


def heads(
    iou: float = 0.5, weights: tuple[float, float, float, float] = STAGES[0][1], number: int = 0, shared: bool = True
):
    stage = build_box_heads(
        tiny.section(), 3, 1, iou=iou, coder_weights=weights, shared_boxes=shared, masks=number == 0, stage=number
    )
    stage.fg_bg_sampler.seeds = tiny.SEEDS
    return stage


def cascade() -> CascadeHeads:
    torch.manual_seed(0)
    return CascadeHeads([heads(*stage, number) for number, stage in enumerate(STAGES)], LOSS_WEIGHTS)


def inputs() -> tuple[dict[str, Tensor], list[Tensor], list[tuple[int, int]]]:
    torch.manual_seed(2)
    features = {name: torch.randn(2, 16, side, side) for name, side in MAPS.items()}
    corners = [torch.rand(20, 2) * 30 for _ in range(2)]
    return (
        features,
        [torch.cat([corner, corner + 8 + torch.rand(20, 2) * 10], dim=1) for corner in corners],
        [
            (48, 60),
            (64, 40),
        ],
    )


@pytest.mark.parametrize("shared", [False, True])
def test_one_stage_gives_torchvisions_losses_and_detections(shared: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(roi_heads, "project_masks_on_boxes", cut_out)  # else half a pixel off
    torch.manual_seed(0)
    plain = heads(shared=shared)
    one = CascadeHeads([plain], [1.0])
    theirs, ours = plain(*inputs(), tiny.targets())[1], one(*inputs(), tiny.targets())[1]
    assert theirs.keys() == ours.keys() == {"loss_classifier", "loss_box_reg", "loss_mask"}
    for name, loss in theirs.items():
        torch.testing.assert_close(ours[name], loss)
    with torch.no_grad():
        expected, found = plain.eval()(*inputs())[0], one.eval()(*inputs())[0]
    for of_image, own in zip(expected, found, strict=True):
        for name, value in of_image.items():
            torch.testing.assert_close(own[name], value)


def test_all_stages_learn_and_later_ones_weigh_less() -> None:
    three = cascade()
    losses = three(*inputs(), tiny.targets())[1]
    torch.stack(list(losses.values())).sum().backward()
    assert all(parameter.grad is not None for parameter in three.parameters())
    norms = [float(stage.box_predictor.layers.cls_score.weight.grad.norm()) for stage in three.stages]
    assert norms[0] > 1.3 * norms[1] > 1.6 * norms[2] > 0


def test_each_stage_takes_the_boxes_of_the_one_before_and_scores_are_averaged() -> None:
    three = cascade().eval()
    seen = []
    for stage in three.stages:
        pool = stage.box_roi_pool
        stage.box_roi_pool = Watched(pool, seen)
        with torch.no_grad():  # so that scores and corrections are known: a stage moves boxes right by its number
            predictor = stage.box_predictor.layers
            predictor.cls_score.weight.zero_()
            predictor.bbox_pred.weight.zero_()
            predictor.bbox_pred.bias.zero_()
    scores = torch.tensor([[0.0, 2.0, 0.0], [0.0, 0.0, 1.0], [3.0, 0.0, 0.0]])
    with torch.no_grad():
        for number, stage in enumerate(three.stages):
            stage.box_predictor.layers.cls_score.bias.copy_(scores[number])
            stage.box_predictor.layers.bbox_pred.bias[0] = STAGES[number][1][0] / 8  # an eighth of the width
        features, proposals, sizes = inputs()
        found = three(features, proposals, sizes)[0]
    moved = proposals[0].clone()
    for boxes in seen:
        torch.testing.assert_close(boxes[0][:, :2], moved[:, :2].clamp(max=60), atol=1e-4, rtol=1e-4)
        width = moved[:, 2] - moved[:, 0]
        moved = torch.stack([moved[:, 0] + width / 8, moved[:, 1], moved[:, 2] + width / 8, moved[:, 3]], dim=1)
        moved[:, 0::2] = moved[:, 0::2].clamp(0, 60)
        moved[:, 1::2] = moved[:, 1::2].clamp(0, 48)
    expected = scores.softmax(dim=1).mean(dim=0)
    assert (found[0]["boxes"][:, None] - moved).abs().amax(dim=2).amin(dim=1).max() < 1e-3  # three times moved
    for label in (1, 2):
        assert torch.allclose(found[0]["scores"][found[0]["labels"] == label], expected[label], atol=1e-5)


def test_a_later_stage_learns_from_the_boxes_that_the_one_before_has_moved() -> None:
    three = cascade()
    seen: list[list[Tensor]] = []
    for number, stage in enumerate(three.stages):
        stage.box_roi_pool = Watched(stage.box_roi_pool, seen)
        with torch.no_grad():
            correction = stage.box_predictor.layers.bbox_pred
            correction.weight.zero_()
            correction.bias.zero_()
            correction.bias[0] = STAGES[number][1][0] / 2  # to the right by half of the width
    three(*inputs(), tiny.targets())
    annotated = tiny.targets()[0]["boxes"]
    for before, after in ((seen[0][0], seen[1][0]), (seen[1][0], seen[2][0])):
        moved = before + torch.tensor([1.0, 0, 1, 0]) * (before[:, 2] - before[:, 0])[:, None] / 2
        moved[:, 0::2] = moved[:, 0::2].clamp(0, 60)
        moved[:, 1::2] = moved[:, 1::2].clamp(0, 48)
        differences = (after[:, None] - torch.cat([moved, annotated])).abs().amax(dim=2)  # [after, any of these]
        assert differences.amin(dim=1).max() < 1e-3
        assert len(after) > len(annotated)


def test_a_box_that_is_moved_out_of_its_image_is_learned_from_no_more() -> None:
    three = cascade()
    seen: list[list[Tensor]] = []
    for stage in three.stages:
        stage.box_roi_pool = Watched(stage.box_roi_pool, seen)
        with torch.no_grad():
            stage.box_predictor.layers.bbox_pred.weight.zero_()
            stage.box_predictor.layers.bbox_pred.bias[0] = 1000.0
    three(*inputs(), tiny.targets())
    for own, target in zip(seen[1], tiny.targets(), strict=True):
        assert torch.equal(own.unique(dim=0), target["boxes"].unique(dim=0))  # what is annotated is always among them


class Watched(torch.nn.Module):
    def __init__(self, pool: torch.nn.Module, seen: list[list[Tensor]]) -> None:
        super().__init__()
        self.pool, self.seen = pool, seen

    def forward(self, features: dict[str, Tensor], boxes: list[Tensor], sizes: list[tuple[int, int]]) -> Tensor:
        self.seen.append([own.clone() for own in boxes])
        return self.pool(features, boxes, sizes)


def test_of_no_proposal_nothing_is_found_as_by_torchvisions_heads() -> None:
    features, _, sizes = inputs()
    none, some = [torch.zeros(0, 4)] * 2, [torch.zeros(0, 4), torch.tensor([[4.0, 5.0, 30.0, 25.0]])]
    with torch.no_grad():
        expected, found = (made.eval()(features, none, sizes)[0] for made in (heads(), cascade()))
        second = cascade().eval()(features, some, sizes)[0][1]
    assert [{name: value.shape for name, value in of_image.items()} for of_image in found] == [
        {name: value.shape for name, value in of_image.items()} for of_image in expected
    ]
    assert len(second["boxes"])


def test_a_later_stage_asks_for_more_overlap() -> None:
    iou = [stage.proposal_matcher.high_threshold for stage in cascade().stages]
    assert iou == [0.5, 0.6, 0.7]
