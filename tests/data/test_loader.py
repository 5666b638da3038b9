"""The loader: complete, in order, the same at any world size, and plain about what goes wrong."""

import logging
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from multiprocessing import forkserver
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import _utils as torch_loader

from dmt_ds import sample_rng
from dmt_ds.config.schema import BadImages, DataConfig
from dmt_ds.data import worker_processes
from dmt_ds.data.batch import Batch
from dmt_ds.data.batch_maker import EvalBatchMaker, TrainBatchMaker
from dmt_ds.data.loader import TrainLoader, every_image
from dmt_ds.data.sampling import SampleStream
from dmt_ds.data.sources import ImageSource, open_source
from dmt_ds.data.views import CropSpec, center_crop
from dmt_ds.errors import DataError, StorageError
from tests.crops import draw_crop
from tests.middles import middles

SPECS = (CropSpec(16), CropSpec(8, scale=(0.05, 0.25)))


class GreySource:
    """Image i is of brightness i; rows in `broken` can't be read."""

    class_names = ("even", "odd")
    fingerprint = "grey"

    def __init__(self, count: int, broken: frozenset[int] = frozenset()) -> None:
        self.count, self.broken, self.reads = count, broken, [0] * count

    def __len__(self) -> int:
        return self.count

    def read(self, index: int) -> Tensor:
        self.reads[index] += 1
        if index in self.broken:
            raise DataError(f"{self.name(index)}: broken")
        return torch.full((3, 9, 12), index % 256, dtype=torch.uint8)

    def label(self, index: int) -> int:
        return index % 2

    def name(self, index: int) -> str:
        return f"image {index}"


class AwaySource(GreySource):
    """Image 7 lies on a file server that gives no answer."""

    def read(self, index: int) -> Tensor:
        if index == 7:
            raise StorageError(f"{self.name(index)}: can't be read")
        return super().read(index)


class BuggySource(GreySource):
    """Reading fails as a programming error would."""

    def read(self, index: int) -> Tensor:
        raise RuntimeError("a bug of ours")


def make_loader(source: ImageSource, bad_images: BadImages = "stop", **settings: Any) -> TrainLoader:
    settings = {"micro_batch_size": 4, **settings}
    maker = TrainBatchMaker(source, SPECS, 3, bad_images)
    return TrainLoader(maker, SampleStream(len(source), seed=3), **settings)


def all_ranks(source: ImageSource, world_size: int, accum: int, start: int, steps: int) -> list[Batch]:
    """Batches of all ranks in the order of the stream."""
    loaders = [make_loader(source, rank=rank, world_size=world_size) for rank in range(world_size)]
    iterators = [loader.batches(start, steps * accum, accum) for loader in loaders]
    return [next(iterator) for _ in range(steps * accum) for iterator in iterators]


@pytest.fixture
def no_limit_on_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)))
    monkeypatch.delenv("SLURM_CPUS_PER_TASK", raising=False)


def test_a_batch_holds_the_crops_that_its_seeds_stand_for() -> None:
    source, stream = open_source(DataConfig(), "train"), SampleStream(1437, seed=3)
    batch = next(make_loader(source).batches(1435, 1, 1))
    epochs, rows = stream.at(1435, 4)
    assert epochs.tolist() == [0, 0, 1, 1] and torch.equal(batch.indices, rows)
    assert torch.equal(batch.seeds, sample_rng.image_seeds(3, epochs, rows))
    assert batch.labels.tolist() == [source.label(row) for row in rows.tolist()]
    for view, spec in enumerate(SPECS):
        crops = [
            draw_crop(source.read(row), spec, seed, view) for row, seed in zip(rows.tolist(), batch.seeds, strict=True)
        ]
        assert torch.equal(batch.crops[view], torch.stack(crops))
    assert batch.images is batch.crops[0]


@pytest.mark.parametrize(("world_size", "accum"), [(1, 12), (2, 6), (3, 4), (4, 3), (6, 2), (12, 1)])
def test_any_number_of_ranks_sees_the_same_stream(world_size: int, accum: int) -> None:
    source = GreySource(37)
    batches = all_ranks(source, world_size, accum, start=0, steps=2)
    assert torch.cat([batch.indices for batch in batches]).equal(SampleStream(37, seed=3).at(0, 96)[1])
    alone = all_ranks(source, 1, 12, start=0, steps=2)
    for mine, theirs in zip(batches, alone, strict=True):
        assert torch.equal(mine.seeds, theirs.seeds) and torch.equal(mine.images, theirs.images)


@pytest.mark.parametrize(("before", "after"), [((1, 12), (2, 6)), ((3, 4), (1, 12)), ((2, 6), (6, 2))])
def test_a_restart_in_the_middle_of_an_epoch_repeats_and_loses_nothing(
    before: tuple[int, int], after: tuple[int, int]
) -> None:
    source = GreySource(100)
    seen = all_ranks(source, *before, start=0, steps=1) + all_ranks(source, *after, start=48, steps=2)
    rows = torch.cat([batch.indices for batch in seen])
    assert sorted(rows[:100].tolist()) == list(range(100)) and len(rows) == 144


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_broken_image_stops_the_run_and_is_named(num_workers: int, no_limit_on_workers: None) -> None:
    loader = make_loader(GreySource(20, frozenset({7})), num_workers=num_workers)
    with pytest.raises(DataError) as caught:
        list(loader.batches(0, 5, 1))
    assert str(caught.value) == "image 7: broken"


def test_batches_before_the_broken_image_arrive() -> None:
    loader, place = make_loader(GreySource(20, frozenset({7}))), SampleStream(20, 3).at(0, 20)[1].tolist().index(7)
    iterator = loader.batches(0, 5, 1)
    for _ in range(place // 4):
        next(iterator)
    with pytest.raises(DataError):
        next(iterator)


def test_a_skipped_image_is_named_once_and_its_place_goes_to_another(caplog: pytest.LogCaptureFixture) -> None:
    source = GreySource(20, frozenset({7, 8}))
    whole = list(make_loader(GreySource(20)).batches(0, 25, 1))
    with caplog.at_level(logging.WARNING):
        batches = list(make_loader(source, bad_images="skip").batches(0, 25, 1))
    assert sorted(record.getMessage() for record in caplog.records) == [
        "skipped: image 7: broken",
        "skipped: image 8: broken",
    ]
    assert source.reads[7] == source.reads[8] == 1
    for mine, theirs in zip(batches, whole, strict=True):
        good = (theirs.indices != 7) & (theirs.indices != 8)
        assert torch.equal(mine.indices[good], theirs.indices[good]) and torch.equal(mine.seeds, theirs.seeds)
        assert not (mine.indices[~good] == 7).any() and not (mine.indices[~good] == 8).any()
        assert torch.equal(mine.images[:, 0, 0, 0].long(), mine.indices)
        assert torch.equal(mine.labels, mine.indices % 2)


def test_the_substitute_is_the_same_at_any_world_size() -> None:
    source = GreySource(37, frozenset(range(0, 37, 3)))
    orders = []
    for world_size, accum in ((1, 4), (2, 2), (4, 1)):
        loaders = [make_loader(source, rank=r, world_size=world_size, bad_images="skip") for r in range(world_size)]
        iterators = [loader.batches(0, 3 * accum, accum) for loader in loaders]
        orders.append([next(iterator).indices.tolist() for _ in range(3 * accum) for iterator in iterators])
    assert orders[0] == orders[1] == orders[2]


@pytest.mark.parametrize("count", [1, 2, 3, 20, 1000])
def test_a_data_set_of_broken_images_ends_in_an_error(count: int) -> None:
    source = GreySource(count, frozenset(range(count)))
    with pytest.raises(DataError, match="images in a row can't be read"):
        next(make_loader(source, bad_images="skip").batches(0, 1, 1))
    assert max(source.reads) == 1


def test_the_last_good_image_of_a_small_set_is_found() -> None:
    source = GreySource(20, frozenset(range(20)) - {13})
    batch = next(make_loader(source, bad_images="skip").batches(0, 1, 1))
    assert batch.indices.tolist() == [13] * 4


def broken_jpeg_folder(root: Path) -> Path:
    rng = np.random.default_rng(0)
    for index in range(12):
        path = root / "train" / "abc"[index % 3] / f"{index}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)).save(path)
    broken = root / "train" / "b" / "4.jpg"
    broken.write_bytes(broken.read_bytes()[:600])
    return broken


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_truncated_jpeg_of_a_folder_is_named_or_skipped(
    num_workers: int, tmp_path: Path, no_limit_on_workers: None, caplog: pytest.LogCaptureFixture
) -> None:
    broken = broken_jpeg_folder(tmp_path)
    source = open_source(DataConfig(source="folder", path=str(tmp_path)), "train")
    with pytest.raises(DataError) as caught:
        list(make_loader(source, num_workers=num_workers).batches(0, 6, 1))
    assert str(caught.value).startswith(f"{broken}: not a readable image") and "\n" not in str(caught.value)
    batches = list(make_loader(source, num_workers=num_workers, bad_images="skip").batches(0, 6, 1))
    assert sum(len(batch.indices) for batch in batches) == 24
    assert len([record for record in caplog.records if str(broken) in record.getMessage()]) == 1


def test_a_file_that_vanishes_while_the_folder_is_read_is_named_or_replaced(tmp_path: Path) -> None:
    gone = broken_jpeg_folder(tmp_path)
    source = open_source(DataConfig(source="folder", path=str(tmp_path)), "train")
    gone.unlink()
    with pytest.raises(DataError) as caught:
        list(make_loader(source).batches(0, 3, 1))
    assert str(caught.value).startswith(f"{gone}: can't be read (No such file or directory)")
    rows = torch.cat([batch.indices for batch in make_loader(source, bad_images="skip").batches(0, 3, 1)])
    assert len(rows) == 12 and str(gone) not in {source.name(row) for row in rows.tolist()}


def test_workers_give_what_the_training_process_would_give(no_limit_on_workers: None) -> None:
    source = open_source(DataConfig(), "train")
    alone = list(make_loader(source).batches(100, 20, 2))
    helped = list(make_loader(source, num_workers=2).batches(100, 20, 2))
    for mine, theirs in zip(helped, alone, strict=True):
        assert all(map(torch.equal, mine.crops, theirs.crops))
        assert all(torch.equal(getattr(mine, name), getattr(theirs, name)) for name in ("seeds", "indices", "labels"))


def test_a_bug_in_a_worker_keeps_its_traceback(no_limit_on_workers: None) -> None:
    with pytest.raises(RuntimeError, match="a bug of ours"):
        next(make_loader(BuggySource(20), num_workers=1).batches(0, 1, 1))


@pytest.mark.parametrize("bad_images", ["stop", "skip"])
@pytest.mark.parametrize("num_workers", [0, 1])
def test_an_image_without_an_answer_is_not_a_bad_one_whoever_reads_it(num_workers: int, bad_images: str) -> None:
    """Nothing takes its place, and the error that is worth another try comes from a loader process as it is."""
    batches = make_loader(AwaySource(20), num_workers=num_workers, bad_images=bad_images).batches(0, 5, 1)
    with pytest.raises(StorageError, match=r"^image 7: can't be read$"):
        list(batches)


class StuckSource(GreySource):
    """Reading image 7 never ends, as from a file server that is gone."""

    def read(self, index: int) -> Tensor:
        if index == 7:
            time.sleep(3600)
        return super().read(index)


@pytest.fixture
def workers(no_limit_on_workers: None) -> Callable[[], set[int]]:
    """Process ids of the loader processes that this test has started and that are alive."""
    earlier = {child.pid for child in multiprocessing.active_children()}

    def alive() -> set[int]:
        return {child.pid for child in multiprocessing.active_children() if child.pid} - earlier  # type: ignore[operator]

    return alive


def gone_in_time(workers: Callable[[], set[int]]) -> bool:
    deadline = time.monotonic() + 20
    while workers() and time.monotonic() < deadline:
        time.sleep(0.05)
    return not workers()


def endless(source: ImageSource, num_workers: int) -> Generator[Batch, None, None]:
    batches = make_loader(source, num_workers=num_workers).batches(0, 10_000, 1)
    return cast(Generator[Batch, None, None], batches)


def test_a_killed_worker_ends_the_run_with_the_remedy(workers: Callable[[], set[int]]) -> None:
    batches = endless(GreySource(200), 2)
    next(batches)
    os.kill(min(workers()), signal.SIGKILL)
    with pytest.raises(DataError, match=r"a loader process .* was killed.*set data\.num_workers below 2"):
        list(batches)


SCRIPT = """
from dmt_ds.config.schema import DataConfig
from dmt_ds.data.batch_maker import EvalBatchMaker
from dmt_ds.data.loader import every_image
from dmt_ds.data.sources import open_source

print(len(list(every_image(EvalBatchMaker(open_source(DataConfig(), "val"), 32, "bicubic"), 360, 50, num_workers=1))))
"""


@pytest.mark.distributed
def test_a_script_without_a_main_guard_is_told_of_it(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)
    ended = subprocess.run([sys.executable, tmp_path / "script.py"], capture_output=True, text=True, timeout=300)
    (line,) = [line for line in ended.stderr.splitlines() if line.startswith("dmt_ds.errors.DataError: ")]
    assert 'in a script of your own, start all work under `if __name__ == "__main__":`' in line


def test_a_worker_says_nothing_of_a_trainer_that_is_gone_but_all_else(capsys: pytest.CaptureFixture[str]) -> None:
    for error in (ConnectionResetError("by peer"), EOFError(), ValueError("a bug")):
        worker_processes._tell_unless_trainer_left(type(error), error, None)
    assert capsys.readouterr().err == "ValueError: a bug\n"


def test_signals_to_the_whole_job_leave_the_workers_at_work(workers: Callable[[], set[int]]) -> None:
    batches = endless(GreySource(200), 2)
    next(batches)
    server = forkserver._forkserver._forkserver_pid  # type: ignore[attr-defined]
    before = workers()
    for name in ("-USR1", "-TERM", "-INT"):
        subprocess.run(["kill", name, *map(str, [server, *before])], check=True)
    for _ in range(50):
        next(batches)
    assert workers() == before and len(before) == 2


def test_workers_leave_when_the_batches_are_no_longer_wanted(workers: Callable[[], set[int]]) -> None:
    batches = endless(GreySource(200), 2)
    next(batches)
    assert len(workers()) == 2
    batches.close()
    assert gone_in_time(workers)


def test_a_worker_that_is_stuck_in_a_read_is_ended(
    workers: Callable[[], set[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch_loader, "MP_STATUS_CHECK_INTERVAL", 0.2)  # how long torch waits for it to leave
    batches = endless(StuckSource(20), 2)
    next(batches)
    batches.close()
    assert gone_in_time(workers)


@pytest.mark.distributed
def test_no_process_outlives_a_killed_trainer() -> None:
    trainer = subprocess.run(
        [sys.executable, "-m", "tests.data.killed_trainer"], stdout=subprocess.PIPE, text=True, timeout=120
    )
    started = [int(number) for number in trainer.stdout.split()]
    assert trainer.returncode == -signal.SIGKILL and len(started) == 2  # the server and a worker
    deadline = time.monotonic() + 20
    while any(map(is_running, started)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(is_running, started))


def is_running(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_the_server_of_the_workers_has_one_thread(workers: Callable[[], set[int]]) -> None:
    next(endless(GreySource(200), 1))
    server = forkserver._forkserver._forkserver_pid  # type: ignore[attr-defined]
    assert len(os.listdir(f"/proc/{server}/task")) == 1


@pytest.mark.parametrize("num_workers", [0, 2])
def test_evaluation_shows_every_image_once_in_order(num_workers: int, no_limit_on_workers: None) -> None:
    source = open_source(DataConfig(), "val")
    batches = list(middles(source, 32, 50, num_workers))
    assert [len(batch.labels) for batch in batches] == [50] * 7 + [10]
    assert torch.cat([batch.indices for batch in batches]).equal(torch.arange(360))
    assert torch.cat([batch.labels for batch in batches]).tolist() == [source.label(index) for index in range(360)]
    assert torch.equal(batches[1].images[3], center_crop(source.read(53), 32)) and not batches[1].seeds.any()


@pytest.mark.parametrize(
    ("num_images", "world_size", "size"), [(20, 3, 4), (7, 2, 3), (6, 3, 2), (2, 5, 4), (13, 4, 3)]
)
def test_ranks_share_the_evaluation_each_image_counting_once(num_images: int, world_size: int, size: int) -> None:
    source = GreySource(num_images)
    shares = [list(middles(source, 8, size, rank=rank, world_size=world_size)) for rank in range(world_size)]
    assert len({tuple(len(batch.labels) for batch in share) for share in shares}) == 1  # ZeRO-3's forwards go together
    batches = [batch for share in shares for batch in share]
    labels, rows = (torch.cat([getattr(batch, name) for batch in batches]) for name in ("labels", "indices"))
    counted = labels >= 0
    assert sorted(rows[counted].tolist()) == list(range(num_images))
    assert labels[counted].tolist() == [source.label(row) for row in rows[counted].tolist()]
    assert (~counted).sum() < world_size
    for batch in batches:
        assert torch.equal(batch.images[:, 0, 0, 0].long(), batch.indices)  # the stand-ins are images too


def test_evaluation_stops_at_a_broken_image() -> None:
    with pytest.raises(DataError, match="image 7: broken"):
        list(middles(GreySource(20, frozenset({7})), 8, 5))


@pytest.mark.parametrize("num_workers", [0, 1])
def test_an_unreadable_image_ends_an_evaluation_or_counts_nowhere(num_workers: int) -> None:
    source = GreySource(10, frozenset({7}))
    strict = EvalBatchMaker(source, 8, "bicubic")
    with pytest.raises(DataError, match="image 7: broken"):
        list(every_image(strict, 10, 4, num_workers=num_workers))
    lenient = EvalBatchMaker(source, 8, "bicubic", "skip")
    batches = list(every_image(lenient, 10, 4, num_workers=num_workers, world_size=3, rank=1))  # rows 1, 4, 7, 10
    (batch,) = batches
    assert batch.labels.tolist() == [1, 0, -1, -1]
    assert batch.images.amax(dim=(1, 2, 3)).tolist() == [1, 4, 0, 0], "the last fills up with row 0, which is black"
