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


def test_sheets_show_more_than_the_image(tmp_path: Path) -> None:
    names = ("cat", "a $x$ \\n name")
    draw_pairs([(GREY_IMAGE, [THING._replace(score=None)], []), (GREY_IMAGE, [], [THING])], names, tmp_path / "a.png")
    draw_objects([("latin-\udce9.png", (GREY_IMAGE, [THING]))], names, tmp_path / "b.png", "1 object")
    for name in ("a.png", "b.png"):
        pixels = np.asarray(Image.open(tmp_path / name).convert("RGB"))
        assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 50
