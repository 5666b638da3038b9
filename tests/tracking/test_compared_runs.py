"""Which metrics a comparison shows, and which of them are shares that are shown in percent."""

import math
from dataclasses import replace

from dmt_ds.tracking.compared_runs import SCORE, TEACHER, VARIANT, choose_metrics
from dmt_ds.tracking.comparison import compare
from dmt_ds.tracking.mlflow_compare import RecordedRun, RecordedStudy


def run_with(*metrics: str) -> RecordedRun:
    return RecordedRun("1", "dmt", "FINISHED", {}, {}, dict.fromkeys(metrics, 0.5), 0, 1, lambda metric: [])


def test_average_precision_of_boxes_and_masks_has_columns_behind_other_scores() -> None:
    own = ("eval/box_ap", "eval/mask_ap", "eval/mask_ap50", "eval/mask_ap_best", "eval/mask_ap_small")
    told = ("eval/detect_mask_ap", "eval/detect_box_ap", "eval/detect_box_ap75", "eval/segment_miou")
    study = RecordedStudy("small", "small", (run_with("train/loss", *own, *told),), None)
    shown = choose_metrics(study, (), (VARIANT,))
    assert shown == ("eval/segment_miou", "eval/detect_box_ap", "eval/detect_mask_ap", "eval/box_ap", "eval/mask_ap")
    in_percent = {name for name in (*own, *told) if SCORE.fullmatch(name)}
    assert in_percent == {*own, *told} - {"eval/mask_ap_best"}


def test_a_score_that_is_no_number_is_in_no_mean_and_is_told() -> None:
    knn, linear = "eval/knn_top1", "eval/linear_top1"
    runs = [run_with(knn, linear), run_with(knn, linear)]
    runs[1].metrics.update({knn: 0.7, linear: math.nan})
    made = compare(RecordedStudy("small", "small", tuple(runs), None), ())
    (row,) = made.rows
    assert (row.scores[knn].mean, row.scores[linear].mean) == (0.6, 0.5)
    assert made.left_out == (("dmt", f"{linear} is not a number; counts in the others"),)


def test_teachers_that_are_asked_for_stand_in_the_main_table_alone() -> None:
    teacher = replace(run_with("eval/knn_top1"), tags={"role": TEACHER})
    study = RecordedStudy("small", "small", (teacher, run_with("eval/knn_top1")), None)
    for roles, rows, teachers in (((), 1, 1), ((TEACHER,), 1, 0), ((TEACHER, VARIANT), 1, 0)):
        made = compare(study, (), roles=roles)
        assert (len(made.rows), len(made.teachers)) == (rows, teachers)


def test_a_row_is_called_as_its_newest_run_was() -> None:
    runs = [replace(run_with("eval/knn_top1"), tags={"title": title}) for title in ("Mean", "Mean of teachers")]
    (row,) = compare(RecordedStudy("small", "small", tuple(runs), None), ()).rows
    assert row.title == "Mean of teachers"
