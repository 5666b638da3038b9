"""What a run's record is found by, who writes it, and how long its end may take."""

import errno
import logging
import os
import time
from collections.abc import Mapping
from pathlib import Path

import pytest
import timm
import torch
from PIL import Image

from dmt_ds.commands.training.fenced_tracker import FencedTracker
from dmt_ds.commands.training.open_records import OpenRecords
from dmt_ds.commands.training.pretraining_methods import losses_in_use
from dmt_ds.commands.training.record import describe, keep
from dmt_ds.commands.training.run_log import end_noted, failure_line, open_log
from dmt_ds.commands.training.run_record import data_name
from dmt_ds.commands.training.runs import resolve
from dmt_ds.commands.training.tasks import build_tasks
from dmt_ds.config.load import load_config
from dmt_ds.engine.checkpoints.fence import Fence
from dmt_ds.engine.ranks.peers import Peers
from dmt_ds.engine.ranks.stopping import Watchdog
from dmt_ds.errors import CheckpointError, StorageError
from dmt_ds.tracking.tracker import JsonlTracker, Status
from tests.faults import places


@pytest.mark.parametrize(
    ("overrides", "losses"),
    [
        ("task=dmt", ["tfd", "sfd"]),
        ("task=dmt distill.tfd_weight=0 tinymim.qk_weight=0", ["sfd"]),
        ("task=tinymim", ["qk", "vv"]),
        ("task=tinymim tinymim.vv_weight=0 distill.tfd_weight=0", ["qk"]),
        ("task=mae", []),
    ],
)
def test_a_distillation_is_tagged_with_the_losses_it_uses(overrides: str, losses: list[str]) -> None:
    teacher = "teachers.models.mae.source=/weights/mae.pth"
    assert losses_in_use(load_config(None, [teacher, *overrides.split()])) == losses


def test_an_attempt_whose_run_was_taken_over_writes_nothing_into_the_record(tmp_path: Path) -> None:
    tracker = FencedTracker(JsonlTracker(tmp_path), Fence.claim(tmp_path))
    tracker.log_metrics({"train/loss": 1.0}, 1)
    before = (tmp_path / "metrics.jsonl").read_text()
    Fence.claim(tmp_path)
    for write in (
        lambda: tracker.log_metrics({"eval/top1": 0.5}, 1),
        lambda: tracker.log_params({"seed": 1}),
        lambda: tracker.set_tags({"a": "b"}),
        lambda: tracker.log_artifact(tmp_path / "metrics.jsonl"),
        lambda: tracker.log_dataset("digits", "digits", "1", "training"),
        lambda: tracker.finish("FAILED"),
    ):
        with pytest.raises(CheckpointError, match="has taken this run over"):
            write()
    assert (tmp_path / "metrics.jsonl").read_text() == before


class Noting(JsonlTracker):
    """Keeps what a run is described by."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.params: dict[str, object] = {}
        self.tags: dict[str, str] = {}
        self.files: list[str] = []
        self.datasets: list[tuple[str, str]] = []

    def log_params(self, params: Mapping[str, object]) -> None:
        self.params.update(params)

    def set_tags(self, tags: Mapping[str, str]) -> None:
        self.tags.update(tags)

    def log_artifact(self, path: Path, folder: str | None = None) -> None:
        self.files.append(path.name)

    def log_dataset(self, name: str, source: str, fingerprint: str, context: str) -> None:
        self.datasets.append((name, source))


def described(folder: Path, *overrides: str) -> Noting:
    """What the record of a small run says of it."""
    (folder / "photos" / "train").mkdir(parents=True)
    Image.new("RGB", (16, 16)).save(folder / "photos" / "train" / "a.png")
    student = ["student.patch_size=4", "student.embed_dim=24", "student.depth=2", "student.num_heads=3"]
    settings = [
        f"output_dir={folder / 'run'}",
        "data.source=folder",
        f"data.path={folder / 'photos'}",
        "data.image_size=16",
        *student,
    ]
    own = [
        "train.steps=1",
        "train.global_batch_size=8",
        "train.micro_batch_size=8",
        "train.deepspeed=student_zero2_fp32",
    ]
    logger, cpu = logging.getLogger("dmt_ds"), torch.device("cpu")
    before = list(logger.handlers)
    try:
        (run,) = resolve(load_config(None, [*settings, *own, *overrides]), cpu)
        (built,) = build_tasks([run.config], cpu, ())
    finally:
        logger.handlers = before
    describe(tracker := Noting(run.folder), run, built, None, None)
    return tracker


def test_a_run_without_teachers_has_no_engines_of_theirs_and_its_images_are_called_by_their_folder(
    tmp_path: Path,
) -> None:
    told = described(tmp_path, "task=mae")
    assert told.files == ["deepspeed_student.json", "environment.json", *told.files[2:-1], "config.yaml"]
    assert not (tmp_path / "run" / "deepspeed_teachers.json").exists()
    sections = {key.partition(".")[0] for key in told.params if "." in key} - {"derived"}
    assert sections == {"data", "augment", "student", "mae", "optim", "train", "tracking", "knn", "linear"}
    assert told.params["mae.mask_ratio"] == 0.75
    assert told.datasets == [("photos", str(tmp_path / "photos"))]
    assert "kernel" not in told.tags


def test_what_has_no_effect_is_not_recorded_and_what_follows_from_settings_is(tmp_path: Path) -> None:
    def encoder(name: str) -> str:
        vit = timm.create_model("vit_tiny_patch16_224", img_size=16, patch_size=4, embed_dim=24, depth=2, num_heads=3)
        torch.save(vit.state_dict(), tmp_path / f"{name}.pth")
        return f"teachers.models.{name}={{source: {tmp_path / name}.pth, num_heads: 3}}"

    told = described(tmp_path, encoder("red"), encoder("blue"), "teachers.use=[red]", "optim.base_lr=0.032")
    assert told.params["teachers.use"] == ["red"] and "teachers.models.red.source" in told.params
    assert not [key for key in told.params if "blue" in key]
    assert not {"train.epochs", "optim.decay_at", "optim.momentum"} & told.params.keys()
    derived = {key: value for key, value in told.params.items() if key.startswith("derived.")}
    assert derived == {"derived.steps": 1, "derived.images": 8, "derived.peak_lr": pytest.approx(0.001)}
    assert told.tags["kernel"] == "chunked"


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ("source=digits", "digits"),
        ("source=webdataset path=/data/photos/train-*.tar", "photos"),
        ("source=hub path=ILSVRC/imagenet-1k", "ILSVRC/imagenet-1k"),
    ],
)
def test_images_are_called_what_people_call_them(settings: str, name: str) -> None:
    overrides = [f"data.{setting}" for setting in settings.split()]
    assert data_name(load_config(None, ["task=mae", *overrides]).data) == name


def test_what_ends_a_run_stands_in_its_log_without_secrets(tmp_path: Path) -> None:
    logger = logging.getLogger("dmt_ds")
    before = list(logger.handlers)
    open_log(tmp_path / "train.log")
    try:
        with pytest.raises(CheckpointError), end_noted():
            raise CheckpointError("http://me:correct-horse@host is away\nand so is the disk")
        with pytest.raises(KeyError), end_noted():
            raise KeyError("norm.weight")
    finally:
        logger.handlers = before
    lines = [line.partition(" ERROR ")[2] for line in (tmp_path / "train.log").read_text().splitlines()]
    assert lines == ["http://***@host is away", "and so is the disk", "KeyError: 'norm.weight'"]
    assert failure_line(CheckpointError("a\nb")) == "a; b"


def texts_in(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


def test_what_described_an_attempt_stays_where_a_later_one_is_described_otherwise(tmp_path: Path) -> None:
    for text in ("seed: 1", "seed: 1", "seed: 2"):
        keep(tmp_path, "config.yaml", text, fence := Fence.claim(tmp_path))
    (tmp_path / "attempt.json").unlink()
    kept = {"config.yaml": "seed: 2", "attempts/0001/config.yaml": "seed: 1", "attempts/0003/config.yaml": "seed: 2"}
    assert texts_in(tmp_path) == kept
    with pytest.raises(CheckpointError, match="while attempt 3 was writing there"):
        keep(tmp_path, "config.yaml", "seed: 3", fence)
    assert texts_in(tmp_path) == kept


def test_a_record_on_a_full_disk_is_what_it_was(tmp_path: Path) -> None:
    places.needs_mount()
    with places.small_disk(tmp_path, mib=1):
        keep(tmp_path, "config.yaml", "seed: 1", None)
        places.fill(tmp_path / "ballast")
        with pytest.raises(CheckpointError, match=r"config.yaml: can't be written \(No space left"):
            keep(tmp_path, "config.yaml", "seed: 2", None)
        (tmp_path / "ballast").unlink()
        assert texts_in(tmp_path) == {"config.yaml": "seed: 1"}


def test_a_record_that_a_server_does_not_take_is_what_it_was_and_worth_another_try(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stale(descriptor: int) -> None:
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    keep(tmp_path, "config.yaml", "seed: 1", None)
    monkeypatch.setattr(os, "fsync", stale)
    with pytest.raises(StorageError, match=r"config\.yaml: can't be written \(Stale file handle\); look at the disk"):
        keep(tmp_path, "config.yaml", "seed: 2", None)
    assert texts_in(tmp_path) == {"config.yaml": "seed: 1"}


def test_a_failure_that_waits_for_a_store_that_is_away_is_not_ended_as_a_hang(tmp_path: Path) -> None:
    class Away(JsonlTracker):
        def finish(self, status: Status) -> None:
            time.sleep(1.5)
            super().finish(status)

    class Noting(Watchdog):
        ended = False

        def _end_hanging(self) -> None:
            self.ended = True
            self._stopped.set()

    watchdog = Noting(0.4, 0, Peers()).start()
    records = OpenRecords(tmp_path / "train.log", 20.0, watchdog)
    records.trackers.append(Away(tmp_path))
    records.fail("why")
    watchdog.stop()
    assert not watchdog.ended
