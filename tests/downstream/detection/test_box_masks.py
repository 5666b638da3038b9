"""Boxes and their masks are where they are: what is cut out and put back is what it was."""

import pytest
import torch
from torch import Tensor
from torch.nn.functional import grid_sample
from torchvision.models.detection.roi_heads import paste_masks_in_image, project_masks_on_boxes

from dmt_ds.downstream.detection.box_masks import cut_out, put_back
from dmt_ds.downstream.detection.heads import PyramidPool

SIDE, IMAGE, SCALE = 28, 128, 800 / 480
NONE = torch.zeros(1, dtype=torch.int64)


def ellipse(size: int, centre: Tensor, radii: Tensor) -> Tensor:
    """[size, size] bool."""
    pixels = torch.arange(size) + 0.5
    across, down = ((pixels - centre[axis]) / radii[axis] for axis in (0, 1))
    return across**2 + down[:, None] ** 2 <= 1


def overlaps(length: float, count: int = 30) -> tuple[float, float]:
    """Mean IoU with what it was of a mask that is cut out of the scaled image and put back; ours, torchvision's."""
    torch.manual_seed(0)
    ours, theirs = [], []
    for _ in range(count):
        radii = length / 2 * torch.tensor([1.0, 0.4 + 0.6 * float(torch.rand(()))])
        centre = length / 2 + 2 + torch.rand(2) * (IMAGE - length - 4)
        whole = ellipse(IMAGE, centre, radii)
        scaled = ellipse(int(IMAGE * SCALE), centre * SCALE, radii * SCALE)[None].to(torch.uint8)
        box = torch.cat([centre - radii, centre + radii])[None]
        mine = put_back(cut_out(scaled, box * SCALE, NONE, SIDE), box, (IMAGE, IMAGE))[0] >= 0.5
        target = project_masks_on_boxes(scaled, box * SCALE, NONE, SIDE)
        other = paste_masks_in_image(target[:, None], box, (IMAGE, IMAGE))[0, 0] > 0.5
        for found, pasted in ((ours, mine), (theirs, other)):
            found.append(float((pasted & whole).sum() / (pasted | whole).sum()))
    return sum(ours) / count, sum(theirs) / count


@pytest.mark.parametrize(("length", "least"), [(12, 0.95), (24, 0.97), (48, 0.98), (96, 0.99)])
def test_a_mask_that_is_cut_out_and_put_back_overlaps_what_it_was(length: float, least: float) -> None:
    ours, torchvisions = overlaps(length)
    assert ours > least > torchvisions


def test_masks_are_put_back_as_by_a_bilinear_sample_at_the_centres_of_pixels() -> None:
    torch.manual_seed(0)
    height, width, corners = 40, 60, torch.rand(9, 2) * torch.tensor([50.0, 30.0]) - 4
    boxes = torch.cat([corners, corners + 0.5 + torch.rand(9, 2) * 30], dim=1)
    masks = torch.rand(9, SIDE, SIDE)
    x1, y1, x2, y2 = (side[:, None] for side in boxes.unbind(dim=1))
    across, down = (torch.arange(width) + 0.5 - x1) / (x2 - x1), (torch.arange(height) + 0.5 - y1) / (y2 - y1)
    places = across[:, None].expand(9, height, width), down[:, :, None].expand(9, height, width)
    expected = grid_sample(masks[:, None], torch.stack(places, dim=-1) * 2 - 1, align_corners=False)[:, 0]
    torch.testing.assert_close(put_back(masks, boxes, (height, width)), expected, atol=1e-5, rtol=0)


def test_a_box_of_whole_pixels_as_many_as_cells_gets_its_own_pixels() -> None:
    torch.manual_seed(0)
    masks = (torch.rand(2, 50, 60) > 0.5).to(torch.uint8)
    boxes = torch.tensor([[7.0, 3, 7 + SIDE, 3 + SIDE], [30, 20, 30 + SIDE, 20 + SIDE]])
    cut = cut_out(masks, boxes, torch.tensor([1, 0]), SIDE)
    own = torch.stack([masks[1, 3 : 3 + SIDE, 7 : 7 + SIDE], masks[0, 20 : 20 + SIDE, 30 : 30 + SIDE]])
    torch.testing.assert_close(cut, own.float())
    back = put_back(cut, boxes, (50, 60))
    torch.testing.assert_close(back[0, 3 : 3 + SIDE, 7 : 7 + SIDE], own[0].float())


@pytest.mark.parametrize(("length", "level"), [(60, 0), (150, 1), (300, 2), (500, 3)])
def test_a_box_is_pooled_from_the_level_of_its_size_at_its_place(length: int, level: int) -> None:
    """Maps whose cells say where their centres are, in pixels: what is pooled says where the box's parts are."""
    strides = [4 << number for number in range(4)]
    maps = {}
    for number, stride in enumerate(strides):
        centres = (torch.arange(1024 // stride) + 0.5) * stride
        grid = torch.stack(torch.meshgrid(centres, centres, indexing="xy"))
        own = torch.cat([grid, torch.full_like(grid[:1], number)])
        maps[str(number)] = torch.stack([own + 1000, own])  # the box is of the second image
    box = torch.tensor([[200.3, 150.7, 200.3 + length, 150.7 + length]])
    pooled = PyramidPool(7, 4)(maps, [torch.zeros(0, 4), box], [(1000, 1000)] * 2)
    parts = (torch.arange(7) + 0.5) / 7 * length
    assert pooled.shape == (1, 3, 7, 7) and (pooled[0, 2] == level).all()
    torch.testing.assert_close(pooled[0, 0], (200.3 + parts).expand(7, 7), atol=0.01, rtol=0)
    torch.testing.assert_close(pooled[0, 1], (150.7 + parts)[:, None].expand(7, 7), atol=0.01, rtol=0)


def test_a_box_of_no_width_has_an_empty_mask_and_numbers_in_it_wherever_it_is() -> None:
    back = put_back(torch.ones(1, SIDE, SIDE), torch.tensor([[5.0, 3.0, 5.0, 9.0]]), (12, 12))
    assert not (back >= 0.5).any()
    at_a_pixels_centre = put_back(torch.ones(1, SIDE, SIDE), torch.tensor([[5.5, 3.0, 5.5, 9.0]]), (12, 12))
    assert back.isfinite().all() and at_a_pixels_centre.isfinite().all()
