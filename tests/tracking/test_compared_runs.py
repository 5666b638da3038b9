"""Which metrics a comparison shows, and which of them are shares that are shown in percent."""

from dmt_ds.tracking.compared_runs import SCORE, VARIANT, choose_metrics
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
