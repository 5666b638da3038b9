"""Segmentation's look at the validation maps before training."""

import logging
from pathlib import Path

import pytest

from dmt_ds.commands.annotations.annotated import Scene
from dmt_ds.commands.annotations.segment import SegmentationJudge
from dmt_ds.config.schema import RunConfig
from dmt_ds.data.label_maps import open_segmented
from tests.downstream import segmented
from tests.tiny_scenes import write_ade


def test_maps_whose_values_seem_to_be_meant_otherwise_are_warned_of_before_training(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = segmented.data_of(write_ade(tmp_path)).model_copy(update={"num_workers": 0})
    for classes, ignored, warnings in ((3, (0,), 0), (4, (0,), 1), (2, (0, 1), 1)):  # ground, 1, is most of each scene
        section = segmented.SECTION.model_copy(update={"classes": classes, "ignored_values": ignored})
        config = RunConfig(task="segment", student=segmented.STUDENT, data=data, segment=section)
        scene = Scene(config, lambda _doing: None)
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            SegmentationJudge(segmented.task(), open_segmented(data, section).test, scene).look_at_images()
        assert len(caplog.messages) == warnings
        assert all("the validation maps" in line for line in caplog.messages)
