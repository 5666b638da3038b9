"""A COCO JSON is read as it is, and what is wrong with it is said in one line that names the file."""

import gc
import json
import logging
import pickle
import threading
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from dmt_ds import storage
from dmt_ds.commands.checks.image_check import look_at_images
from dmt_ds.data.coco import CocoSource, check_judged, check_same_categories, open_coco
from dmt_ds.data.coco_checks import runs_of
from dmt_ds.data.coco_library import average_precision, encoded, mask_of
from dmt_ds.errors import DataError, StorageError
from tests.faults import places
from tests.tiny_coco import Change, needs_pycocotools, rectangle, write_split

JSON, IMAGES = "annotations/instances_{split}.json", "{split}"


def opened(root: Path, change: Change | None = None, num_images: int = 3) -> CocoSource:
    write_split(root, "train", num_images, change)
    return opened_again(root)


def opened_again(root: Path) -> CocoSource:
    return open_coco(str(root), "train", JSON, IMAGES)


def test_images_come_with_their_objects_in_the_order_of_ids(tmp_path: Path) -> None:
    def turn_round(content: dict[str, Any]) -> None:
        content["images"].reverse()
        content["categories"] = content["categories"][::-1]

    source = opened(tmp_path, turn_round)
    assert source.ids.tolist() == [10, 11, 12]
    assert source.class_names == ("red", "blue") and [category.id for category in source.categories] == [3, 7]
    first = source.objects(0)
    assert [thing.label for thing in first] == [0, 1]
    x1, y1, x2, y2 = first[0].box
    image = source.read(0)  # the box holds the red rectangle; the blue one may lie over its end, never over its start
    assert image[:, int(y1), int(x1)].tolist() in ([220, 30, 30], [30, 60, 220])
    assert 0 <= x1 < x2 <= image.shape[2] and 0 <= y1 < y2 <= image.shape[1]


def test_loader_processes_get_the_same_objects(tmp_path: Path) -> None:
    source = opened(tmp_path)
    copy = pickle.loads(pickle.dumps(source))
    assert [copy.objects(row) for row in range(3)] == [source.objects(row) for row in range(3)]


def test_no_garbage_is_collected_while_a_json_is_read_and_again_after_a_bad_one_too(tmp_path: Path) -> None:
    def many(content: dict[str, Any]) -> None:
        first = content["annotations"][0]
        content["annotations"] += [{**first, "id": 1000 + number} for number in range(5000)]

    path = write_split(tmp_path, "train", 1, many)
    collected: list[str] = []

    def note(phase: str, _info: dict[str, int]) -> None:
        collected.append(phase)

    gc.callbacks.append(note)
    try:
        CocoSource(path, tmp_path / "train")
    finally:
        gc.callbacks.remove(note)
    assert collected.count("start") <= 1, "the one that is due when all is read"
    assert gc.isenabled()
    path.write_text("{}")
    with pytest.raises(DataError):
        CocoSource(path, tmp_path / "train")
    assert gc.isenabled()


def test_an_image_without_objects_has_none(tmp_path: Path) -> None:
    def empty_the_second(content: dict[str, Any]) -> None:
        content["annotations"] = [entry for entry in content["annotations"] if entry["image_id"] != 11]

    source = opened(tmp_path, empty_the_second)
    assert [len(source.objects(row)) for row in range(3)] == [2, 0, 2]


def test_crowds_are_not_learned_from_but_judged_by(tmp_path: Path) -> None:
    def make_crowd(content: dict[str, Any]) -> None:
        content["annotations"][0]["iscrowd"] = 1

    source = opened(tmp_path, make_crowd)
    assert len(source.objects(0)) == 1
    assert [entry["iscrowd"] for entry in source.truth()["annotations"]] == [1, 0, 0, 0, 0, 0]


@pytest.mark.parametrize("box", [[5, 5, 0, 20], [5, 5, 20, -1], [500, 5, 20, 20], [-30, 5, 20, 20], [50, 5, 1e-6, 20]])
def test_a_box_that_shows_nothing_is_named_and_left_out(
    tmp_path: Path, box: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    def spoil(content: dict[str, Any]) -> None:
        content["annotations"][1]["bbox"] = box

    with caplog.at_level(logging.WARNING):
        source = opened(tmp_path, spoil)
    assert len(source.objects(0)) == 1
    assert "instances_train.json: 1 objects" in caplog.text and "annotation 2 (0000.png" in caplog.text


def test_a_box_that_reaches_out_of_its_image_is_cut_at_the_edge(tmp_path: Path) -> None:
    def reach_out(content: dict[str, Any]) -> None:
        content["annotations"][0]["bbox"] = [-10, 50, 30, 100]

    assert opened(tmp_path, reach_out).objects(0)[0].box == (0, 50, 20, 64)


def test_an_outline_of_two_corners_is_left_out(tmp_path: Path) -> None:
    def spoil(content: dict[str, Any]) -> None:
        content["annotations"][0]["segmentation"] = [[1, 1, 9, 9]]

    assert len(opened(tmp_path, spoil).objects(0)) == 1


@needs_pycocotools
def test_what_an_object_does_not_say_is_filled_in_for_the_judge(tmp_path: Path) -> None:
    triangle = [[10, 10, 30, 10, 30, 30]]

    def leave_out(content: dict[str, Any]) -> None:
        for entry in content["annotations"]:
            del entry["area"], entry["iscrowd"]
        content["annotations"][0].update(bbox=[10, 10, 20, 20], segmentation=[[1, 1, 9, 9], *triangle])
        content["annotations"][1].update(bbox=[10, 10, 20, 20], segmentation=[[1, 1, 9, 9]])

    truth = opened(tmp_path, leave_out).truth()
    first, second = truth["annotations"][:2]
    assert first["segmentation"] == triangle and second["segmentation"] == rectangle(10, 10, 20, 20)
    assert first["area"] == int(mask_of(triangle, 64, 80).sum()) < 300 and second["area"] == 400
    assert first["iscrowd"] == 0
    assert average_precision(truth, [], "segm")["ap"] == 0  # pycocotools takes a polygon of two corners for a box


@pytest.mark.parametrize("masks", [False, True])
def test_null_is_as_if_it_did_not_stand_there(tmp_path: Path, masks: bool) -> None:
    def nulls(content: dict[str, Any]) -> None:
        for entry in content["annotations"]:
            entry.update(area=None, iscrowd=None)
        for entry in content["annotations"] if not masks else ():
            entry.update(segmentation=None)

    def nothing(content: dict[str, Any]) -> None:
        nulls(content)
        for entry in content["annotations"]:
            for key in [key for key, value in entry.items() if value is None]:
                del entry[key]

    with_nulls, without = (
        CocoSource(write_split(root, "train", 3, change), root / "train", masks=masks)
        for root, change in ((tmp_path / "nulls", nulls), (tmp_path / "none", nothing))
    )
    assert [with_nulls.objects(row) for row in range(3)] == [without.objects(row) for row in range(3)]
    assert len(with_nulls.objects(0)) == 2 and with_nulls.num_judged == 6
    if find_spec("pycocotools"):
        assert with_nulls.truth()["annotations"] == without.truth()["annotations"]


def test_without_an_object_that_is_no_crowd_there_is_nothing_to_judge_by(tmp_path: Path) -> None:
    def crowds_alone(content: dict[str, Any]) -> None:
        for entry in content["annotations"]:
            entry["iscrowd"] = 1

    check_judged(opened(tmp_path))
    with pytest.raises(DataError, match=r"instances_train\.json: has no object besides crowds"):
        check_judged(opened(tmp_path, crowds_alone))


@needs_pycocotools
@pytest.mark.parametrize("counts", ["zzzz", "", ";;;", "é", "0" * 3, [5120 + 5, -5], ["5120"]])
def test_an_rle_that_is_of_no_such_image_is_refused(tmp_path: Path, counts: object) -> None:
    def spoil(content: dict[str, Any]) -> None:
        content["annotations"][0]["segmentation"] = {"size": [64, 80], "counts": counts}

    with pytest.raises(DataError, match="annotation 1: the counts of its RLE"):
        opened(tmp_path, spoil)


@needs_pycocotools
def test_the_runs_of_a_text_are_those_that_pycocotools_wrote() -> None:
    torch.manual_seed(0)
    for share in (0.5, 0.02, 0.0005, 0.0, 1.0):
        mask = (torch.rand(300, 200) < share).to(torch.uint8)
        (rle,) = encoded(mask[None])
        runs = runs_of(rle["counts"])
        assert runs is not None
        values = torch.arange(len(runs)) % 2
        assert torch.equal(values.repeat_interleave(torch.tensor(runs)), mask.T.flatten())


@needs_pycocotools
def test_a_look_at_all_images_is_one_at_their_outlines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, drawn = opened(tmp_path), []
    monkeypatch.setattr("dmt_ds.data.coco.mask_of", lambda outline, *size: drawn.append((outline, size)))
    assert look_at_images(source, every_image=True) == (3, [])
    own = [(thing.segmentation, source.size(row)) for row in range(3) for thing in source.objects(row)]
    assert sorted(drawn) == sorted(own) and len(own) == 6


def of_unknown_category(content: dict[str, Any]) -> None:
    content["annotations"][2]["category_id"] = 5


def of_unknown_image(content: dict[str, Any]) -> None:
    content["annotations"][2]["image_id"] = 99


def same_annotation_twice(content: dict[str, Any]) -> None:
    content["annotations"][2]["id"] = 1


def same_image_twice(content: dict[str, Any]) -> None:
    content["images"].append(content["images"][0])


def same_category_twice(content: dict[str, Any]) -> None:
    content["categories"] = [*content["categories"], {"id": 7, "name": "sky"}]


def file_is_gone(content: dict[str, Any]) -> None:
    content["images"][1]["file_name"] = "gone.png"


def id_of_text(content: dict[str, Any]) -> None:
    content["images"][1]["id"] = "eleven"


def file_elsewhere(content: dict[str, Any]) -> None:
    content["images"][1]["file_name"] = "../annotations/instances_train.json"


def name_of_half_a_character(content: dict[str, Any]) -> None:
    content["images"][1]["file_name"] = "\ud800.png"


def size_of_truth(content: dict[str, Any]) -> None:
    content["images"][1]["height"] = True


def id_of_truth(content: dict[str, Any]) -> None:
    content["images"][1]["id"] = True


def size_of_nothing(content: dict[str, Any]) -> None:
    content["images"][1]["height"] = 0


def area_of_text(content: dict[str, Any]) -> None:
    content["annotations"][0]["area"] = "12"


def crowd_of_text(content: dict[str, Any]) -> None:
    content["annotations"][0]["iscrowd"] = "0"


def name_of_a_number(content: dict[str, Any]) -> None:
    content["categories"] = [{"id": 3, "name": "red"}, {"id": 7, "name": 8}]


def id_of_many_digits(content: dict[str, Any]) -> None:
    content["images"][1]["id"] = 10**30


def box_beyond_all(content: dict[str, Any]) -> None:
    content["annotations"][0]["bbox"] = [0, 0, 1e30, 10**400]


def outline_beyond_all(content: dict[str, Any]) -> None:
    content["annotations"][0]["segmentation"] = [[0, 0, 1e9, 0, 1e9, 1e9]]


def outline_of_text(content: dict[str, Any]) -> None:
    content["annotations"][0]["segmentation"] = [["1", "2"]]


def rle_of_other_size(content: dict[str, Any]) -> None:
    content["annotations"][0]["segmentation"] = {"size": [9, 9], "counts": [81]}


def rle_too_short(content: dict[str, Any]) -> None:
    content["annotations"][0]["segmentation"] = {"size": [64, 80], "counts": [5, 5]}


def box_of_three(content: dict[str, Any]) -> None:
    content["annotations"][0]["bbox"] = [1, 2, 3]


def no_images(content: dict[str, Any]) -> None:
    content["images"] = []


def no_categories(content: dict[str, Any]) -> None:
    del content["categories"]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (of_unknown_category, "annotation 3 is of category 5, which `categories` does not declare"),
        (of_unknown_image, "annotation 3 is of image 99, which `images` does not declare"),
        (same_annotation_twice, "annotation id 1 occurs 2 times"),
        (same_image_twice, "image id 10 occurs 2 times"),
        (same_category_twice, "category id 7 occurs 2 times"),
        (file_is_gone, "1 of 3 images are not in"),
        (id_of_text, "image id 'eleven' is not a 64-bit integer"),
        (file_elsewhere, "image 11 has the file_name '../annotations/instances_train.json', which is not a path below"),
        (name_of_half_a_character, r"image 11 has the file_name '\ud800.png', which is not a path below"),
        (size_of_truth, "image 11 has the height and width [True, 56]"),
        (id_of_truth, "image id True is not a 64-bit integer"),
        (size_of_nothing, "image 11 has the height and width [0, 56]"),
        (area_of_text, "annotation 1 has the area '12'"),
        (crowd_of_text, "annotation 1 has the iscrowd '0'"),
        (name_of_a_number, "category 7 has the name 8, which is not text"),
        (id_of_many_digits, "is not a 64-bit integer"),
        (box_beyond_all, "annotation 1 has the bbox [0, 0, 1e+30"),
        (outline_beyond_all, "annotation 1: its segmentation is neither"),
        (outline_of_text, "annotation 1: its segmentation is neither"),
        (rle_of_other_size, "annotation 1: its RLE is of size [9, 9], its image of [64, 80]"),
        (rle_too_short, "annotation 1: the counts of its RLE add up to 10"),
        (box_of_three, "annotation 1 has the bbox [1, 2, 3]"),
        (no_images, "names no image"),
        (no_categories, "no key 'categories'"),
    ],
)
def test_a_json_that_contradicts_itself_is_refused_by_its_name(tmp_path: Path, change: Change, told: str) -> None:
    with pytest.raises(DataError) as caught:
        opened(tmp_path, change)
    assert str(caught.value).startswith(f"{tmp_path / 'annotations' / 'instances_train.json'}: ")
    assert told in str(caught.value) and "\n" not in str(caught.value)


def test_a_file_that_is_no_json_is_refused(tmp_path: Path) -> None:
    path = write_split(tmp_path, "train", 1)
    path.write_text(path.read_text()[:-5])
    with pytest.raises(DataError, match=r"instances_train\.json: is not a COCO JSON"):
        open_coco(str(tmp_path), "train", JSON, IMAGES)


def test_a_json_that_a_server_does_not_give_is_worth_another_try(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "WAITS_SECONDS", (0.01, 0.01))
    source = opened(tmp_path)
    places.without_answer(source.file)
    for read in (source.truth, lambda: CocoSource(source.file, tmp_path / "train")):
        with pytest.raises(StorageError, match=r"instances_train\.json: can't be read \(Input/output error\)"):
            read()
    source.file.unlink()
    source.file.mkdir()
    with pytest.raises(DataError, match=r"can't be read \(Is a directory\); detect\.annotations must name a file"):
        opened_again(tmp_path)


def test_a_json_that_can_be_read_again_within_seconds_is_the_same(tmp_path: Path) -> None:
    source = opened(tmp_path)
    kept = source.file.rename(tmp_path / "kept")
    source.file.touch()
    places.without_answer(source.file)
    heals = threading.Timer(0.1, kept.replace, [source.file])
    heals.start()
    assert CocoSource(source.file, tmp_path / "train").fingerprint == source.fingerprint
    heals.join()


def test_a_split_that_is_not_there_is_told_by_the_setting(tmp_path: Path) -> None:
    write_split(tmp_path, "train", 1)
    with pytest.raises(DataError, match=r"detect\.annotations: .*instances_val\.json does not exist"):
        open_coco(str(tmp_path), "val", JSON, IMAGES)


def test_a_picture_of_another_size_than_its_annotation_is_refused(tmp_path: Path) -> None:
    source = opened(tmp_path)
    Image.new("RGB", (40, 30)).save(tmp_path / "train" / "0001.png")
    with pytest.raises(DataError, match=r"0001\.png: is 40 x 30 pixels, but .*instances_train\.json says 56 x 72"):
        source.read(1)


def test_a_picture_that_exif_turns_is_told_so(tmp_path: Path) -> None:
    source = opened(tmp_path)
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    Image.new("RGB", (56, 72)).save(tmp_path / "train" / "0001.png", exif=exif)
    with pytest.raises(DataError, match=r"0001\.png: is upright, as its EXIF data turn it, 72 x 56 pixels, but"):
        source.read(1)


def test_splits_must_mean_the_same_by_a_category(tmp_path: Path) -> None:
    def rename(content: dict[str, Any]) -> None:
        content["categories"] = [{"id": 3, "name": "red"}, {"id": 7, "name": "green"}]

    train = opened(tmp_path)
    write_split(tmp_path, "val", 1, rename)
    with pytest.raises(DataError, match=r"category 7 'blue' is .* in \S*_train\.json and in \S*_val\.json: "):
        check_same_categories(train, open_coco(str(tmp_path), "val", JSON, IMAGES))


def test_file_names_may_have_folders(tmp_path: Path) -> None:
    def put_into_folder(content: dict[str, Any]) -> None:
        (tmp_path / "train" / "deep").mkdir()
        (tmp_path / "train" / "0002.png").rename(tmp_path / "train" / "deep" / "x.png")
        content["images"][2]["file_name"] = "deep/x.png"

    assert opened(tmp_path, put_into_folder).read(2).dtype == torch.uint8


def test_the_fingerprint_changes_with_the_annotations(tmp_path: Path) -> None:
    def move(content: dict[str, Any]) -> None:
        content["annotations"][0]["bbox"][0] += 1

    before = opened(tmp_path).fingerprint
    assert opened(tmp_path).fingerprint == before != opened(tmp_path, move).fingerprint


def test_real_photographs_open_with_all_that_coco_says(shared_dir: Path) -> None:
    root = shared_dir / "data" / "coco_instances"
    if not root.is_dir():
        pytest.skip(f"no photographs at {root}")
    source = open_coco(str(root), "val2017", JSON, IMAGES)
    assert (len(source), len(source.categories)) == (199, 80)
    written = json.loads((root / "annotations" / "instances_val2017.json").read_text())["annotations"]
    learned = sum(len(source.objects(row)) for row in range(len(source)))
    assert learned == sum(not entry["iscrowd"] for entry in written)
    assert sum(not source.objects(row) for row in range(len(source))) >= 2
    assert tuple(source.read(0).shape[1:]) == source.size(0)
