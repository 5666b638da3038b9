"""What a classifier's judge leaves at the end of a run."""

import logging
from pathlib import Path

import pytest

from dmt_ds.commands.annotations import classify
from dmt_ds.commands.annotations.annotated import Scene
from dmt_ds.commands.annotations.judged_run import JudgedRun
from dmt_ds.config.schema import RunConfig
from dmt_ds.data.labels import open_labelled
from dmt_ds.tracking.tracker import NullTracker
from tests.downstream import classified


def quiet(_doing: str) -> None:
    """Told that a rank is alive."""


@pytest.mark.parametrize(("most", "is_drawn"), [(10, True), (9, False)])
def test_a_confusion_matrix_is_made_of_so_many_classes_at_most(
    most: int, is_drawn: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(classify, "MOST_CONFUSED", most)
    data = classified.DATA.model_copy(update={"num_workers": 0})
    config = RunConfig(task="classify", student=classified.STUDENT, data=data)
    of = classified.task()
    judge = classify.ClassificationJudge(of, open_labelled(data).test, Scene(config, quiet))
    with caplog.at_level(logging.INFO):
        JudgedRun(judge, of.module, config, tmp_path, NullTracker(), quiet).finish(1)
    names = {path.name for path in (tmp_path / "pictures").iterdir()}
    assert "answers_wrong.png" in names
    assert ({"confusion.csv", "confusion.png"} <= names) == is_drawn
    assert any("no confusion matrix of 10 classes" in line for line in caplog.messages) != is_drawn
