"""Ids of the images that a detector is asked about."""

import pytest

from dmt_ds.commands.predict_objects import image_ids


@pytest.mark.parametrize(
    ("files", "ids"),
    [
        (["val/000000000139.jpg", "val/000000000285.jpg"], [139, 285]),  # as COCO's are called
        (["a.jpg", "b.jpg", "7.jpg"], [1, 2, 3]),
        (["x/1.jpg", "y/01.jpg"], [1, 2]),  # the same number twice
        (["²3.jpg"], [1]),
    ],
)
def test_numbers_that_all_images_are_called_are_their_ids(files: list[str], ids: list[int]) -> None:
    assert image_ids(files) == ids
