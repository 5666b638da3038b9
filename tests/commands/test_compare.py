"""`dmt-ds compare`: what it prints, saves and logs, and what it says where there is nothing to compare."""

import csv
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from dmt_ds.cli import main
from tests import processes, tiny_run
from tests.tracking.recorded import Recorder
from tests.tracking.stores import Server, mlflow_client

KNN = "eval/knn_top1"
STEPS = [(step, 100.0) for step in range(10, 60, 10)]
FILES = ["bars.png", "compare.csv", "compare.json", "compare.md", "curves_train_loss.png"]


@pytest.fixture
def folder(empty_database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a store that has no runs yet, as a suite's is; commands run beside it."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "study").mkdir()
    shutil.copyfile(empty_database, tmp_path / "study" / "mlflow.db")
    return tmp_path / "study"


@pytest.fixture
def server(empty_database: Path, tmp_path: Path) -> Iterator[Server]:
    shutil.copyfile(empty_database, tmp_path / "mlflow.db")
    server = Server(tmp_path)
    server.start()
    yield server
    server.kill()


def fill(runs: Recorder) -> None:
    """Two variants of two seeds, and one run that failed."""
    loss = {"train/loss": [(step, 1 / step) for step, _ in STEPS]}
    for number, variant in enumerate(("dmt", "mae")):
        for seed in range(2):
            scores = {KNN: 0.5 - 0.1 * number + 0.02 * seed}
            runs.add(f"{variant}-seed{seed}", scores, rates=STEPS, curves=loss, variant=variant)
    runs.add("mse-seed0", {}, "FAILED", rates=STEPS, variant="mse")


def store(folder: Path) -> str:
    return f"sqlite:///{folder / 'mlflow.db'}"


def compare(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["compare", *map(str, arguments)])


def refusal(*arguments: object) -> str:
    result = compare(*arguments)
    assert result.exit_code == 2
    (line,) = result.stderr.splitlines()
    return line.removeprefix("dmt-ds: error: ")


def artifacts(uri: str, run_name: str, path: str | None = "compare") -> list[str]:
    client = mlflow_client(uri)
    ids = [experiment.experiment_id for experiment in client.search_experiments()]
    (run,) = client.search_runs(ids, f"attributes.run_name = '{run_name}'")
    return [Path(found.path).name for found in client.list_artifacts(run.info.run_id, path)]


# What it does


def test_a_suites_folder_gets_table_and_pictures_and_so_does_its_parent_run(folder: Path) -> None:
    fill(Recorder.of_suite(store(folder), "small"))
    result = compare(folder)
    assert result.exit_code == 0, result.output
    assert "dmt          2  51.00 ± 1.41        1,600" in result.stdout
    assert "mse-seed0: failed after 1,600 images" in result.stdout
    assert sorted(path.name for path in (folder / "compare").iterdir()) == FILES
    assert artifacts(store(folder), "small") == FILES
    text = (folder / "compare" / "compare.md").read_text()
    assert "| dmt | 2 | 51.00 ± 1.41 | 1,600 |" in text
    assert "(bars.png)" in text and "(curves_train_loss.png)" in text


def test_a_second_comparison_replaces_the_first(folder: Path) -> None:
    suite = Recorder.of_suite(store(folder), "small")
    fill(suite)
    compare(folder)
    suite.add("dmt-seed2", {KNN: 0.9}, variant="dmt")
    compare(folder)
    with (folder / "compare" / "compare.csv").open() as file:
        assert [line["run"] for line in csv.DictReader(file)][-1] == "dmt-seed2"
    assert artifacts(store(folder), "small") == FILES


def test_an_experiment_without_a_suite_is_logged_only_to_a_run_that_was_named(folder: Path) -> None:
    fill(Recorder.of_experiment(store(folder), "loose"))
    assert "in MLflow" not in compare("loose", "--uri", store(folder)).stdout
    assert sorted(path.name for path in Path("compare_loose").iterdir()) == FILES
    assert artifacts(store(folder), "dmt-seed0", None) == []
    compare("loose", "--uri", folder / "mlflow.db", "--log", "dmt-seed0", "-o", "there")
    assert sorted(path.name for path in Path("there").iterdir()) == FILES
    assert artifacts(store(folder), "dmt-seed0") == FILES


def test_the_parent_of_a_family_is_no_suites_and_is_left_as_it_is(folder: Path) -> None:
    family = Recorder.of_experiment(store(folder), "loose")
    client = mlflow_client(store(folder))
    parent = client.create_run(family.experiment_id, 1, {"dmt_ds.parent_of": "vit_family"}, "vit_family")
    fill(replace(family, parent_id=parent.info.run_id))
    for which in ([], ["--suite", "vit_family"]):
        assert "in MLflow" not in compare("loose", "--uri", store(folder), *which).stdout
    assert artifacts(store(folder), "vit_family", None) == []


def test_nothing_is_logged_where_that_is_asked(folder: Path) -> None:
    fill(Recorder.of_suite(store(folder), "small"))
    assert compare(folder, "--log", "none").exit_code == 0
    assert artifacts(store(folder), "small", None) == []


@pytest.mark.parametrize("asked", [["--by", "seed"], ["--metric", "train/loss"], ["--roles", "variant"], []])
def test_another_table_leaves_the_suites_as_it_is_unless_a_run_is_named(folder: Path, asked: list[str]) -> None:
    fill(Recorder.of_suite(store(folder), "small"))
    result = compare(folder, *asked, *([] if asked else ["-o", "elsewhere"]))
    assert result.exit_code == 0 and "in MLflow" not in result.stdout
    assert artifacts(store(folder), "small", None) == []
    assert "Saved with run small" in compare(folder, *asked, "--log", "small").stdout


def test_a_score_that_was_measured_during_the_runs_is_drawn_as_a_curve(folder: Path) -> None:
    suite = Recorder.of_suite(store(folder), "small")
    for number in range(10):  # more than share a panel
        suite.add(f"v{number}-seed0", {}, rates=STEPS, curves={KNN: [(step, step / 100) for step, _ in STEPS]})
    assert compare(folder, "--metric", KNN, "--metric", "train/images_seen").exit_code == 0
    pictures = [path.name for path in (folder / "compare").glob("*.png")]
    assert sorted(pictures) == ["bars.png", "curves_eval_knn_top1.png", "curves_train_images_seen.png"]


def test_through_a_server_all_is_as_in_its_file(folder: Path, server: Server) -> None:
    for uri in (store(folder), server.uri):
        fill(Recorder.of_suite(uri, "small"))
    beside = compare("small", "--uri", server.uri, "-o", "served", "--log", "small")
    assert beside.exit_code == 0, beside.output
    assert compare(folder).stdout.split("\nSaved in")[0] == beside.stdout.split("\nSaved in")[0]
    assert artifacts(server.uri, "small") == FILES


def test_the_store_is_found_where_training_puts_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(Recorder.of_experiment(store(folder), "loose"))
    Path("runs").mkdir()
    shutil.copyfile(folder / "mlflow.db", "runs/mlflow.db")
    assert compare().exit_code == 0
    Path("runs/mlflow.db").unlink()
    assert "there is no mlflow.db" in refusal()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store(folder))
    assert compare().exit_code == 0


@pytest.mark.distributed
def test_a_real_run_of_two_ranks_has_the_cost_that_its_log_tells(folder: Path) -> None:
    tracking = {"enabled": True, "uri": store(folder), "system_metrics_seconds": 0, "pictures": False}
    recipe = tiny_run.write_recipe(folder, tracking=tracking)
    processes.run(tiny_run.pretrain(recipe), 2)
    assert compare("dmt_ds", "--uri", store(folder), "-o", "there").exit_code == 0
    with Path("there/compare.csv").open() as file:
        (line,) = csv.DictReader(file)
    rates = tiny_run.losses(folder / "run", "perf/images_per_second")
    seconds = sum(32 / rate for rate in rates.values())
    assert len(rates) == tiny_run.NUM_STEPS
    assert line["device_unit"] == "CPU-h"
    assert float(line["device_hours"]) == pytest.approx(2 * seconds / 3600)
    assert (line["images_seen"], line["restarts"]) == (str(32.0 * tiny_run.NUM_STEPS), "0")


# What it says where there is nothing to compare


def test_an_unknown_experiment_or_suite_is_told_with_names_that_come_near(folder: Path) -> None:
    fill(Recorder.of_suite(store(folder), "small_study"))
    uri = ("--uri", store(folder))
    assert refusal("smal_study", *uri).endswith("no experiment 'smal_study'; did you mean small_study?")
    assert refusal("other", *uri).endswith("no experiment 'other'; there are: Default, small_study")
    assert refusal("runs/small_study", *uri).endswith("did you mean small_study?")
    assert refusal("--suite", "tiny", *uri).endswith("no suite 'tiny' in any experiment; there are: small_study")
    assert refusal("small_study", "--suite", "tiny", *uri).endswith("has no suite 'tiny'; there are: small_study")
    assert refusal("Default", "--suite", "tiny", *uri).endswith(
        "experiment 'Default' has no suite 'tiny'; it holds none"
    )
    assert refusal("it's", *uri).startswith(f"{store(folder)}: no experiment")
    assert not Path("compare_small_study").exists()


def test_a_suite_that_is_asked_for_by_its_name_is_found_among_the_runs(folder: Path) -> None:
    fill(Recorder.of_suite(store(folder), "small_study"))
    hint = "; runs/trial has a store of its own: name runs/trial"
    assert "has a store of its own" not in refusal("trial")
    shutil.copytree(folder, "runs/trial")
    assert refusal("trial").endswith(hint)  # no store here
    shutil.copyfile(folder / "mlflow.db", "mlflow.db")
    for asked in ("trial",), ("--suite", "trial"):
        assert refusal(*asked).endswith(hint)
    assert "has a store of its own" not in refusal("trial", "--uri", store(folder))
    assert compare("runs/trial").exit_code == 0


def test_an_empty_suite_experiment_or_store_is_told(folder: Path) -> None:
    uri = ("--uri", store(folder))
    assert refusal(*uri).endswith("there are no runs in it yet; name another store with --uri")
    Recorder.of_suite(store(folder), "small")
    assert refusal("--suite", "small", *uri).endswith("suite 'small' has no runs yet; start it with dmt-ds suite")
    assert refusal(folder).endswith("experiment 'small' has no runs yet; start one, or name another experiment")
    assert refusal("Default", *uri).endswith(
        "experiment 'Default' has no runs yet; start one, or name another experiment"
    )


def test_which_of_several_experiments_is_asked(folder: Path) -> None:
    for name in ("one", "two"):
        fill(Recorder.of_experiment(store(folder), name))
    assert refusal(folder).endswith("which experiment? Name one of: one, two")


def test_a_suite_beside_the_experiment_of_its_fine_tunings_is_what_a_folder_means(folder: Path) -> None:
    fill(Recorder.of_suite(store(folder), "small"))
    Recorder.of_experiment(store(folder), "small_finetune").add("dmt-seed0-finetune", {"eval/top1": 0.4})
    result = compare(folder)
    assert result.exit_code == 0, result.output
    assert "dmt          2  51.00 ± 1.41" in result.stdout and "finetune" not in result.stdout


def test_what_no_run_has_is_told_with_what_there_is(folder: Path) -> None:
    fill(Recorder.of_suite(store(folder), "small"))
    there = "eval/knn_top1, perf/images_per_second, train/images_seen, train/loss"
    assert refusal(folder, "--metric", "eval/miou") == f"small: no run has a metric 'eval/miou'; there are: {there}"
    assert refusal(folder, "--by", "sed") == "small: no run has a parameter or tag 'sed'; did you mean seed?"
    assert refusal(folder, "--roles", "tune") == "small: no run has the role tune; --roles takes: variant"
    assert "has no run 'dmt-seed7'; did you mean dmt-seed1 or dmt-seed0" in refusal(folder, "--log", "dmt-seed7")
    assert not (folder / "compare").exists()


def test_a_store_that_is_not_there_or_does_not_answer_is_told(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    missing = f"sqlite:///{folder}/other.db"
    assert refusal("small", "--uri", missing) == f"{missing}: there is no such file; name a store that has runs"
    assert refusal("small", "--uri", "http://127.0.0.1:9").startswith("http://127.0.0.1:9 can't be reached properly: ")
    (folder / "text.db").write_text("no store")
    assert "is not an SQLite file" in refusal("small", "--uri", folder / "text.db")
