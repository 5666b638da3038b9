"""Objects are drawn where they are, as labelled beside as found."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from dmt_ds.tracking.object_pictures import PicturedObject, draw_objects, draw_pairs, masked

MASK = torch.zeros(40, 60, dtype=torch.bool)
MASK[10:20, 5:30] = True
THING = PicturedObject((5, 10, 30, 20), 1, 0.9, MASK)
GREY_IMAGE = torch.full((3, 40, 60), 128, dtype=torch.uint8)


def test_a_mask_colours_its_own_pixels_alone() -> None:
    coloured = masked(GREY_IMAGE, [THING])
    assert (coloured != GREY_IMAGE).any(dim=0).equal(MASK)
    assert GREY_IMAGE.eq(128).all()  # the picture itself is left as it was
    assert torch.equal(masked(GREY_IMAGE, [THING._replace(mask=None)]), GREY_IMAGE)


def test_a_sheet_shows_more_than_the_image(tmp_path: Path) -> None:
    names = ("cat", "a $x$ \\n name")
    draw_pairs([(GREY_IMAGE, [THING._replace(score=None)], []), (GREY_IMAGE, [], [THING])], names, tmp_path / "a.png")
    pixels = np.asarray(Image.open(tmp_path / "a.png").convert("RGB"))
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 50


def test_a_picture_has_the_images_size_its_boxes_edges_and_a_name_that_is_within(tmp_path: Path) -> None:
    image = torch.full((3, 300, 400), 128, dtype=torch.uint8)
    things = [PicturedObject((100, 50, 300, 250), 0, 0.9, None), PicturedObject((380, 0, 400, 9), 1, 0.5, None)]
    draw_objects(image, things, ("Löffel", "two\nlines of words that are many"), tmp_path / "a.png")
    pixels = np.asarray(Image.open(tmp_path / "a.png")).astype(int)
    assert pixels.shape == (300, 400, 3)
    drawn = (pixels != 128).any(axis=2)
    assert drawn[249, 100:300].all() and drawn[60:250, 299].all() and not drawn[250:].any()
    assert not drawn[60:240, 110:290].any()
    above = pixels[30:50, 100:180]  # the first one's name
    assert (above > 200).all(axis=2).sum() > 40 and (above != 128).any(axis=2).mean() > 0.3
    corner = pixels[:20, 100:]  # the second one's has no place above its box, nor to the right of its edge
    assert (corner > 200).all(axis=2).sum() > 100
    draw_objects(image, [], (), tmp_path / "none.png")
    assert (np.asarray(Image.open(tmp_path / "none.png")) == 128).all()


def test_a_box_beyond_the_edge_or_thinner_than_a_line_is_drawn_too(tmp_path: Path) -> None:
    things = [THING._replace(box=box) for box in ((-5.0, -9.0, 90.0, 80.0), (20.0, 20.0, 20.1, 20.1))]
    draw_objects(GREY_IMAGE, things, ("cat", "dog"), tmp_path / "a.png")
    assert Image.open(tmp_path / "a.png").size == (60, 40)
