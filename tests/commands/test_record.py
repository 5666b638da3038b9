"""What a run's record is found by, and who writes it."""

from pathlib import Path

import pytest

from dmt_ds.commands.fenced_tracker import FencedTracker
from dmt_ds.commands.record import losses_in_use
from dmt_ds.config.load import load_config
from dmt_ds.engine.fence import Fence
from dmt_ds.errors import CheckpointError
from dmt_ds.tracking.tracker import JsonlTracker


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
