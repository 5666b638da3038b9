"""Runs set side by side: what counts, what it cost, and what is left out, on runs in real stores."""

import csv
import io
import json
import shutil
import statistics
from dataclasses import replace
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from dmt_ds.errors import TrackingError
from dmt_ds.tracking import comparison_pictures
from dmt_ds.tracking.budget import against_images, budget_of
from dmt_ds.tracking.comparison import Comparison, Row, compare
from dmt_ds.tracking.comparison_pictures import band, bars
from dmt_ds.tracking.comparison_text import as_json, markdown, runs_as_csv, terminal_table
from dmt_ds.tracking.mlflow_compare import RecordedRun, RecordedStudy, read_study
from dmt_ds.tracking.mlflow_tracker import MlflowTracker
from dmt_ds.tracking.store_uri import named_store
from tests.tracking.recorded import Recorder
from tests.tracking.stores import mlflow_client, settings

KNN, LINEAR = "eval/knn_top1", "eval/linear_top1"


@pytest.fixture
def uri(empty_database: Path, tmp_path: Path) -> str:
    shutil.copyfile(empty_database, tmp_path / "mlflow.db")
    return f"sqlite:///{tmp_path / 'mlflow.db'}"


def study_of(uri: str, experiment: str | None = None, suite: str | None = None) -> RecordedStudy:
    return read_study(named_store(uri, must_exist=True), experiment, suite)


def run_of(uri: str) -> RecordedRun:
    (run,) = study_of(uri).runs
    return run


def row(comparison: Comparison, title: str) -> Row:
    (found,) = (row for row in (*comparison.rows, *comparison.teachers) if row.title == title)
    return found


# What counts


def test_means_and_deviations_are_those_of_the_finished_runs(uri: str) -> None:
    suite = Recorder.of_suite(uri, "small")
    scores = {"dmt": [0.41, 0.45, 0.44], "mae": [0.30, 0.37]}
    for seed in range(3):
        for variant, values in scores.items():
            if seed < len(values):
                suite.add(f"{variant}-seed{seed}", {KNN: values[seed]}, variant=variant)
    suite.add("mae-seed2", {KNN: 0.99}, status="FAILED", variant="mae")
    suite.add("dmt-seed3", {KNN: 0.01}, status="RUNNING", variant="dmt")
    comparison = compare(study_of(uri, "small"), ())
    assert [row.title for row in comparison.rows] == ["dmt", "mae"]
    for variant, values in scores.items():
        found = row(comparison, variant).scores[KNN]
        assert found.mean == pytest.approx(statistics.fmean(values), abs=1e-12)
        assert found.deviation == pytest.approx(statistics.stdev(values), abs=1e-12)


def test_one_seed_has_no_deviation(uri: str) -> None:
    Recorder.of_suite(uri, "small").add("dmt-seed0", {KNN: 0.4}, variant="dmt")
    comparison = compare(study_of(uri), ())
    assert row(comparison, "dmt").scores[KNN].deviation is None
    assert "40.00 ± —" in terminal_table(comparison)


def test_runs_that_do_not_count_are_named_with_the_reason(uri: str) -> None:
    suite = Recorder.of_suite(uri, "small")
    suite.add("dmt-seed0", {KNN: 0.4, LINEAR: 0.5})
    suite.add("dmt-seed1", {KNN: 0.4}, "FAILED", params={"output_dir": "runs/dmt/seed1"})
    suite.add("dmt-seed2", {}, "RUNNING")
    suite.add("dmt-seed3", {}, "KILLED", rates=())
    suite.add("dmt-seed4", {})
    suite.add("dmt-seed5", {KNN: float("nan")})
    suite.add("dmt-seed6", {KNN: 0.3})
    comparison = compare(study_of(uri), [KNN, LINEAR])
    assert dict(comparison.left_out) == {
        "dmt-seed1": "failed after 320 images; see runs/dmt/seed1/train.log",
        "dmt-seed2": "is marked as running, after 320 images",
        "dmt-seed3": "was stopped after its first images and not resumed",
        "dmt-seed4": "finished, but has no number for eval/knn_top1, eval/linear_top1",
        "dmt-seed5": "finished, but has no number for eval/knn_top1, eval/linear_top1",
        "dmt-seed6": "eval/linear_top1 is not measured; counts in the others",
    }
    assert row(comparison, "dmt").scores[KNN].values == (0.4, 0.3)
    assert row(comparison, "dmt").scores[LINEAR].values == (0.5,)
    for text in (terminal_table(comparison), markdown(comparison, [])):
        assert all(f"{name}: {why}" in text for name, why in comparison.left_out)
        assert "50.00 ± — (1 of 2)" in text


def test_what_no_run_of_its_stage_has_is_no_gap_and_gaps_are_one_line_a_run(uri: str) -> None:
    runs = Recorder.of_experiment(uri, "mixed")
    runs.add("vit", {KNN: 0.4, LINEAR: 0.5, "eval/knn_patch_top1": 0.5}, stage="distill")
    runs.add("half", {KNN: 0.3}, stage="distill")
    runs.add("scenes", {"eval/miou": 0.3}, stage="segment")
    comparison = compare(study_of(uri), ())
    gaps = "eval/knn_patch_top1, eval/linear_top1 are not measured; counts in the others"
    assert comparison.left_out == (("half", gaps),)


def test_bars_of_many_metrics_stand_in_rows_of_four(uri: str, tmp_path: Path) -> None:
    pictures = pytest.importorskip("PIL.Image")
    names = ("knn", "knn_patch", "linear", "linear_patch", "finetune")
    Recorder.of_experiment(uri, "many").add("vit", {f"eval/{name}_top1": 0.4 for name in names})
    comparison = compare(study_of(uri), ())
    for number, name in ((5, "five"), (4, "four"), (1, "one")):
        few = replace(comparison, metrics=(*comparison.metrics[:number],))
        bars(few, tmp_path / f"{name}.png")
    sizes = {name: pictures.open(tmp_path / f"{name}.png").size for name in ("five", "four", "one")}
    assert sizes["five"] == (sizes["four"][0], 2 * sizes["one"][1]) and sizes["four"][1] == sizes["one"][1]


def test_rows_without_any_number_have_no_bars(uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Figure] = []
    monkeypatch.setattr(comparison_pictures, "save", lambda figure, path: drawn.append(figure))
    suite = Recorder.of_suite(uri, "small")
    suite.add("teacher", {KNN: 0.6}, variant="teacher", role="teacher")
    suite.add("lost", {}, "FAILED", variant="lost", role="teacher")
    for variant in ("dmt", "mse", "mae"):
        suite.add(f"{variant}-seed0", {KNN: 0.4} if variant != "mse" else {}, variant=variant)
    bars(compare(study_of(uri), ()), tmp_path / "bars.png")
    axis = drawn[0].axes[0]
    assert [(tick.get_text(), at) for tick, at in zip(axis.get_yticklabels(), axis.get_yticks(), strict=True)] == [
        ("dmt", 0), ("mae", 1), ("teacher", 3)
    ]  # fmt: skip


@pytest.mark.parametrize(("score", "highest"), [(0.0, 1.0), (0.004, 0.5), (0.97, 100.0), (1.0, 100.0)])
def test_bars_of_percentages_have_ticks_from_0_to_100_alone(
    score: float, highest: float, uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[Figure] = []
    monkeypatch.setattr(comparison_pictures, "save", lambda figure, path: drawn.append(figure))
    Recorder.of_experiment(uri, "one").add("vit", {KNN: score})
    bars(compare(study_of(uri), ()), tmp_path / "bars.png")
    ticks = drawn[0].axes[0].get_xticks()
    assert ticks[0] == 0 and ticks[-1] == highest and drawn[0].axes[0].get_xlim()[0] == 0


def test_a_variant_without_any_run_that_counts_keeps_its_row(uri: str) -> None:
    suite = Recorder.of_suite(uri, "small")
    suite.add("dmt-seed0", {KNN: 0.4}, variant="dmt")
    suite.add("mse-seed0", {KNN: 0.4}, "FAILED", variant="mse")
    assert row(compare(study_of(uri), ()), "mse").scores[KNN].mean is None


def test_a_seed_that_was_trained_twice_counts_once_and_the_newer_run_does(uri: str) -> None:
    suite = Recorder.of_suite(uri, "small")
    suite.add("dmt-seed0", {KNN: 0.1}, params={"optim.base_lr": 1, "output_dir": "a"})
    suite.add("dmt-seed1", {KNN: 0.5}, params={"optim.base_lr": 1, "output_dir": "b"})
    suite.add("dmt-seed0", {KNN: 0.3}, params={"optim.base_lr": 1, "output_dir": "c"})
    suite.add("dmt-seed0", {}, params={"optim.base_lr": 1, "output_dir": "d"})  # not judged: takes no one's place
    comparison = compare(study_of(uri), ())
    assert row(comparison, "dmt").scores[KNN].values == (0.5, 0.3)
    assert comparison.left_out[0] == ("dmt-seed0", "was trained again later, with the same settings and seed 0")


def test_runs_of_a_row_that_differ_in_more_than_the_seed_are_told(uri: str) -> None:
    runs = Recorder.of_experiment(uri, "loose")
    runs.add("vit-seed0", {KNN: 0.1}, params={"optim.base_lr": 1, "output_dir": "a"})
    runs.add("vit-seed1", {KNN: 0.2}, params={"optim.base_lr": 2, "output_dir": "b"})
    assert compare(study_of(uri), ()).notes == ("vit: its runs differ in optim.base_lr, and not in their seeds alone",)
    assert compare(study_of(uri), (), by="optim.base_lr").notes == ()


def test_sections_of_other_tasks_that_older_runs_kept_are_no_difference(uri: str) -> None:
    runs = Recorder.of_experiment(uri, "loose")
    old = {"mae.mask_ratio": 0.75, "mae.decoder_depth": 8}
    runs.add("vit-seed0", {KNN: 0.1}, params={"task": "dmt", "distill.fusion": "sum", **old})
    runs.add("vit-seed1", {KNN: 0.2}, params={"task": "dmt", "distill.fusion": "sum"})
    assert compare(study_of(uri), ()).notes == ()


def test_runs_of_one_seed_are_not_called_seeds(uri: str) -> None:
    runs = Recorder.of_experiment(uri, "loose")
    for name, rate in (("a", 1), ("b", 2)):
        runs.add(f"{name}-seed0", {KNN: 0.1}, params={"optim.base_lr": rate, "distill.fusion": "sum"})
    by_name, by_fusion = (terminal_table(compare(study_of(uri), (), by=by)) for by in ("variant", "distill.fusion"))
    assert "deviation over seeds" in by_name and "variant  seeds  " in by_name
    assert "deviation over runs" in by_fusion and "distill.fusion  runs  " in by_fusion


def test_runs_of_no_suite_are_grouped_by_name_or_by_a_setting_or_a_tag(uri: str) -> None:
    runs = Recorder.of_experiment(uri, "loose")
    for name, fusion in (("a-seed0", "sum"), ("b_seed1", "centred"), ("a-seed2", "centred"), ("b", "sum")):
        runs.add(name, {KNN: 0.1}, params={"distill.fusion": fusion}, site="here")
    rows = {
        by: {row.title: len(row.runs) for row in compare(study_of(uri), (), by=by).rows}
        for by in ("variant", "distill.fusion", "site")
    }
    assert rows == {"variant": {"a": 2, "b": 2}, "distill.fusion": {"sum": 2, "centred": 2}, "site": {"here": 4}}


def test_rows_stand_in_the_order_of_the_suite_else_of_the_starts(uri: str) -> None:
    for name, tags in (("listed", {"variants": "c,a,b"}), ("unlisted", {})):
        suite = Recorder.of_suite(uri, name, **tags)
        for variant in ("b", "a", "d", "c"):
            suite.add(f"{variant}-seed0", {KNN: 0.1}, variant=variant)
    order = {name: [row.title for row in compare(study_of(uri, name), ()).rows] for name in ("listed", "unlisted")}
    assert order == {"listed": ["c", "a", "b", "d"], "unlisted": ["b", "a", "d", "c"]}


def test_teachers_have_a_table_of_their_own_and_tuning_is_left_aside(uri: str) -> None:
    suite = Recorder.of_suite(uri, "small")
    suite.add("mae", {KNN: 0.6}, variant="mae", role="teacher", title="MAE, the teacher")
    suite.add("mae-tune0", {KNN: 0.9, "eval/top1": 0.9}, variant="mae", role="tune")
    suite.add("mae-seed0", {KNN: 0.5, LINEAR: 0.7}, variant="mae", role="variant")
    comparison = compare(study_of(uri), ())
    assert [row.title for row in comparison.rows] == ["mae"]
    assert comparison.rows[0].scores[KNN].values == (0.5,)
    assert [row.title for row in comparison.teachers] == ["MAE, the teacher"]
    assert comparison.left_out == ()  # nobody judged the teachers by the linear probe
    assert comparison.notes == ("not shown: 1 run with the role tune; --roles tune shows them",)
    assert compare(study_of(uri), (), roles=["tune"]).rows[0].scores[KNN].values == (0.9,)


def test_scores_that_choose_settings_judge_nothing_unless_they_are_asked_for(uri: str) -> None:
    Recorder.of_suite(uri, "small").add("a", {KNN: 0.5, "eval/select_knn_top1": 0.6, "eval/knn_top5": 0.9})
    assert compare(study_of(uri), ()).metrics == (KNN,)
    assert compare(study_of(uri), ["eval/select_knn_top1"]).metrics == ("eval/select_knn_top1",)


# What it cost


def test_the_budget_of_a_run_is_the_sum_over_its_log_points(uri: str) -> None:
    rates = [(10, 100.0), (20, 50.0), (30, 200.0)]
    tags = {"device": "cpu", "threads": "3", "world_size": "4"}
    Recorder.of_suite(uri, "small").add("a", {}, rates=rates, ranks={10: 2, 20: 2, 30: 4}, **tags)
    budget = budget_of(run_of(uri))
    seconds = 2 * 320 / 100 + 2 * 320 / 50 + 4 * 320 / 200
    assert (budget.images_seen, budget.unit) == (960, "CPU-h")
    assert budget.device_hours == pytest.approx(3 * seconds / 3600)


@pytest.mark.parametrize(("tags", "unit"), [({"device": "cuda", "threads": "8"}, "GPU-h"), ({}, "rank-h")])
def test_ranks_are_taken_from_the_tag_where_no_point_has_them(uri: str, tags: dict[str, str], unit: str) -> None:
    Recorder.of_suite(uri, "small").add("a", {}, rates=[(10, 100.0)], world_size="8", **tags)
    budget = budget_of(run_of(uri))
    assert budget.unit == unit
    assert budget.device_hours == pytest.approx(8 * 3.2 / 3600)


def test_images_whose_point_has_no_speed_cost_as_much_as_those_of_the_next(uri: str) -> None:
    Recorder.of_suite(uri, "small").add("a", {}, rates=[(10, 0.0), (20, 100.0)])
    assert budget_of(run_of(uri)).device_hours == pytest.approx(6.4 / 3600)


def test_a_restart_costs_no_idle_time_and_repeated_steps_count_once(uri: str, tmp_path: Path) -> None:
    for status, steps, rate in (("KILLED", (10, 20), 100.0), ("FINISHED", (15, 20, 30, 40), 50.0)):
        tracker = MlflowTracker(settings(uri), tmp_path / "run", "run", None)
        tracker.set_tags({"device": "cpu", "threads": "2", "attempts": "1" if status == "KILLED" else "2"})
        for step in steps:
            metrics = {"train/images_seen": 32.0 * step, "perf/images_per_second": rate, "perf/ranks": 1.0}
            tracker.log_metrics(metrics, step)
        tracker.finish(status)
    (run,) = study_of(uri, "dmt_ds").runs
    budget = budget_of(run)
    assert run.restarts == 1
    assert budget.images_seen == 32 * 40
    assert budget.device_hours == pytest.approx(2 * (640 / 100 + 640 / 50) / 3600)


def test_a_run_of_no_steps_costs_nothing_and_one_without_points_nobody_knows(uri: str) -> None:
    suite = Recorder.of_suite(uri, "small")
    suite.add("none", {KNN: 0.1}, rates=(), params={"train.steps": 0}, device="cpu")
    suite.add("unknown", {KNN: 0.1}, rates=(), params={"train.steps": 5}, device="cpu")
    budgets = {run.name: budget_of(run) for run in study_of(uri).runs}
    assert (budgets["none"].images_seen, budgets["none"].device_hours) == (0, 0)
    assert (budgets["unknown"].images_seen, budgets["unknown"].device_hours) == (None, None)


def test_a_row_tells_the_mean_cost_of_its_runs_and_the_range_of_images(uri: str) -> None:
    suite = Recorder.of_suite(uri, "small")
    for seed, steps in enumerate((10, 30)):
        suite.add(f"a-seed{seed}", {KNN: 0.1}, rates=[(steps, 0.01)], device="cuda")
    comparison = compare(study_of(uri), ())
    assert comparison.rows[0].device_hours == pytest.approx(20 * 32 / 0.01 / 3600)
    assert "320 to 960   17.8" in terminal_table(comparison)


# Curves


def test_a_metric_that_was_logged_again_has_its_last_word(uri: str) -> None:
    run = Recorder.of_suite(uri, "small").add("a", {KNN: 0.1})
    mlflow_client(uri).log_metric(run.info.run_id, KNN, 0.2, timestamp=10**13, step=10)
    (found,) = run_of(uri).history(KNN)
    assert found.value == 0.2


def test_a_metric_stands_at_the_images_that_were_seen_when_it_was_measured(uri: str) -> None:
    curves = {KNN: [(20, 0.3), (10, 0.2), (25, 0.35)], "eval/nan_top1": [(10, float("nan"))]}
    Recorder.of_suite(uri, "small").add("a", {}, rates=[(10, 1.0), (20, 1.0), (40, 1.0)], curves=curves)
    assert against_images(run_of(uri), KNN) == [(320, 0.2), (640, 0.3), (800, 0.35)]
    assert against_images(run_of(uri), "eval/nan_top1") == []
    assert against_images(run_of(uri), "eval/absent") == []


def test_a_band_is_the_mean_over_seeds_where_all_have_points() -> None:
    curves = [[(0.0, 1.0), (10.0, 2.0), (30.0, 4.0)], [(10.0, 4.0), (20.0, 7.0)]]
    images, mean, deviation = band(curves)
    assert images.tolist() == [10, 20]
    assert mean.tolist() == pytest.approx([statistics.fmean((2, 4)), statistics.fmean((3, 7))])
    assert deviation.tolist() == pytest.approx([statistics.stdev((2, 4)), statistics.stdev((3, 7))])
    assert band(curves[:1])[2].tolist() == [0, 0, 0]


# What is written


@pytest.fixture
def with_paper(uri: str) -> Comparison:
    suite = Recorder.of_suite(uri, "small", paper_metric="ADE20K mIoU, ViT-T (Table 3)")
    suite.add("dmt-seed0", {KNN: 0.4}, variant="dmt", title="DMT | all", paper="42.0", role="variant")
    suite.add("dmt-seed1", {KNN: 0.3}, variant="dmt", title="DMT | all", paper="42.0", role="variant")
    suite.add("mae-seed0", {KNN: 0.2}, "FAILED", variant="mae", role="variant")
    suite.add("mae-tune", {KNN: 0.1}, variant="mae", role="tune")
    suite.add("teacher", {KNN: 0.5}, variant="teacher", role="teacher")
    return compare(study_of(uri), ())


def test_the_papers_number_stands_in_a_column_that_says_so(with_paper: Comparison) -> None:
    lines = [line for line in markdown(with_paper, []).splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line.replace("\\|", "/").strip("|").split("|")] for line in lines]
    head, _, dmt, mae = cells[:4]
    assert head[-1] == "paper: ADE20K mIoU, ViT-T (Table 3)"
    assert dmt == ["DMT / all", "2", "35.00 ± 7.07", "320", "0.000889", "42.0"]
    assert mae[-1] == "—"
    assert not any("paper" in cell for line in cells[4:] for cell in line)  # the teachers' table
    assert "the number that the paper reports" in terminal_table(with_paper)


def test_the_papers_number_is_never_computed_with(with_paper: Comparison, uri: str) -> None:
    study = study_of(uri)
    other = tuple(replace(run, tags={**run.tags, "paper": "99.9"}) for run in study.runs)
    changed = compare(replace(study, runs=other), ())
    assert [row.scores for row in changed.rows] == [row.scores for row in with_paper.rows]
    assert {row.paper for row in changed.rows} == {"99.9"}


def test_the_csv_has_every_run_whatever_became_of_it(with_paper: Comparison) -> None:
    lines = list(csv.DictReader(io.StringIO(runs_as_csv(with_paper))))
    assert [(line["run"], line["role"], line["status"], line["counts"]) for line in lines] == [
        ("dmt-seed0", "variant", "FINISHED", "True"),
        ("dmt-seed1", "variant", "FINISHED", "True"),
        ("mae-seed0", "variant", "FAILED", "False"),
        ("mae-tune", "tune", "FINISHED", "True"),
        ("teacher", "teacher", "FINISHED", "True"),
    ]
    assert [float(line[KNN]) for line in lines] == [0.4, 0.3, 0.2, 0.1, 0.5]
    assert [line["paper"] for line in lines] == ["42.0", "42.0", "", "", ""]


def test_the_json_has_what_the_table_says(with_paper: Comparison) -> None:
    content = json.loads(as_json(with_paper))
    scores = content["rows"][0]["metrics"][KNN]
    assert scores["mean"] == pytest.approx(0.35)
    assert scores["deviation"] == pytest.approx(statistics.stdev([0.4, 0.3]))
    assert [row["group"] for row in content["teachers"]] == ["teacher"]
    assert content["left_out"] == [{"run": "mae-seed0", "why": "failed after 320 images"}]
    assert len(content["runs"]) == 5


# Which runs


def test_a_suite_is_told_from_others_in_its_experiment(uri: str) -> None:
    both = Recorder.of_suite(uri, "one")
    both.add("a-seed0", {KNN: 0.1})
    Recorder.of_suite(uri, "two", experiment="one").add("b-seed0", {KNN: 0.2})
    assert [run.name for run in study_of(uri, "one").runs] == ["a-seed0", "b-seed0"]
    assert study_of(uri, "one").parent is None
    for wanted in ((None, "two"), ("one", "two")):
        study = study_of(uri, *wanted)
        assert [run.name for run in study.runs] == ["b-seed0"]
        assert study.parent is not None and study.parent.name == "two"


def test_a_deleted_run_is_gone(uri: str) -> None:
    suite = Recorder.of_suite(uri, "small")
    suite.add("a-seed0", {KNN: 0.1})
    mlflow_client(uri).delete_run(suite.add("a-seed1", {KNN: 0.9}).info.run_id)
    assert [run.name for run in study_of(uri).runs] == ["a-seed0"]


def test_a_metric_that_no_run_has_is_told_with_those_that_there_are(uri: str) -> None:
    Recorder.of_suite(uri, "small").add("a-seed0", {KNN: 0.1, "system/cpu": 1.0})
    there = "eval/knn_top1, perf/images_per_second, train/images_seen"
    with pytest.raises(TrackingError, match=f"small: no run has a metric 'eval/knn'; there are: {there}$"):
        compare(study_of(uri), ["eval/knn"])


def test_without_scores_the_loss_is_compared(uri: str) -> None:
    Recorder.of_suite(uri, "small").add("a-seed0", {"train/loss": 2.5})
    comparison = compare(study_of(uri), ())
    assert comparison.metrics == ("train/loss",)
    assert "2.5 ± —" in terminal_table(comparison)
