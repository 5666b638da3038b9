"""In which settings the rows of a comparison differ, and how that is told."""

import csv
import io
import json
from collections.abc import Mapping

import pytest

from dmt_ds.tracking.comparison import Comparison, compare
from dmt_ds.tracking.comparison_text import as_json, markdown, runs_as_csv, terminal_table
from dmt_ds.tracking.mlflow_compare import RecordedRun, RecordedStudy

KNN = "eval/knn_top1"
DMT = {"task": "dmt", "distill.fusion": "sum", "optim.base_lr": "0.02", "train.steps": "60", "train.epochs": "300.0"}
IBOT = {"task": "ibot", "ibot.momentum": "0.99", "optim.base_lr": "0.02", "train.steps": "60"}


def run(
    name: str,
    params: Mapping[str, str],
    tags: Mapping[str, str] | None = None,
    images: str | None = None,
    status: str = "FINISHED",
) -> RecordedRun:
    own = {"name": name, "output_dir": f"runs/{name}", "seed": name[-1], **params}
    return RecordedRun(name, name, status, dict(tags or {}), own, {KNN: 0.5}, 0, 1, lambda _: [], images)


def compared(*runs: RecordedRun, by: str = "variant") -> Comparison:
    return compare(RecordedStudy("study", "study", runs, None), (), by)


def told(*runs: RecordedRun, by: str = "variant") -> dict[str, tuple[str, ...]]:
    return {found.setting: found.values for found in compared(*runs, by=by).differences}


def teachers(*names: str, use: str = "None", **weights: str) -> dict[str, str]:
    """Params of teachers: the settings of all, and what was noted of those in use."""
    sources = {f"teachers.models.{name}.source": f"/weights/{name}.pth" for name in names}
    noted = {f"teachers.{name}.sha256": sha256 for name, sha256 in weights.items()}
    return {**sources, **noted, "teachers.use": use}


# What differs


def test_settings_are_told_that_are_not_equal_in_all_rows_those_of_the_method_first() -> None:
    other = {**DMT, "distill.fusion": "centred", "optim.base_lr": "0.010", "data.crop_scale": "[0.5, 1.0]"}
    assert told(run("a-seed0", {**DMT, "data.crop_scale": "[0.2, 1.0]"}), run("b-seed0", other)) == {
        "distill.fusion": ("sum", "centred"),
        "optim.base_lr": ("0.02", "0.01"),
        "data.crop_scale": ("[0.2, 1]", "[0.5, 1]"),
    }
    assert next(iter(told(run("a-seed0", DMT), run("b-seed0", other)))) == "distill.fusion"


def test_names_seeds_places_and_what_changes_no_result_are_left_out() -> None:
    own = {"tracking.experiment": "x", "train.log_every_steps": "5", "derived.peak_lr": "1", "data.num_workers": "0"}
    assert told(run("a-seed0", DMT), run("b-seed1", {**DMT, **own})) == {}


def test_rows_of_seeds_have_one_value_or_say_that_their_own_runs_differ() -> None:
    other = {**DMT, "optim.base_lr": "0.01"}
    runs = [run("a-seed0", DMT), run("a-seed1", other), run("b-seed0", DMT), run("b-seed1", DMT)]
    assert told(*runs) == {"optim.base_lr": ("differs", "0.02")}
    assert compared(*runs).notes == ("a: its runs differ in optim.base_lr, and not in their seeds alone",)


def test_one_row_has_no_differences_between_rows() -> None:
    assert told(run("a-seed0", DMT), run("a-seed1", {**DMT, "optim.base_lr": "1"})) == {}


def test_what_makes_the_rows_is_no_difference() -> None:
    runs = run("a-seed0", DMT), run("b-seed0", {**DMT, "distill.fusion": "mean"})
    assert told(*runs, by="distill.fusion") == {}


def test_settings_of_another_task_are_not_told_unless_runs_of_that_task_differ() -> None:
    jitter = {"augment.brightness": "0.4"}  # which iBOT's views have by themselves
    rows = [run("a-seed0", {**DMT, **jitter}), run("b-seed0", {**IBOT, **jitter})]
    assert told(*rows) == {"task": ("dmt", "ibot")}
    third = run("c-seed0", {**IBOT, "ibot.momentum": "0.9"})
    assert told(*rows, third)["ibot.momentum"] == ("—", "0.99", "0.9")


def test_a_setting_that_only_some_runs_know_is_told_with_a_dash() -> None:
    assert told(run("a-seed0", DMT), run("b-seed0", {**DMT, "linear.new": "1"})) == {"linear.new": ("—", "1")}
    epochs = {key: value for key, value in DMT.items() if key != "train.steps"}
    lengths = told(run("a-seed0", DMT), run("b-seed0", epochs))
    assert lengths == {"train.steps": ("60", "—"), "train.epochs": ("—", "300")}


def test_a_value_that_a_restart_changed_is_told_with_both() -> None:
    again = run("b-seed0", DMT, {"resumed.optim.base_lr": "0.01"})
    assert told(run("a-seed0", DMT), again) == {"optim.base_lr": ("0.02", "0.02 -> 0.01")}


def test_a_row_without_any_run_that_counts_tells_what_its_runs_were() -> None:
    failed = run("b-seed0", {**DMT, "optim.base_lr": "50.0"}, status="FAILED")
    lost = run("a-seed1", {**DMT, "optim.base_lr": "7.0"}, status="FAILED")
    assert told(run("a-seed0", DMT), lost, failed) == {"optim.base_lr": ("0.02", "50")}


def test_teachers_are_told_by_their_names_once_and_not_by_what_was_noted_of_each() -> None:
    three = {**DMT, **teachers("mae", "moco", "ibot", mae="1", moco="2", ibot="3")}
    two = {**DMT, **teachers("mae", "moco", "ibot", use="['mae', 'ibot']", mae="1", ibot="3")}
    runs = run("a-seed0", {**three, "teachers.moco.depth": "4"}), run("b-seed0", two)
    assert told(*runs) == {"teachers.use": ("ibot+mae+moco", "ibot+mae")}
    notes = compared(*runs, by="distill.fusion").notes
    assert notes == ("sum: its runs differ in teachers.use, and not in their seeds alone",)


def test_the_same_weights_elsewhere_are_no_difference_and_others_are_told_by_name_or_content() -> None:
    here = {**DMT, **teachers("mae", mae="1" * 64)}
    moved = {**here, "teachers.models.mae.source": "/elsewhere/mae_800.pth"}
    trained_anew = {**here, "teachers.mae.sha256": "2" * 64}
    longer = {**moved, "teachers.mae.sha256": "2" * 64}
    assert told(run("a-seed0", here), run("b-seed0", moved)) == {}
    assert told(run("a-seed0", here), run("b-seed0", trained_anew)) == {"teachers.mae.sha256": ("1" * 12, "2" * 12)}
    names = ("mae.pth", "mae_800.pth")
    assert told(run("a-seed0", here), run("b-seed0", longer)) == {"teachers.models.mae.source": names}


def test_weights_whose_content_not_all_runs_noted_are_told_by_name() -> None:
    older = {**DMT, **teachers("red"), "teachers.models.red.source": "/weights/other.pth"}
    assert told(run("a-seed0", {**DMT, **teachers("red", red="1" * 64)}), run("b-seed0", older)) == {
        "teachers.models.red.source": ("red.pth", "other.pth")
    }


def test_images_are_told_by_their_fingerprint() -> None:
    here, moved = ({**DMT, "data.path": path} for path in ("/a/photos", "/b/faces"))
    assert told(run("a-seed0", here, images="1"), run("b-seed0", moved, images="1")) == {}
    assert told(run("a-seed0", here, images="1"), run("b-seed0", moved, images="2")) == {
        "data.path": ("photos", "faces")
    }
    assert told(run("a-seed0", here, images="1"), run("b-seed0", here, images="2")) == {"data.fingerprint": ("1", "2")}
    few = run("b-seed0", {**here, "data.max_train_images": "10"}, images="2")
    assert told(run("a-seed0", here, images="1"), few) == {"data.max_train_images": ("—", "10")}


def test_what_a_run_starts_from_is_told_by_the_name_of_that_run() -> None:
    runs = [
        run(f"{name}-tuned-seed0", {"student.init_from": f"/x/{name}/seed0"}, {"init_from.run_name": f"{name}-seed0"})
        for name in ("dmt", "mae")
    ]
    assert told(*runs) == {"student.init_from": ("dmt", "mae")}


# How it is told


def many(number_of_rows: int, number_of_settings: int) -> Comparison:
    return compared(
        *(
            run(f"row{row}-seed0", {f"data.setting_{n:02}": f"value_{row}_{n}" for n in range(number_of_settings)})
            for row in range(number_of_rows)
        )
    )


def table(text: str) -> list[str]:
    """Lines of the table of settings."""
    return text.split("What differs\n")[1].split("\n\nNotes")[0].splitlines()


def test_few_rows_are_columns_with_a_line_a_setting() -> None:
    head, _, first, *_, last = table(terminal_table(many(3, 20), 80))
    assert head.split() == ["setting", "row0", "row1", "row2"]
    assert first.split() == ["data.setting_00", "value_0_0", "value_1_0", "value_2_0"]
    assert last.split()[0] == "data.setting_19"
    assert table(terminal_table(many(2, 23), 80))[-1] == "and 3 more: compare.csv"


@pytest.mark.parametrize("width", [60, 80, 120])
def test_many_rows_stay_lines_in_as_many_tables_as_the_width_asks_for(width: int) -> None:
    lines = table(terminal_table(many(6, 12), width))
    assert max(map(len, lines)) <= width
    heads = [line.split() for line in lines if line.startswith("variant")]
    assert [name for head in heads for name in head[1:]] == [f"data.setting_{n:02}" for n in range(10)]
    assert sum(line.startswith("row5") for line in lines) == len(heads)
    assert lines[-1] == "and 2 more: compare.csv"


def test_rows_of_more_than_a_screen_are_told_by_what_is_unlike_in_most() -> None:
    width = 60
    fusions = ["sum"] * 18 + ["mean", "concat"]
    settings = {"optim.base_lr": "0.02", "distill.direction": "student_teacher", "distill.divergence": "kl"}
    rows = [{**settings, "task": "dmt", "distill.fusion": fusion} for fusion in fusions]
    rows[3] |= {"optim.base_lr": "0.5", "distill.divergence": "mse"}
    rows[4] |= {"distill.direction": "teacher_student"}
    rows += [{"task": "mae", "optim.base_lr": "0.02"}]
    comparison = compared(*(run(f"row{number:02}-seed0", row) for number, row in enumerate(rows)))
    lines = table(terminal_table(comparison, width))
    assert max(map(len, lines)) <= width and len(lines) <= 30
    first = " ".join(
        line.removeprefix("(most of them)").strip() for line in lines[2 : lines.index("row00           as most")]
    )
    assert first == (
        "task=dmt, distill.direction=student_teacher, distill.divergence=kl, distill.fusion=sum, optim.base_lr=0.02"
    )
    told = dict(line.split(maxsplit=1) for line in lines if line.startswith("row"))
    own = {title: settings for title, settings in told.items() if settings != "as most"}
    assert own == {
        "row03": "distill.divergence=mse, optim.base_lr=0.5",
        "row04": "distill.direction=teacher_student",
        "row18": "distill.fusion=mean",
        "row19": "distill.fusion=concat",
        "row20": "task=mae",
    }
    assert "| row19 | dmt | student_teacher | kl | concat | 0.02 |" in markdown(comparison, [])


def test_titles_too_long_for_columns_stand_in_front_of_lines() -> None:
    titles = [{"title": f"distilled from {n} teachers with the token fusion of the paper"} for n in range(2)]
    rows = [run(f"{n}-seed0", {**DMT, "optim.base_lr": str(n)}, tags) for n, tags in enumerate(titles)]
    head, _, first, second = table(terminal_table(compared(*rows), 80))
    assert head.split() == ["variant", "optim.base_lr"]
    assert [first.split()[-1], second.split()[-1]] == ["0", "1"]


def test_markdown_has_the_table_too() -> None:
    few, rows = markdown(many(2, 1), []), markdown(many(5, 12), [])
    assert "## What differs\n\n| setting | row0 | row1 |\n| --- | --- | --- |\n| data.setting_00 | value_0_0 |" in few
    assert "| variant | data.setting_00 | data.setting_01 |" in rows and "\n\nand 2 more: compare.csv\n" in rows
    assert "What differs" not in markdown(compared(run("a-seed0", DMT), run("b-seed0", DMT)), [])


def test_csv_and_json_have_the_parameters_whole() -> None:
    long = "x" * 100
    runs = run("a-seed0", {**DMT, "data.path": f"/{long}"}), run("b-seed0", IBOT)
    lines = list(csv.DictReader(io.StringIO(runs_as_csv(compared(*runs)))))
    assert [line["params.task"] for line in lines] == ["dmt", "ibot"]
    assert [line["params.distill.fusion"] for line in lines] == ["sum", ""]
    assert lines[0]["params.data.path"] == f"/{long}" and lines[1]["params.output_dir"] == "runs/b-seed0"
    assert not {"params.optim.base_lr", "params.seed"} & lines[0].keys()  # equal in all; a column of its own
    content = json.loads(as_json(compared(*runs)))
    assert content["runs"][1]["params"] == runs[1].params
    assert {"setting": "task", "values": {"a": "dmt", "b": "ibot"}} in content["differences"]


def test_what_is_not_measured_comes_with_the_command_that_measures_it() -> None:
    runs = [run("a-seed0", DMT), run("b-seed0", DMT)]
    runs[1].metrics.clear()
    assert dict(compared(*runs).left_out) == {
        "b-seed0": "finished, but has no number for eval/knn_top1; to measure: dmt-ds evaluate -e runs/b-seed0"
    }
