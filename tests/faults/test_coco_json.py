"""Whatever stands in a COCO JSON, its images and objects are read or one line says what is wrong."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from dmt_ds.data.coco import CocoSource
from dmt_ds.data.coco_library import average_precision
from dmt_ds.errors import DataError

pytest.importorskip("pycocotools")

SOUND: dict[str, Any] = {
    "images": [{"id": 1, "file_name": "a.png", "width": 20, "height": 10}],
    "categories": [{"id": 7, "name": "cat"}],
    "annotations": [
        {"id": 3, "image_id": 1, "category_id": 7, "bbox": [1.0, 2.0, 5.0, 4.0], "area": 20.0, "iscrowd": 0,
         "segmentation": [[1.0, 2.0, 6.0, 2.0, 6.0, 6.0]]},
    ],
}  # fmt: skip
PLACES = [
    (section, *rest)
    for section, entries in SOUND.items()
    for rest in [(), (0,), *((0, key) for key in entries[0])]
]  # fmt: skip
NUMBERS = st.integers(-(2**70), 2**70) | st.floats()
COUNTS = (
    st.text(max_size=6) | st.text(st.characters(min_codepoint=48, max_codepoint=111)) | st.lists(NUMBERS, max_size=4)
)
VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | st.text(max_size=8) | st.sampled_from(["../a.png", "/etc/passwd", "a\0b"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=2),
    max_leaves=6,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("coco")
    Image.new("RGB", (20, 10)).save(folder / "a.png")
    return folder


def read_all(folder: Path, text: str) -> None:
    """Read everything; a DataError of one line is as good."""
    (folder / "a.json").write_text(text)
    told = None
    try:
        source = CocoSource(folder / "a.json", folder)
        for index in range(len(source)):
            source.look(index)
        source.unseen_categories()
        for kind in ("bbox", "segm"):
            average_precision(source.truth(), [], kind)
    except DataError as error:
        told = str(error)
    assert told is None or (told.strip() and "\n" not in told)


def test_the_sound_one_is_read(folder: Path) -> None:
    (folder / "a.json").write_text(json.dumps(SOUND))
    source = CocoSource(folder / "a.json", folder)
    assert len(source.objects(0)) == 1 and source.read(0).shape == (3, 10, 20)


@settings(max_examples=300)
@given(st.lists(st.tuples(st.sampled_from(PLACES), VALUES), min_size=1, max_size=2))
def test_any_value_at_any_place_is_read_or_told(folder: Path, changes) -> None:
    content = copy.deepcopy(SOUND)
    for place, value in changes:
        inside: Any = content
        try:
            for step in place[:-1]:
                inside = inside[step]
            inside[place[-1]] = value
        except (KeyError, IndexError, TypeError):
            continue  # an earlier change took the place away
    read_all(folder, json.dumps(content))


@given(COUNTS | st.builds(lambda a, b: [a, b - a, 200 - b], *[st.integers(-9, 200)] * 2))
def test_any_rle_is_drawn_or_told(folder: Path, counts) -> None:
    content = copy.deepcopy(SOUND)
    content["annotations"][0]["segmentation"] = {"size": [10, 20], "counts": counts}
    read_all(folder, json.dumps(content))


@given(VALUES)
def test_any_json_is_read_or_told(folder: Path, content) -> None:
    read_all(folder, json.dumps(content))
