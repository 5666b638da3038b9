"""Every kind of data set opens to the same thing, and a wrong path gets one line with what is there."""

import errno
import io
import os
import pickle
import shutil
import tarfile
import threading
from collections.abc import Callable
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.datasets import ImageFolder

from dmt_ds import storage
from dmt_ds.commands.checks.image_check import look_at_images
from dmt_ds.config.schema import DataConfig
from dmt_ds.data.folder import PackedNames
from dmt_ds.data.sources import ImageSource, left_out, open_source
from dmt_ds.errors import DataError, StorageError
from tests.faults import places


@pytest.fixture(scope="module")
def digits() -> ImageSource:
    return open_source(DataConfig(), "val")


def picture(source: ImageSource, index: int) -> Image.Image:
    return Image.fromarray(source.read(index).permute(1, 2, 0).numpy())


def write_folder(root: Path, source: ImageSource, indices: range, suffix: str = ".png") -> None:
    for index in indices:
        folder = root / f"digit_{source.label(index)}"
        folder.mkdir(parents=True, exist_ok=True)
        picture(source, index).save(folder / f"{index}{suffix}")


@pytest.fixture
def image_folder(tmp_path: Path, digits: ImageSource) -> Path:
    write_folder(tmp_path / "train", digits, range(60))
    write_folder(tmp_path / "val", digits, range(60, 100), ".jpg")
    return tmp_path


def one_line(call: Callable[[], Any]) -> str:
    with pytest.raises(DataError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("split", ["test", "validation"])
@pytest.mark.parametrize("section", [{}, {"source": "folder", "path": "/nowhere"}])
def test_an_unknown_split_is_refused_with_those_that_are_known(section: dict[str, str], split: Any) -> None:
    with pytest.raises(ValueError, match=f"split '{split}' is not known: it is train or val"):
        open_source(DataConfig(**section), split)


def test_digits_are_split_1437_to_360_with_each_digit_in_both() -> None:
    train, val = open_source(DataConfig(), "train"), open_source(DataConfig(), "val")
    assert (len(train), len(val)) == (1437, 360)
    for source in (train, val):
        counts = np.bincount([source.label(index) for index in range(len(source))])
        assert len(counts) == 10 and counts.min() > 0.09 * len(source)


def test_digits_are_all_there_once_in_8_bit_rgb() -> None:
    from sklearn.datasets import load_digits

    sources = [open_source(DataConfig(), split) for split in ("train", "val")]  # type: ignore[arg-type]
    images = torch.stack([source.read(index) for source in sources for index in range(len(source))])
    assert images.dtype == torch.uint8 and images.shape == (1797, 3, 8, 8) and images.max() == 255
    assert torch.equal(images[:, 0], images[:, 2])
    expected = np.rint(load_digits().data * 255 / 16).astype(int)
    assert sorted(map(tuple, images[:, 0].flatten(1).tolist())) == sorted(map(tuple, expected.tolist()))


def test_a_folder_is_read_in_torchvisions_order(image_folder: Path) -> None:
    nested = image_folder / "train" / "digit_3" / "more"
    nested.mkdir()
    shutil.copy(next((image_folder / "train" / "digit_3").glob("*.png")), nested / "a.PNG")
    mine = open_source(DataConfig(source="folder", path=str(image_folder)), "train")
    theirs = ImageFolder(str(image_folder / "train"))
    assert [(mine.name(index), mine.label(index)) for index in range(len(mine))] == theirs.samples
    assert mine.class_names == tuple(theirs.classes)
    assert torch.equal(mine.read(5), torch.from_numpy(np.array(theirs[5][0])).permute(2, 0, 1))


@pytest.mark.parametrize("back", [".", ".."])
def test_a_link_that_turns_back_makes_a_picture_no_second_one(image_folder: Path, back: str) -> None:
    section = DataConfig(source="folder", path=str(image_folder))
    whole = open_source(section, "train")
    digit = image_folder / "train" / "digit_3"
    (digit / "back").symlink_to(back)
    assert open_source(section, "train").fingerprint == whole.fingerprint
    shutil.copytree(image_folder / "val" / "digit_3", image_folder / "elsewhere")
    (digit / "on").symlink_to(image_folder / "elsewhere")
    assert len(open_source(section, "train")) == 60 + len(list((image_folder / "elsewhere").iterdir())) > 60


def test_hidden_files_are_no_pictures(image_folder: Path) -> None:
    section = DataConfig(source="folder", path=str(image_folder))
    whole = open_source(section, "train")
    digit = image_folder / "train" / "digit_3"
    picture = min(digit.glob("*.png"))
    (digit / f"._{picture.name}").write_bytes(b"of macOS")
    (digit / ".ipynb_checkpoints").mkdir()
    shutil.copy(picture, digit / ".ipynb_checkpoints")
    assert open_source(section, "train").fingerprint == whole.fingerprint


def test_images_beside_class_folders_are_counted_and_leave_the_others_as_they_are(image_folder: Path) -> None:
    section = DataConfig(source="folder", path=str(image_folder))
    whole, train = open_source(section, "train"), image_folder / "train"
    (train / "readme.txt").touch()
    (train / ".hidden.png").touch()
    assert left_out(whole) is None and left_out(open_source(section, "train")) is None
    shutil.copytree(train / "digit_3", train, dirs_exist_ok=True)
    few = open_source(section.model_copy(update={"max_train_images": 20}), "train")
    count = len(list(train.glob("[!.]*.png")))
    for source in (open_source(section, "train"), few):
        line = left_out(source)
        assert line is not None and f"(digit_0, digit_1, digit_2, ...) are left out, {count} of them: " in line
    assert open_source(section, "train").fingerprint == whole.fingerprint


def test_val_is_found_where_the_recipe_says_validation(image_folder: Path) -> None:
    assert len(open_source(DataConfig(source="folder", path=str(image_folder)), "val")) == 40


def test_a_folder_without_classes_has_no_labels(image_folder: Path) -> None:
    flat = image_folder / "flat"
    flat.mkdir()
    for file in (image_folder / "train").rglob("*.png"):
        shutil.copy(file, flat / file.name)
    source = open_source(DataConfig(source="folder", path=str(image_folder), train_split="flat"), "train")
    assert len(source) == 60 and source.class_names == () and source.label(7) == -1 and left_out(source) is None
    assert source.read(7).shape == (3, 8, 8)


def test_a_trial_takes_images_of_all_classes(image_folder: Path) -> None:
    section = DataConfig(source="folder", path=str(image_folder))
    whole, some = (open_source(section.model_copy(update={"max_train_images": n}), "train") for n in (None, 20))
    assert len(some) == 20 and some.fingerprint != whole.fingerprint
    assert [some.name(index) for index in range(20)] == [whole.name(3 * index) for index in range(20)]
    assert {some.label(index) for index in range(20)} == set(range(len(whole.class_names)))


@pytest.mark.parametrize("asked", [60, 1000])
def test_a_trial_of_more_images_than_there_are_takes_all_of_them(image_folder: Path, asked: int) -> None:
    section = DataConfig(source="folder", path=str(image_folder))
    whole, some = (open_source(section.model_copy(update={"max_train_images": n}), "train") for n in (None, asked))
    assert [some.name(index) for index in range(len(some))] == [whole.name(index) for index in range(60)]


def test_an_empty_class_is_named(image_folder: Path) -> None:
    (image_folder / "train" / "zebra").mkdir()
    assert "zebra: no image" in one_line(
        lambda: open_source(DataConfig(source="folder", path=str(image_folder)), "train")
    )


def test_an_empty_data_set_is_named(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    assert "train: no image" in one_line(lambda: open_source(DataConfig(source="folder", path=str(tmp_path)), "train"))


@pytest.mark.parametrize("kind", ["folder", "parquet", "webdataset"])
def test_a_misspelt_path_is_answered_with_near_ones(kind: Any, image_folder: Path) -> None:
    (image_folder / "imagenet").mkdir()
    message = one_line(lambda: open_source(DataConfig(source=kind, path=str(image_folder / "imagnet")), "train"))
    assert "data.path" in message and "did you mean imagenet?" in message


def test_a_missing_split_is_answered_with_those_that_are_there(image_folder: Path) -> None:
    section = DataConfig(source="folder", path=str(image_folder), train_split="training")
    assert "did you mean train?" in one_line(lambda: open_source(section, "train"))


def test_of_many_files_some_are_named_folders_first_and_dots_say_that_there_are_more(tmp_path: Path) -> None:
    for number in range(8):
        (tmp_path / f"{number}.txt").touch()
    (tmp_path / "notes").mkdir()
    section = DataConfig(source="folder", path=str(tmp_path))
    message = one_line(lambda: open_source(section, "train"))
    assert message.endswith("; there are: notes, 0.txt, 1.txt, 2.txt, 3.txt, 4.txt, 5.txt, 6.txt, ...")
    (tmp_path / "7.txt").unlink()
    assert one_line(lambda: open_source(section, "train")).endswith("5.txt, 6.txt")
    (tmp_path / "0.link").symlink_to("x" * 300)  # what can't be looked at, as a mount whose server is gone
    assert one_line(lambda: open_source(section, "train")).endswith(
        "there are: notes, 0.link, 0.txt, 1.txt, 2.txt, 3.txt, 4.txt, 5.txt, ..."
    )


def test_a_name_that_is_only_half_alike_is_not_taken_for_a_slip(tmp_path: Path) -> None:
    (tmp_path / "flat").mkdir()
    section = DataConfig(source="folder", path=str(tmp_path / "data"))
    assert one_line(lambda: open_source(section, "train")).endswith("there are: flat")


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_folder_of_images_without_splits_is_told_how_it_is_taken(split: Any, tmp_path: Path, digits: Any) -> None:
    picture(digits, 0).save(tmp_path / "0.PNG")
    section = DataConfig(source="folder", path=str(tmp_path))
    told = f"data.{split}_split=. takes the images that lie in {tmp_path} itself"
    assert one_line(lambda: open_source(section, split)).endswith(told)
    assert len(open_source(section.model_copy(update={f"{split}_split": "."}), split)) == 1


def test_a_file_in_place_of_a_folder_gets_a_line(image_folder: Path) -> None:
    (image_folder / "file").write_text("x")
    one_line(lambda: open_source(DataConfig(source="folder", path=str(image_folder / "file")), "train"))


def test_a_broken_file_is_named_when_it_is_read(image_folder: Path) -> None:
    source = open_source(DataConfig(source="folder", path=str(image_folder)), "train")
    Path(source.name(3)).write_bytes(b"")
    Path(source.name(4)).unlink()
    for index in (3, 4):
        assert source.name(index) in one_line(lambda index=index: source.read(index))  # type: ignore[misc]


def test_an_image_that_a_server_does_not_give_is_worth_another_try_and_one_that_is_gone_is_not(
    image_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "WAITS_SECONDS", (0.01, 0.01))
    source = open_source(DataConfig(source="folder", path=str(image_folder)), "train")
    Path(source.name(6)).unlink()
    assert f"{source.name(6)}: can't be read" in one_line(lambda: source.read(6))
    places.without_answer(Path(source.name(7)))
    with pytest.raises(StorageError, match=r"\.png: can't be read \(Input/output error\)[^\n]*start again") as told:
        source.read(7)
    assert told.value.exit_code == 75 and source.name(7) in str(told.value)
    broken = look_at_images(source, every_image=True)[1]  # a doctor names both, and goes on
    assert [(source.name(row) in str(error), error.exit_code) for row, error in zip((6, 7), broken, strict=True)] == [
        (True, 2),
        (True, 75),
    ]


def test_an_image_that_can_be_read_again_within_seconds_is_the_same(image_folder: Path) -> None:
    source = open_source(DataConfig(source="folder", path=str(image_folder)), "train")
    file, image = Path(source.name(7)), source.read(7)
    kept = Path(shutil.copy(file, image_folder / "kept"))
    places.without_answer(file)
    heals = threading.Timer(0.1, kept.replace, [file])
    heals.start()
    assert torch.equal(source.read(7), image)
    heals.join()


def refuse_to_list(monkeypatch: pytest.MonkeyPatch, folder: Path, reason: int, times: int = 99) -> None:
    """The kernel answers so many looks into the folder with an error."""
    answers, scandir = iter([reason] * times), os.scandir

    def look(path: str | Path) -> Any:
        if Path(path) == folder and (reason := next(answers, None)):
            raise OSError(reason, os.strerror(reason), str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", look)
    monkeypatch.setattr(storage, "WAITS_SECONDS", (0, 0, 0))


@pytest.mark.parametrize("inner", ["", "digit_3", "digit_3/more"])
def test_a_folder_without_an_answer_is_asked_again_and_never_taken_for_an_empty_one(
    image_folder: Path, monkeypatch: pytest.MonkeyPatch, inner: str
) -> None:
    section = DataConfig(source="folder", path=str(image_folder))
    digit = image_folder / "train" / "digit_3"
    (digit / "more").mkdir()
    min(digit.glob("*.png")).rename(digit / "more" / "moved.png")
    whole = open_source(section, "train").fingerprint
    with monkeypatch.context() as harm:
        refuse_to_list(harm, image_folder / "train" / inner, errno.ESTALE, times=2)
        assert open_source(section, "train").fingerprint == whole
    with monkeypatch.context() as harm:
        refuse_to_list(harm, image_folder / "train" / inner, errno.ESTALE)
        with pytest.raises(StorageError, match=rf"{inner}: can't be listed \(Stale file handle\): look at the disk"):
            open_source(section, "train")
    refuse_to_list(monkeypatch, image_folder / "train" / inner, errno.EACCES)
    assert f"{inner}: can't be listed (Permission denied)" in one_line(lambda: open_source(section, "train"))


def without_listing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel answers no look into a folder."""

    def look(path: str | Path) -> Any:
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), str(path))

    monkeypatch.setattr(os, "listdir", look)
    monkeypatch.setattr(storage, "WAITS_SECONDS", (0, 0, 0))


@pytest.mark.parametrize("source", ["parquet", "webdataset"])
def test_a_folder_of_tables_without_an_answer_is_not_an_empty_one(
    source: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_listing(monkeypatch)
    with pytest.raises(StorageError, match=rf"{tmp_path}: can't be listed \(Stale file handle\): look at the disk"):
        open_source(DataConfig(source=source, path=str(tmp_path)), "train")


def test_a_table_without_an_answer_is_worth_another_try(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`datasets` hides the kernel's answer behind an error of its own."""

    def load(*words: Any, **named: Any) -> Any:
        raise datasets.exceptions.DatasetGenerationError("x") from OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(datasets, "load_dataset", load)
    (tmp_path / "train.parquet").touch()
    with pytest.raises(StorageError, match=r"train\.parquet can't be opened .*Input/output error; look at the disk"):
        open_source(DataConfig(source="parquet", path=str(tmp_path)), "train")


def test_the_fingerprint_follows_the_data_not_its_place(
    image_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    def fingerprint(root: Path) -> str:
        return open_source(DataConfig(source="folder", path=str(root)), "train").fingerprint

    copy = tmp_path_factory.mktemp("elsewhere") / "copy"
    shutil.copytree(image_folder, copy)
    assert fingerprint(copy) == fingerprint(image_folder)
    next((copy / "train").rglob("*.png")).unlink()
    assert fingerprint(copy) != fingerprint(image_folder)


def test_a_million_names_pickle_to_little_more_than_their_letters() -> None:
    names = PackedNames([f"n{index % 1000:08d}/n_{index}.JPEG" for index in range(100_000)])
    assert len(pickle.dumps(names)) < 100_000 * 35
    assert names[0] == "n00000000/n_0.JPEG" and names[99_999] == "n00000999/n_99999.JPEG"


def test_a_loader_process_is_sent_where_the_names_lie_and_no_name() -> None:
    few, many = (PackedNames([f"{index:06d}.JPEG" for index in range(count)]) for count in (10, 100_000))
    sizes = [len(ForkingPickler.dumps(names)) for names in (few, many)]
    assert abs(sizes[1] - sizes[0]) < 100


def test_names_come_back_one_by_one_and_end() -> None:
    given = ["ant/a.png", "", "bee/\udcff.jpg", "cat/é.png"]
    assert list(PackedNames(given)) == given
    assert list(PackedNames([])) == []


@pytest.fixture
def table(digits: ImageSource) -> dict[str, list[Any]]:
    def encoded(index: int) -> bytes:
        file = io.BytesIO()
        picture(digits, index).save(file, "PNG")
        return file.getvalue()

    cells: list[Any] = [{"bytes": encoded(index), "path": None} for index in range(20)]
    return {"image": [*cells[:19], None], "label": [digits.label(index) for index in range(20)]}


@pytest.fixture
def parquet_folder(tmp_path: Path, table: dict[str, list[Any]], monkeypatch: pytest.MonkeyPatch) -> Path:
    import datasets
    import pyarrow
    import pyarrow.parquet

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    (tmp_path / "data").mkdir()
    pyarrow.parquet.write_table(pyarrow.table(table), tmp_path / "data" / "train-00000-of-00001.parquet")
    return tmp_path


@pytest.mark.parametrize(
    "path",
    [
        "{root}",
        "{root}/data",
        "{root}/data/train-*.parquet",
        "{root}/data/{{split}}-*.parquet",
        "{root}/data/train-00000-of-00001.parquet",
    ],
)
def test_parquet_is_found_by_folder_pattern_or_file(path: str, parquet_folder: Path, digits: ImageSource) -> None:
    source = open_source(DataConfig(source="parquet", path=path.format(root=parquet_folder)), "train")
    assert len(source) == 20
    assert torch.equal(source.read(7), digits.read(7)) and source.label(7) == digits.label(7)
    assert source.class_names == tuple("0123456789")


def test_a_table_row_without_image_is_named(parquet_folder: Path) -> None:
    source = open_source(DataConfig(source="parquet", path=str(parquet_folder)), "train")
    assert "train row 19: there is no image" in one_line(lambda: source.read(19))


def test_a_table_can_be_sent_to_another_process(parquet_folder: Path) -> None:
    source = open_source(DataConfig(source="parquet", path=str(parquet_folder)), "train")
    assert torch.equal(pickle.loads(pickle.dumps(source)).read(3), source.read(3))


@pytest.mark.parametrize(
    ("settings", "part"),
    [
        ({"image_column": "img"}, "no column 'img'; set data.image_column to one of: image, label"),
        ({"label_column": "y"}, "data.label_column=null for no labels"),
        ({"image_column": "label"}, "column 'label' holds"),
        ({"label_column": "image"}, "not class numbers"),
    ],
)
def test_a_wrong_column_is_answered_with_the_columns(settings: dict[str, str], part: str, parquet_folder: Path) -> None:
    section = DataConfig(source="parquet", path=str(parquet_folder), **settings)  # type: ignore[arg-type]
    assert part in one_line(lambda: open_source(section, "train"))


def test_a_missing_parquet_split_says_what_was_expected(parquet_folder: Path) -> None:
    section = DataConfig(source="parquet", path=str(parquet_folder))
    assert "validation-*.parquet" in one_line(lambda: open_source(section, "val"))


def test_a_file_that_is_no_parquet_is_named(parquet_folder: Path) -> None:
    (parquet_folder / "train-0.parquet").write_bytes(b"nonsense")
    section = DataConfig(source="parquet", path=str(parquet_folder / "train-0.parquet"))
    assert "train-0.parquet can't be opened" in one_line(lambda: open_source(section, "train"))


def test_webdataset_tars_are_read(parquet_folder: Path, table: dict[str, list[Any]], digits: ImageSource) -> None:
    with tarfile.open(parquet_folder / "train-0000.tar", "w") as tar:
        for index in range(10):
            for suffix, data in (("png", table["image"][index]["bytes"]), ("cls", str(digits.label(index)).encode())):
                member = tarfile.TarInfo(f"{index:04d}.{suffix}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    section = DataConfig(source="webdataset", path=str(parquet_folder), image_column="png", label_column="cls")
    source = open_source(section, "train")
    assert len(source) == 10
    assert torch.equal(source.read(4), digits.read(4)) and source.label(4) == digits.label(4)


def test_a_hub_data_set_without_network_gets_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets
    import huggingface_hub

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path))
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    message = one_line(lambda: open_source(DataConfig(source="hub", path="nobody/nothing"), "train"))
    assert message.startswith("data.path: split 'train' of hub data set 'nobody/nothing' can't be opened")


def test_photographs_in_parquet_open_by_their_folder(shared_dir: Path) -> None:
    section = DataConfig(source="parquet", path=str(shared_dir / "data" / "imagenette112"))
    train, val = open_source(section, "train"), open_source(section, "val")
    assert (len(train), len(val)) == (9469, 3925)
    assert train.class_names[0] == "tench" and train.read(100).shape == (3, 112, 112)
    assert np.bincount([val.label(index) for index in range(len(val))]).min() == 357
