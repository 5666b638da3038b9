"""Steps that a run looks at closely: the table covers them, the trace can be read, both stand in MLflow."""

import gzip
import json

import pytest

from tests import processes, tiny_run


@pytest.mark.distributed
def test_the_parts_of_profiled_steps_cover_their_time(tmp_path):
    store = f"sqlite:///{tmp_path / 'mlflow.db'}"
    tracking = {"enabled": True, "uri": store, "system_metrics_seconds": 0, "pictures": False}
    recipe = tiny_run.write_recipe(tmp_path, tracking=tracking)
    done = processes.run(tiny_run.pretrain(recipe, "train.profile_steps=[3,6]"), processes=2)
    folder = tmp_path / "run" / "profile"
    table = json.loads((folder / "steps.json").read_text())

    parts = table["parts"]
    assert {"data wait", "teachers", "augmentation", "student forward", "loss", "backward", "optimizer"} < set(parts)
    assert min(parts.values()) >= 0 and parts["rest"] < table["seconds_per_step"]
    # The log's own clock, of the same steps: 32 images each.
    rates = tiny_run.losses(tmp_path / "run", "perf/images_per_second")
    logged = sum(32 / rates[step] for step in range(3, 7)) / 4
    assert table["seconds_per_step"] == pytest.approx(logged, rel=0.25)
    assert 0 < table["communication_seconds"] < table["seconds_per_step"]
    assert "steps 3 to 6:" in done.stderr and "of which communication" in done.stderr

    trace = json.loads(gzip.decompress((folder / "trace.json.gz").read_bytes()))
    named = [event for event in trace["traceEvents"] if event.get("name") == "teachers"]
    assert len(named) == 4 * 2  # steps, micro-batches

    from mlflow import MlflowClient

    client = MlflowClient(store)
    (run,) = client.search_runs([client.get_experiment_by_name("dmt_ds").experiment_id])
    artifacts = {artifact.path for artifact in client.list_artifacts(run.info.run_id, "profile")}
    assert artifacts == {"profile/steps.json", "profile/trace.json.gz"}


def test_steps_behind_the_end_of_the_run_are_refused(tmp_path):
    recipe = tiny_run.write_recipe(tmp_path)
    done = processes.run(tiny_run.pretrain(recipe, "train.profile_steps=[10,15]"), check=False)
    assert done.returncode == 2
    assert "set train.profile_steps=[8,8]" in done.stderr


def test_a_run_that_stops_among_the_steps_says_so_and_one_that_goes_on_behind_them_which_it_could_look_at(tmp_path):
    recipe = tiny_run.write_recipe(tmp_path)
    stopped = processes.run(tiny_run.pretrain(recipe, "train.profile_steps=[3,6]", "train.stop_after_step=4"))
    (line,) = [line for line in stopped.stderr.splitlines() if "profile_steps" in line]
    assert "[3, 6] is not written: training ended after step 4" in line
    done = processes.run(tiny_run.pretrain(recipe, "train.profile_steps=[3,6]"))
    warnings = [line for line in done.stderr.splitlines() if "profile_steps" in line]
    assert len(warnings) == 1
    assert "[3, 6] is skipped: the run resumes after step 4; set train.profile_steps=[5,8]" in warnings[0]
    assert not (tmp_path / "run" / "profile").exists()
