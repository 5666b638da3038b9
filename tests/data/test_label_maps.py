"""Images with label maps: ADE20K's folder, tables, lists of classes; and what is wrong with them, by name."""

import json
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from dmt_ds import storage
from dmt_ds.config.load import load_config
from dmt_ds.config.schema import DataConfig
from dmt_ds.config.segmentation import SegmentConfig
from dmt_ds.data.class_values import ClassValues, class_values
from dmt_ds.data.label_maps import LabelMapSource, decode_annotation, open_label_maps, open_segmented
from dmt_ds.errors import DataError, StorageError
from tests.faults import places
from tests.tiny_scenes import CLASSES, png, scene, write_ade

ADE = SegmentConfig(ignored_values=(0,))


def folder_data(path: Path, **settings: object) -> DataConfig:
    told = {"source": "folder", "path": str(path), "train_split": "training", "val_split": "validation", **settings}
    return DataConfig.model_validate(told)


@pytest.fixture
def ade(tmp_path: Path) -> Path:
    return write_ade(tmp_path / "ade")


def annotation(ade: Path, number: int = 0) -> Path:
    return ade / f"annotations/training/ADE_train_{number:08d}.png"


def test_ade20ks_folder_gives_pairs_whose_zero_is_ignored_and_whose_one_is_class_zero(ade: Path) -> None:
    images = open_segmented(folder_data(ade), ADE)
    assert (len(images.train), len(images.test), images.class_names) == (8, 3, CLASSES)
    image, labels = images.train.read_pair(3)
    _, raw = scene(3)
    assert image.shape == (3, 40, 56)
    assert labels.dtype == torch.uint8
    assert torch.equal(labels == 255, torch.from_numpy(raw == 0))
    assert torch.equal(labels[raw > 0], torch.from_numpy(raw[raw > 0] - 1))


def write_tables(ade: Path, folder: Path) -> DataConfig:
    """The folder's pairs as tables."""
    folder.mkdir()
    for split in ("training", "validation"):
        names = sorted(path.stem for path in (ade / "images" / split).iterdir())
        rows = {
            "image": [str(ade / "images" / split / f"{name}.jpg") for name in names],
            "annotation": [str(ade / "annotations" / split / f"{name}.png") for name in names],
        }
        features = datasets.Features({"image": datasets.Image(), "annotation": datasets.Image()})
        rows = {
            key: [{"bytes": Path(file).read_bytes(), "path": None} for file in files] for key, files in rows.items()
        }
        table = datasets.Dataset.from_dict(rows, features=features)
        table.to_parquet(folder / f"{split}-0.parquet")
    (folder / "classes.json").write_text(json.dumps(CLASSES))
    return folder_data(folder, source="parquet")


def test_a_table_gives_the_same_pairs_as_the_folder(ade: Path, tmp_path: Path) -> None:
    of_folder = open_segmented(folder_data(ade), ADE)
    of_table = open_segmented(write_tables(ade, tmp_path / "tables"), ADE)
    assert of_table.class_names == of_folder.class_names
    for row in range(len(of_folder.test)):
        for one, other in zip(of_folder.test.read_pair(row), of_table.test.read_pair(row), strict=True):
            assert torch.equal(one, other)


def test_max_train_images_takes_pairs_from_all_over_the_split(ade: Path, tmp_path: Path) -> None:
    of_table = write_tables(ade, tmp_path / "tables")
    for data in (folder_data(ade), of_table):
        whole = open_segmented(data, ADE)
        some = open_segmented(data.model_copy(update={"max_train_images": 3}), ADE)
        assert (len(some.train), len(some.test)) == (3, 3)
        for index, row in enumerate((0, 2, 5)):  # of 8
            assert some.train.name(index) == whole.train.name(row)
            for one, other in zip(some.train.read_pair(index), whole.train.read_pair(row), strict=True):
                assert torch.equal(one, other)


def test_a_palette_picture_gives_its_numbers_not_its_colours() -> None:
    raw = np.array([[0, 7], [255, 3]], dtype=np.uint8)
    assert np.array_equal(decode_annotation(png(raw, mode="P"), "map"), raw)
    assert np.array_equal(decode_annotation(png(raw), "map"), raw)


def test_an_annotation_of_one_bit_a_pixel_has_the_values_0_and_1() -> None:
    raw = np.array([[0, 1, 1], [1, 0, 0]], dtype=np.uint8)
    decoded = decode_annotation(png(raw.astype(bool)), "map")
    assert decoded.tolist() == raw.tolist()
    assert ClassValues({0: "ground", 1: "thing"}, ()).classes_of(decoded, "map").tolist() == raw.tolist()


def test_an_annotation_in_colours_is_refused() -> None:
    with pytest.raises(DataError, match=r"maps/1.png: is a picture of mode RGB, but an annotation has one number"):
        decode_annotation(png(np.zeros((2, 2, 3), dtype=np.uint8)), "maps/1.png")


def test_an_annotation_of_another_size_names_both_files(ade: Path) -> None:
    annotation(ade, 1).write_bytes(png(scene(1)[1][:, :50]))
    source = open_label_maps(folder_data(ade), ADE, "train")
    with pytest.raises(DataError, match=r"train_00000001.png: is 50 x 40 pixels, its image .*1.jpg 56 x 40:"):
        source.read_pair(1)


def test_an_annotation_of_an_image_that_exif_turns_is_told_so(ade: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    Image.new("RGB", (56, 40)).save(ade / "images/training/ADE_train_00000001.jpg", exif=exif)
    source = open_label_maps(folder_data(ade), ADE, "train")
    with pytest.raises(DataError, match=r"1.png: is 56 x 40 .*1.jpg 40 x 56, perhaps turned upright by its EXIF data:"):
        source.read_pair(1)


def test_a_value_outside_of_the_class_list_names_the_file_and_the_place(ade: Path) -> None:
    raw = scene(2)[1]
    raw[5, 9] = 77
    annotation(ade, 2).write_bytes(png(raw))
    source = open_label_maps(folder_data(ade), ADE, "train")
    with pytest.raises(
        DataError, match=r"2.png: has the value 77 \(row 5, column 9\), which is none of the 3 classes \(1 to 3\)"
    ):
        source.read_pair(2)


def test_a_value_beyond_eight_bits_is_none_of_the_classes() -> None:
    with pytest.raises(DataError, match="has the value 257"):
        ClassValues({0: "a", 1: "b"}, ()).classes_of(np.array([[0, 257]]), "map")


def test_the_fingerprint_changes_with_an_annotation_a_class_and_a_values_meaning(ade: Path) -> None:
    def fingerprint(section: SegmentConfig = ADE, **settings: object) -> str:
        return open_label_maps(folder_data(ade, **settings), section, "train").fingerprint

    before = fingerprint()
    assert fingerprint() == before
    others = [fingerprint(max_train_images=7), fingerprint(SegmentConfig(ignored_values=(0, 9)))]
    (ade / "classes.json").write_text(json.dumps([CLASSES[1], CLASSES[0], CLASSES[2]]))
    others.append(fingerprint())
    (ade / "classes.json").write_text(json.dumps(CLASSES))
    annotation(ade, 5).write_bytes(annotation(ade, 6).read_bytes())
    others.append(fingerprint())
    assert len({before, *others}) == 5


def test_missing_annotations_are_told_when_the_data_are_opened(ade: Path) -> None:
    annotation(ade, 0).unlink()
    annotation(ade, 4).unlink()
    with pytest.raises(DataError, match=r"0.png: the annotation of .*0.jpg is missing; so are 1 more"):
        open_segmented(folder_data(ade), ADE)


def test_a_broken_annotation_is_told(ade: Path) -> None:
    annotation(ade, 3).write_bytes(annotation(ade, 3).read_bytes()[:40])
    with pytest.raises(DataError, match=r"3.png: not a readable annotation"):
        open_label_maps(folder_data(ade), ADE, "train").read_pair(3)


def test_a_table_without_annotations_names_the_setting(tmp_path: Path) -> None:
    features = datasets.Features({"image": datasets.Image()})
    table = datasets.Dataset.from_dict({"image": [{"bytes": png(scene(0)[0]), "path": None}]}, features=features)
    table.to_parquet(tmp_path / "train-0.parquet")
    data = DataConfig(source="parquet", path=str(tmp_path))
    with pytest.raises(DataError, match=r"no column 'annotation'; set segment.annotation_column to one of: image"):
        open_label_maps(data, SegmentConfig(classes=3), "train")


def test_digits_have_no_annotations() -> None:
    with pytest.raises(DataError, match=r"data.source=digits has no annotations"):
        open_label_maps(DataConfig(), SegmentConfig(classes=3), "train")


@pytest.mark.parametrize(
    ("settings", "raw", "expected"),
    [
        ({"classes": ("a", "b"), "ignored_values": (0,)}, [0, 1, 2, 255], [255, 0, 1, 255]),
        ({"classes": ("a", "b"), "ignored_values": ()}, [0, 1, 255], [0, 1, 255]),
        ({"classes": 3, "ignored_values": (1,)}, [0, 1, 2, 3], [0, 255, 1, 2]),
    ],
)
def test_ignored_values_are_left_out_of_the_numbering(settings: dict, raw: list[int], expected: list[int]) -> None:
    values = class_values(SegmentConfig.model_validate(settings), None)
    assert values.classes_of(np.array([raw]), "map").tolist() == [expected]


def counted(**pixels: int) -> torch.Tensor:
    """Pixels by class number, `c0=3`, and `ignored=...`."""
    counts = torch.zeros(256, dtype=torch.int64)
    for name, count in pixels.items():
        counts[255 if name == "ignored" else int(name[1:])] = count
    return counts


def test_which_class_a_value_is_stands_in_one_line() -> None:
    assert (
        ClassValues({0: "other", 1: "a", 2: "b"}, (0,)).told() == "values of pixels: 1 a, 2 b; no class: 0 (other), 255"
    )
    many = ClassValues({value: f"c{value}" for value in range(1, 151)}, (0,)).told()
    assert many == "values of pixels: 1 c1, 2 c2, 3 c3, 4 c4, ..., 150 c150; no class: 0, 255"


def test_classes_that_are_counted_from_an_ignored_value_are_doubted() -> None:
    values = ClassValues({1: "a", 2: "b", 3: "c"}, (0,))  # maps with 0, 1 and 2: a is taken for none, b for a
    (line,) = values.doubts(counted(c0=5, c1=5, ignored=5), "the maps")
    assert line.startswith("class 'c', value 3, is in none of the maps, and 0 is ignored:")
    assert values.doubts(counted(c0=5, c1=5, c2=1, ignored=5), "the maps") == []
    assert values.doubts(counted(c0=5, ignored=4), "the maps") == []  # more classes than one are rare: too few maps
    assert values.doubts(counted(c0=5, c1=5), "the maps") == []
    assert ClassValues({0: "a", 1: "b", 2: "c"}, (3,)).doubts(counted(c0=5, c1=5, ignored=5), "the maps") == []


def test_maps_most_of_whose_pixels_are_ignored_are_doubted() -> None:
    values = ClassValues({1: "a", 2: "b"}, (0,))
    (line,) = values.doubts(counted(c0=10, c1=10, ignored=60), "the maps")
    assert line.startswith("75 % of the pixels of the maps have no class (values 0, 255):")
    assert values.doubts(counted(c0=10, c1=10, ignored=20), "the maps") == []


def test_names_that_contradict_the_ignored_values_are_doubted() -> None:
    names = {0: "sky", 1: "road", 2: "Unlabelled"}
    wrong = ClassValues(names, (0,)).doubts(counted(c0=1, c1=1), "the maps")
    assert [line.split(",")[0] for line in wrong] == ["value 0 is called 'sky'", "value 2 is called 'Unlabelled'"]
    assert ClassValues(names, (2,)).doubts(counted(c0=1, c1=1), "the maps") == []


def test_a_file_may_name_raw_values_ignored_ones_too(tmp_path: Path) -> None:
    (tmp_path / "classes.json").write_text('{"0": "sky", "3": "road", "11": "unlabelled"}')
    values = class_values(SegmentConfig(ignored_values=(11,)), str(tmp_path))
    assert values.names == ("sky", "road")
    assert values.classes_of(np.array([[3, 0, 11]]), "map").tolist() == [[1, 0, 255]]


def test_ade20ks_own_table_of_names_is_read(tmp_path: Path) -> None:
    (tmp_path / "objectInfo150.txt").write_text(
        "Idx\tRatio\tTrain\tVal\tName\n1\t0.1576\t11664\t1172\twall\n2\t0.1072\t6046\t612\tbuilding, edifice\n"
    )
    assert class_values(SegmentConfig(), str(tmp_path)).names == ("wall", "building, edifice")


@pytest.mark.parametrize(
    ("text", "message"),
    [("[", "not a list of classes"), ('{"a": "b"}', "not a list of classes"), ('{"300": "x"}', "class value 300")],
)
def test_a_list_of_classes_that_is_none_is_told(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "classes.json").write_text(text)
    with pytest.raises(DataError, match=message):
        class_values(SegmentConfig(), str(tmp_path))


def test_a_list_of_classes_that_a_server_does_not_give_is_worth_another_try(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "WAITS_SECONDS", (0.01, 0.01))
    (tmp_path / "classes.json").touch()
    places.without_answer(tmp_path / "classes.json")
    with pytest.raises(StorageError, match=r"classes\.json: can't be read \(Input/output error\)"):
        class_values(SegmentConfig(), str(tmp_path))
    with pytest.raises(DataError, match=r"can't be read \(Is a directory\); segment\.classes must name a file"):
        class_values(SegmentConfig(classes=str(tmp_path)), None)


@pytest.mark.parametrize("source", ["folder", "parquet"])
def test_images_that_are_not_there_are_told_before_the_list_of_their_classes(tmp_path: Path, source: str) -> None:
    data = DataConfig(source=source, path=str(tmp_path / "typo" / "ade"))
    with pytest.raises(DataError, match=r"^data\.path"):
        open_segmented(data, SegmentConfig())
    with pytest.raises(DataError, match=r"^data\.path"):
        open_label_maps(data, SegmentConfig(), "val")


@pytest.mark.parametrize(("told", "names"), [("2", ("class 1", "class 2")), ('["2"]', ("2",))])
def test_a_number_of_classes_is_one_on_the_command_line_too(told: str, names: tuple[str, ...]) -> None:
    section = load_config(None, ["task=segment", f"segment.classes={told}"]).segment
    assert class_values(section, None).names == names


def test_a_number_of_classes_that_8_bits_do_not_hold_is_told() -> None:
    with pytest.raises(DataError, match=r"segment.classes: 255 classes do not fit an annotation's 8 bits"):
        class_values(SegmentConfig(classes=255, ignored_values=(0,)), None)


def test_without_a_list_the_setting_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"segment.classes: is not set, and there is no classes.json"):
        class_values(SegmentConfig(), str(tmp_path))


@pytest.mark.parametrize(
    ("name", "ignored", "counts", "num_classes"), [("camvid", 11, (367, 101), 11), ("coco_semantic", 0, (70, 68), 133)]
)
def test_photographs_with_label_maps_are_read(
    shared_dir: Path, name: str, ignored: int, counts: tuple[int, int], num_classes: int
) -> None:
    data = DataConfig(source="parquet", path=str(shared_dir / "data" / name))
    images = open_segmented(data, SegmentConfig(ignored_values=(ignored,)))
    assert (len(images.train), len(images.test), len(images.class_names)) == (*counts, num_classes)
    for source in images:
        assert isinstance(source, LabelMapSource)
        image, labels = source.read_pair(len(source) - 1)
        assert image.shape[1:] == labels.shape
        assert int(labels[labels != 255].max()) < num_classes
