"""What a suite does with the encoders of judged runs, such as fine-tuning; what is added later alone is made."""

import os
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from dmt_ds.cli import main, studies
from dmt_ds.commands.suites.suite_slurm import STAGES
from dmt_ds.config.load import load_config, to_yaml
from dmt_ds.config.suite_follow_ups import follow_ups_of
from dmt_ds.config.suite_run import SuiteRun
from tests import tiny_run, tiny_suite
from tests.forked_command import ForkedCommand
from tests.tiny_scenes import write_ade
from tests.tiny_suite import call, plan_of, pretend_finished

FINETUNE = {"recipe": "finetune.yaml", "set": {"train.steps": 2}}
PLAIN_RUN = {key: value for key, value in tiny_suite.RUN.items() if key != "student"}
SEGMENT_RECIPE = {
    "task": "segment",
    "name": "segmented",
    **PLAIN_RUN,
    "data": {"source": "folder", "path": "/set/by/the/suite", "train_split": "training", "val_split": "validation",
             "image_size": 24, "num_workers": 0},
    "student": {"depth": 4},
    "segment": {"channels": 12, "auxiliary_channels": 8, "short_side": 30, "blocks": [0, 1, 2, 3]},
}  # fmt: skip
DETECT_RECIPE = {"task": "detect", "name": "found", **PLAIN_RUN, "data": {"source": "folder", "path": "/coco"}}


def write_suite(folder: Path, *asked_for: str, **variant: object) -> Path:
    """One variant, one seed, and what is done with its encoder; written again it may ask for more."""
    segment = {"recipe": "segment.yaml", "set": {"data.path": str(folder / "ade"), "train.steps": 2}}
    known = {"finetune": FINETUNE, "segment": segment, "detect": {"recipe": "detect.yaml"}}
    changes = {kind: spec if kind in asked_for else None for kind, spec in known.items()}
    variants = {"mae": {"recipe": "maker.yaml", "set": {"student.depth": 4}, **variant}}
    nothing = {"set": None, "paper": None, "teachers": None, "tune": None}
    suite = tiny_suite.write_suite(folder, seeds=[0], variants=variants, **nothing, **changes)
    recipes = {
        "finetune.yaml": {"task": "classify", "name": "tuned", "classify": {"rand_augment_magnitude": 0}, **PLAIN_RUN},
        "segment.yaml": SEGMENT_RECIPE,
        "detect.yaml": DETECT_RECIPE,
    }
    for name, content in recipes.items():
        (folder / name).write_text(yaml.safe_dump(content))
    return suite


@pytest.mark.distributed
def test_a_segmentation_that_is_added_later_is_all_that_is_made_and_stands_with_its_run(
    tmp_path: Path, own_signals: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dmt_ds.commands.suites.suite_local.RunningCommand", ForkedCommand)
    write_ade(tmp_path / "ade")
    first = call(write_suite(tmp_path, "finetune"))
    assert first.exit_code == 0, first.output
    assert "mae seed0: training" in first.stdout
    run = tmp_path / "out" / "mae" / "seed0"
    (score,) = tiny_run.losses(run, "eval/finetune_top1").values()
    assert tiny_run.losses(run / "finetune", "eval/top1") == {2: score}
    assert load_config(str(run / "finetune" / "config.yaml")).tracking.experiment == "tiny_finetune"
    made = [run / name for name in ("backbone/model.safetensors", "DONE", "evaluation.json", "finetune/DONE")]
    before = [path.stat().st_mtime_ns for path in made]

    suite = write_suite(tmp_path, "finetune", "segment")
    assert "evaluated, not segmented" in call(suite, "--list").output
    second = call(suite)
    assert second.exit_code == 0, second.output
    assert "mae seed0: segmentation; log" in second.stdout and "training" not in second.stdout
    assert [path.stat().st_mtime_ns for path in made] == before
    config = load_config(str(run / "segment" / "config.yaml"))
    assert (config.tracking.experiment, config.seed) == ("tiny_segment", 0)
    assert (config.data.source, config.data.path) == ("folder", str(tmp_path / "ade"))
    for name in ("miou", "macc", "aacc"):
        assert tiny_run.losses(run, f"eval/segment_{name}") == {3: tiny_run.losses(run / "segment", f"eval/{name}")[2]}
    assert "1 of 1 finished" in call(suite, "--list").output
    assert "training" not in call(suite).output

    table = CliRunner().invoke(main, ["compare", str(tmp_path / "out")]).output
    assert f"{100 * tiny_run.losses(run, 'eval/segment_miou')[3]:.2f}" in table
    assert "finetune_top1 %" in table and "segment_miou %" in table
    accuracies = CliRunner().invoke(main, ["compare", str(tmp_path / "out"), "--metric", "eval/segment_macc"]).output
    assert "segment_macc %" in accuracies


def test_each_is_an_array_of_its_own_behind_the_seeds(tmp_path: Path) -> None:
    suite = write_suite(tmp_path, "finetune", "segment", "detect")
    lines = call(suite, "--slurm").output.splitlines()
    assert [line.split("suite.sh ")[1].split()[0] for line in lines] == ["seeds", "finetune", "segment", "detect"]
    assert all(f"--dependency=afterany:$job{number}" in line for number, line in enumerate(lines[1:]))
    for stage, done in (("finetune", "fine-tuned"), ("segment", "segmented"), ("detect", "put under a detector")):
        refused = call(suite, "--stage", stage, "--print-run", "0")
        assert refused.exit_code == 2
        assert f"mae seed0: not {done}: it is not trained and evaluated yet" in refused.stderr
    (run,) = plan_of(suite).variants({})
    pretend_finished(run)
    assert len(call(suite, "--slurm").output.splitlines()) == 3
    words = call(suite, "--stage", "finetune", "--print-run", "0").output.splitlines()
    assert words[:4] == ["-e", str(run.folder), "-c", str(tmp_path / "finetune.yaml")]
    assert {"seed=0", "train.steps=2", "data.source=digits", f"output_dir={run.folder}/finetune"} <= set(words)
    words = call(suite, "--stage", "segment", "--print-run", "0").output.splitlines()
    assert words[:4] == ["-e", str(run.folder), "-c", str(tmp_path / "segment.yaml")]
    assert [word for word in words if word.startswith("data.")] == [f"data.path={tmp_path}/ade"]
    assert {"seed=0", f"output_dir={run.folder}/segment", "tracking.experiment=tiny_segment"} <= set(words)
    words = call(suite, "--stage", "detect", "--print-run", "0").output.splitlines()
    assert words[:4] == ["-e", str(run.folder), "-c", str(tmp_path / "detect.yaml")]
    assert {"task=detect", f"output_dir={run.folder}/detect"} <= set(words)
    assert not [word for word in words if word.startswith("data.")]
    (_, _, detection) = follow_ups_of(run)
    assert detection.config.data.image_size == run.config.data.image_size  # its positions are the encoder's


def test_a_fine_tuning_on_the_digits_of_a_run_takes_a_recipe_for_photographs(tmp_path: Path) -> None:
    finetune = {"recipe": "finetune_vit_tiny", "set": {"data.image_size": 32}}
    photographs = {"recipe": "mae", "set": {"data.source": "digits", "data.image_size": 32}}
    nothing = {"recipe": None, "set": None, "paper": None, "teachers": None, "tune": None}
    suite = tiny_suite.write_suite(tmp_path, seeds=[0], variants={"mae": photographs}, finetune=finetune, **nothing)
    (run,) = plan_of(suite).variants({})
    (follow_up,) = follow_ups_of(run)
    _, _, _, recipe, *overrides = follow_up.arguments
    assert load_config(recipe, overrides).data == follow_up.config.data


def test_the_command_line_wins_over_what_the_file_says_of_them_and_is_for_no_run(tmp_path: Path) -> None:
    suite = write_suite(tmp_path, "segment")
    given = ("segment.set.data.path=a b", "segment.set.train.steps=5", "train.steps=7")
    lines = call(suite, "--slurm", *given).output.splitlines()
    assert all("'segment.set.data.path=a b'" in line and "segment.set.train.steps=5" in line for line in lines)
    seeds = call(suite, "--stage", "seeds", "--print-run", "0", *given).output.splitlines()
    assert "train.steps=7" in seeds and not [word for word in seeds if "a b" in word]
    (run,) = plan_of(suite).variants({})
    pretend_finished(run)
    words = call(suite, "--stage", "segment", "--print-run", "0", *given[:2]).output.splitlines()
    assert {"data.path=a b", "train.steps=5"} <= set(words)
    wrong = call(suite, "--list", "segment.set.name=x", "segment.set.train.stpes=5", "finetune.set.train.steps=5")
    assert wrong.stderr.splitlines() == [
        "dmt-ds: error: command line: segment.set.name: is given to each run by the suite itself; take it out",
        f"dmt-ds: error: command line: finetune.set: {suite} has no finetune:; add finetune: {{recipe: ...}} there, or "
        "take it out",
        "dmt-ds: error: command line: segment.set.train.stpes: unknown key. Did you mean 'steps'?",
    ]


@pytest.mark.parametrize(
    ("given", "remedy"),
    [
        (
            "segment.channels=64",
            "task segment; for the further training of their encoders give segment.set.segment.channels=64",
        ),
        ("classify.frozen=true", "task classify; take it out"),
        ("ibot.output_dim=64", "task ibot or dino; take it out"),
    ],
)
def test_a_setting_that_no_run_looks_at_is_refused_with_where_it_belongs(
    given: str, remedy: str, tmp_path: Path
) -> None:
    suite = write_suite(tmp_path, "segment")
    refused = call(suite, "--list", given)
    (line,) = refused.stderr.splitlines()
    assert refused.exit_code == 2
    assert line == f"dmt-ds: error: command line: {given.partition('=')[0]}: no run of the suite is of {remedy}"
    assert call(suite, "--list", "mae.mask_ratio=0.5").exit_code == 0


def test_the_command_line_knows_the_stages() -> None:
    assert tuple(STAGES) == studies.STAGES


@pytest.mark.parametrize(("left_out", "state"), [("finetune", "not segmented"), ("segment", "not fine-tuned")])
def test_a_variant_may_be_left_out_of_either(left_out: str, state: str, tmp_path: Path) -> None:
    suite = write_suite(tmp_path, "finetune", "segment", **{left_out: False})
    (run,) = plan_of(suite).variants({})
    assert call(suite, "--stage", left_out, "--print-run", "0").output.strip() == ""
    pretend_finished(run)
    assert f"evaluated, {state}\n" in call(suite, "--list").output
    assert call(suite, "--stage", left_out, "--print-run", "0").output.strip() == ""
    assert len(call(suite, "--slurm").output.splitlines()) == 1


def test_what_failed_behind_a_finished_run_is_told_with_what_it_reached(tmp_path: Path) -> None:
    suite = write_suite(tmp_path, "finetune", "segment")
    (run,) = plan_of(suite).variants({})
    pretend_finished(run)
    (run.folder / "failure.txt").write_text("fine-tuning: no room\n")
    assert "evaluated, not fine-tuned, not segmented; failed: fine-tuning: no room\n" in call(suite, "--list").output


def pretend_done(run: SuiteRun) -> None:
    """What follow-ups leave, with what the encoder itself gave them."""
    colours = {"mean": (0.1, 0.2, 0.3), "std": (0.3, 0.2, 0.1)}
    for follow_up in follow_ups_of(run):
        config = follow_up.config
        follow_up.folder.mkdir()
        saved = config.model_copy(update={"augment": config.augment.model_copy(update=colours)})
        (follow_up.folder / "config.yaml").write_text(to_yaml(saved))
        (follow_up.folder / "DONE").write_text("2\n")


@pytest.mark.parametrize("action", [[], ["--slurm"], ["--submit"]])
def test_one_that_was_done_by_other_settings_is_refused_in_one_line(
    action: list[str], tmp_path: Path, sbatch: Path
) -> None:
    suite = write_suite(tmp_path, "finetune", "segment")
    (run,) = plan_of(suite).variants({})
    pretend_finished(run)
    pretend_done(run)
    quiet = "tracking.enabled=false"
    assert call(suite, *action, quiet).exit_code == 0
    refused = call(suite, *action, quiet, "segment.set.train.steps=5", "finetune.set.data.num_workers=1")
    (line,) = refused.stderr.splitlines()
    assert refused.exit_code == 2
    assert (
        f"{run.folder}/segment: was trained with other settings" in line
        and "(then -> now): train.steps: 2 -> 5;" in line
    )


@pytest.fixture
def sbatch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program in sbatch's place, and the file that it leaves when it is called."""
    program, called = tmp_path / "bin" / "sbatch", tmp_path / "called"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\ntouch {called}\necho 1\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    return called


@pytest.mark.parametrize("submit", [[], ["--submit"]])
def test_what_would_stop_them_after_all_trainings_stops_the_suite_before_the_first(
    submit: list[str], tmp_path: Path, sbatch: Path
) -> None:
    suite = write_suite(tmp_path, "finetune", "segment")
    (tmp_path / "adf").mkdir()
    given = ("segment.set.train.deepspeed=student_zero3_bf16", "tracking.enabled=false")
    refused = call(suite, *submit, *given)
    assert refused.exit_code == 2
    zero, folder = refused.stderr.splitlines()
    assert f"{suite}: segment: train.deepspeed=student_zero3_bf16 is ZeRO-3, but this segment sees" in zero
    assert "segment.set.train.deepspeed=" in zero
    assert f"{suite}: segment: data.path: {tmp_path}/ade does not exist: no 'ade' in {tmp_path}; did you" in folder
    assert "give segment.set.data.path=" in folder
    assert not (tmp_path / "out" / "mae").exists() and not sbatch.exists()
    assert call(suite, "--list", *given).exit_code == 0
    (run,) = plan_of(suite).variants({})
    pretend_finished(run)
    pretend_done(run)
    assert call(suite, *submit, "tracking.enabled=false").exit_code == 0


def test_what_is_wrong_with_them_is_said_before_the_first_training(tmp_path: Path) -> None:
    suite = write_suite(tmp_path, "finetune", "segment")
    text = suite.read_text()
    suite.write_text(text.replace("train.steps: 2", "train.stpes: 2\n    seed: 3"))
    lines = call(suite, "--list").stderr.splitlines()
    assert [line.partition("suite.yaml: ")[2] for line in lines] == [
        "finetune.set: seed: is given to each run by the suite itself; take it out",
        "segment.set: seed: is given to each run by the suite itself; take it out",
        "finetune.set: train.stpes: unknown key. Did you mean 'steps'?",
        "segment.set: train.stpes: unknown key. Did you mean 'steps'?",
    ]
    suite.write_text(text.replace("finetune.yaml", "segment.yaml"))
    (line,) = call(suite, "--list").stderr.splitlines()
    wrong = "finetune.recipe=segment.yaml: is of task segment, not classify: take another recipe"
    assert line.endswith(f"suite.yaml: {wrong}")
    suite.write_text(text.replace("  recipe: segment.yaml\n", ""))
    assert "segment.recipe: is missing" in call(suite, "--list").stderr
