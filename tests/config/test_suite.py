"""A suite file becomes runs, or lines that say what to mend; nothing is started."""

from functools import cache
from pathlib import Path

import pytest
import yaml

from dmt_ds.config.batch import plan_batch
from dmt_ds.config.load import load_config
from dmt_ds.config.suite import SUITES, load_suite
from dmt_ds.config.suite_follow_ups import follow_ups_of
from dmt_ds.config.suite_plan import SuitePlan, findings, value_text
from dmt_ds.config.suite_run import SuiteRun, as_overrides
from dmt_ds.config.yaml_text import parse_value
from dmt_ds.errors import ConfigError
from tests.tiny_suite import write_suite


def plan_of(path: Path | str, output: Path = Path("/out"), **given: object) -> SuitePlan:
    return SuitePlan(load_suite(str(path)), output, given, f"sqlite:///{output}/mlflow.db")


@cache
def shipped(name: str) -> tuple[SuitePlan, list[SuiteRun]]:
    """A shipped suite with all its runs, whose settings are resolved once for all tests."""
    plan = plan_of(name, **{"data.path": "/images"})
    return plan, all_runs(plan)


def all_runs(plan: SuitePlan) -> list[SuiteRun]:
    return [*plan.teachers(), *plan.tuning(), *plan.variants({})]


def complaints(text: str, folder: Path) -> list[str]:
    """What is wrong with a suite file, without the file's name."""
    path = folder / "suite.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_suite(str(path))
    lines = str(caught.value).splitlines()
    assert all(line.startswith(f"{path}:") for line in lines), lines
    return [line.removeprefix(f"{path}: ") for line in lines]


@pytest.mark.parametrize("name", SUITES.names())
def test_all_batches_of_a_shipped_suite_divide_by_the_ranks_that_its_head_asks_for(name: str) -> None:
    _, runs = shipped(name)
    command = next(line for line in SUITES.find(name).read_text().splitlines() if "dmt-ds suite" in line)
    nodes = int(command.partition("--nodes=")[2] or 1)
    ranks = 8 * nodes if "--submit" in command else 1
    for run in runs:
        for config in [run.config, *(follow_up.config for follow_up in follow_ups_of(run))]:
            plan_batch(config.train.global_batch_size, config.train.micro_batch_size, ranks)


def test_the_guides_example_is_a_suite_and_each_of_its_runs_resolves(tmp_path: Path) -> None:
    guide = Path(__file__).parents[2] / "docs" / "suites.md"
    example = tmp_path / "fusions.yaml"
    example.write_text(guide.read_text().split("```yaml\n")[1].split("```")[0])
    plan = plan_of(example, **{"data.path": "photos"})
    runs = all_runs(plan)
    assert len(runs) == 2 + 3 * 2 + 3 * 3 and not findings(plan, runs)


# Which runs there are


def test_a_suite_is_its_teachers_then_each_tuned_value_then_each_variant_with_each_seed(tmp_path: Path) -> None:
    runs = all_runs(plan_of(write_suite(tmp_path)))
    assert [str(run.folder.relative_to("/out")) for run in runs] == [
        "teachers/mae",
        "tune/dmt/0.001",
        "tune/dmt/0.01",
        "dmt/seed0",
        "dmt/seed1",
        "untrained/seed0",
        "untrained/seed1",
    ]
    assert [run.role for run in runs] == ["teacher", "tune", "tune", *4 * ["variant"]]
    assert [run.config.seed for run in runs] == [0, 100, 100, 0, 1, 0, 1]
    assert len({run.config.name for run in runs}) == len(runs)


def test_every_run_resolves_as_its_overrides_would_on_the_command_line(tmp_path: Path) -> None:
    title = 'DMT: "one" teacher, [a], {b}, no, 1e-3'
    path = write_suite(tmp_path, variants={"dmt": {"title": title}}, set={"data.crop_scale": [0.5, 1]})
    given = {"train.epochs": None, "data.path": "a b", "data.source": "digits"}
    for run in all_runs(plan_of(path, **given)):
        assert load_config(run.recipe, run.overrides) == run.config
        assert (run.config.data.crop_scale, run.config.train.epochs, run.config.data.path) == ((0.5, 1), None, "a b")
        if run.role != "teacher":
            assert run.config.tracking.tags["title"] == title


def test_a_path_that_the_suites_digits_would_pass_over_is_told_before_a_run_is_given_it(tmp_path: Path) -> None:
    plan = plan_of(write_suite(tmp_path, set={"data.path": "/photos"}))
    (line,) = findings(plan, all_runs(plan))
    assert ": set: data.path=/photos: is not used by data.source=digits: add data.source=folder" in line


@pytest.mark.parametrize(
    "value", ["a: b", "", "null", "[1, 2]", " x", "~", "'q'", ["a", "1e-3"], None, {"a": ["b"]}, "x # y", "ä"]
)
def test_a_value_of_any_kind_is_written_so_that_it_is_read_back(value: object) -> None:
    (override,) = as_overrides({"key": value})
    assert parse_value(override.removeprefix("key="), "test") == value


def test_the_command_line_wins_over_a_variant_a_variant_over_the_suite_the_suite_over_the_recipe(
    tmp_path: Path,
) -> None:
    path = write_suite(
        tmp_path,
        set={"optim.eps": "1e-5", "optim.weight_decay": "0.2", "train.steps": "5"},
        variants={"a": {"set": {"optim.weight_decay": "0.3", "train.steps": "6"}}},
        tune=None,
        teachers=None,
    )
    (run, _) = plan_of(path, **{"train.steps": "7"}).variants({})
    config = run.config
    assert (config.optim.warmup_steps, config.optim.eps) == (1, 1e-5)  # the recipe's; the suite's
    assert (config.optim.weight_decay, config.train.steps) == (0.3, 7)


def test_tuning_runs_lie_over_the_variant_and_the_chosen_value_reaches_each_seed(tmp_path: Path) -> None:
    path = write_suite(tmp_path, variants={"dmt": {"set": {"train.steps": "9"}}, "free": {"tune": False}})
    plan = plan_of(path)
    assert [(run.config.train.steps, run.config.optim.base_lr) for run in plan.tuning()] == [(2, 1e-3), (2, 1e-2)]
    seeds = plan.variants({"dmt": 1e-2})
    assert [run.config.optim.base_lr for run in seeds] == [1e-2, 1e-2, 1.6e-2, 1.6e-2]
    assert [run.config.train.steps for run in seeds] == [9, 9, 3, 3]


def test_tuned_values_are_named_short_and_exactly() -> None:
    assert [value_text(value) for value in (5.0e-4, 1e-05, 3, 0.1 + 0.2)] == [
        "0.0005",
        "1e-05",
        "3",
        "0.30000000000000004",
    ]


# Teachers


def test_a_run_waits_for_the_teachers_that_it_uses_and_for_no_other(tmp_path: Path) -> None:
    sources = {f"teachers.models.{name}.source": f"{{teachers}}/{name}" for name in ("mae", "other")}
    path = write_suite(
        tmp_path,
        set=sources,
        teachers={"mae": {"recipe": "maker.yaml"}, "other": {"recipe": "maker.yaml", "set": {"seed": "7"}}},
        variants={
            "both": {},
            "one": {"set": {"teachers.use": ["other"]}},
            "alone": {"recipe": "maker.yaml"},
            "from": {"recipe": "maker.yaml", "set": {"student.init_from": "{teachers}/mae"}},
        },
        seeds=[0],
    )
    plan = plan_of(path)
    needs = {run.owner: plan.teachers_of(run) for run in plan.variants({})}
    assert needs == {"both": ["mae", "other"], "one": ["other"], "alone": [], "from": ["mae"]}
    assert [run.config.seed for run in plan.teachers()] == [0, 7]
    assert plan.variants({})[0].config.teachers.models["mae"].source == "/out/teachers/mae"


def test_a_teacher_that_the_suite_does_not_make_is_one_finding_with_the_likely_name(tmp_path: Path) -> None:
    path = write_suite(tmp_path, set={"teachers.models.mae.source": "{teachers}/mea"}, tune=None, seeds=[0])
    plan = plan_of(path)
    assert findings(plan, all_runs(plan)) == [
        f"{path}: {owner} seed0: teachers.models.mae.source: the suite makes no teacher 'mea'. Did you mean 'mae'?"
        for owner in ("dmt", "untrained")
    ]


# What each run tells MLflow


def test_runs_are_told_apart_by_tags_under_one_parent(tmp_path: Path) -> None:
    path = write_suite(
        tmp_path, variants={"dmt": {"title": "DMT", "paper": "42.0", "set": {"tracking.tags.mine": "x"}}}
    )
    runs = {run.role: run.config.tracking for run in all_runs(plan_of(path))}
    assert {(section.experiment, section.parent, section.uri) for section in runs.values()} == {
        ("tiny", "tiny", "sqlite:////out/mlflow.db")
    }
    common = {"suite": "tiny", "variant": "dmt", "title": "DMT", "mine": "x"}
    assert runs["teacher"].tags == {"suite": "tiny", "variant": "mae", "title": "mae", "role": "teacher"}
    assert runs["tune"].tags == {**common, "role": "tune"}
    assert runs["variant"].tags == {**common, "role": "variant", "paper": "42.0"}


def test_the_store_and_the_experiment_may_be_others(tmp_path: Path) -> None:
    plan = plan_of(write_suite(tmp_path), **{"tracking.uri": "http://host", "tracking.experiment": "mine"})
    assert {(run.config.tracking.uri, run.config.tracking.experiment) for run in all_runs(plan)} == {
        ("http://host", "mine")
    }


# What is wrong


SUITE = "name: x\nrecipe: mae\nseeds: [0]\nvariants: {a: }\n"


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "must be a mapping with 'name:', 'recipe:', 'seeds:' and 'variants:'"),
        (SUITE + "sedes: 3", "sedes: unknown key. Did you mean 'seeds'?"),
        (SUITE.replace("[0]", "3"), "seeds=3: must be a list, such as [1, 2]"),
        (SUITE.replace("[0]", "[0, 1, 0]"), "seeds [0, 1, 0]: one is given twice"),
        (SUITE.replace("seeds: [0]\n", ""), "seeds: is missing; give seeds=..."),
        (SUITE.replace("{a: }", "{a: {titel: b}}"), "variants.a.titel: unknown key. Did you mean 'title'?"),
        (SUITE.replace("{a: }", "{tune: }"), "variants.tune: is the name of another folder of the suite"),
        (SUITE.replace("a:", "a/b:"), "'a/b' names a folder: use letters, digits, '.', '_', '-'"),
        (SUITE + "tune: {values: [1e-3, x]}", "tune.values=x: not a number"),
        (SUITE + "tune: {values: [1e-3]}", "tune.values [0.001]: give at least two, or leave tune out"),
        (SUITE + "tune: {values: [1, 2], seed: 0}", "tune.seed=0: is one of the seeds that are compared"),
        (SUITE.replace("a: ", "a: {paper: '3'}"), "paper.metric: is missing; it says what variants.a.paper measures"),
        (SUITE.replace("recipe", "recipe: x\nrecipe"), "key 'recipe' is given twice"),
    ],
)
def test_a_bad_suite_file_is_one_clear_line(text: str, complaint: str, tmp_path: Path) -> None:
    path = tmp_path / "suite.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_suite(str(path))
    (line,) = str(caught.value).splitlines()
    assert line.startswith(str(path)) and complaint in line


def test_all_that_is_wrong_with_a_file_is_said_at_once(tmp_path: Path) -> None:
    assert complaints("name: a b\nseeds: x\nvariants: 3\n", tmp_path) == [
        "name=a b: not allowed here. Letters, digits, `.`, `_`, `-`: experiment and parent run in MLflow, and folder "
        "of the runs.",
        "seeds=x: must be a list, such as [1, 2]",
        "variants=3: must have keys: variants.NAME=...",
    ]


def test_what_is_wrong_with_runs_names_the_place_in_the_file_once_however_many_runs_have_it(tmp_path: Path) -> None:
    path = write_suite(
        tmp_path,
        set={"optim.bse_lr": "1"},
        tune={"key": "optim.base_lrr", "values": [1, 2]},
        variants={"dmt": {"set": {"seed": "3"}}, "plain": {"set": {"train.steps": "-1"}, "tune": False}},
    )
    plan = plan_of(path, name="x")
    assert findings(plan, all_runs(plan)) == [
        f"{path}: variants.dmt.set: seed: is given to each run by the suite itself; take it out",
        "command line: name: is given to each run by the suite itself; take it out",
        f"{path}: set: optim.bse_lr: unknown key. Did you mean 'base_lr'?",
        f"{path}: tune.key: optim.base_lrr: unknown key. Did you mean 'base_lr'?",
        f"{path}: variants.plain.set: train.steps=-1: must be >= 0",
    ]


@pytest.mark.parametrize(
    ("recipe", "words"),
    [("studnet.yaml", "Shipped recipes: "), ("vit_tinny", "Did you mean 'vit_tiny'?")],
)
def test_a_recipe_that_is_not_there_is_named_with_who_wants_it(recipe: str, words: str, tmp_path: Path) -> None:
    plan = plan_of(write_suite(tmp_path, recipe=recipe, variants={"dmt": {}, "own": {"recipe": "student.yaml"}}))
    (line,) = findings(plan, all_runs(plan))
    assert line.startswith(f"{tmp_path}/suite.yaml: variants.dmt: recipe '{recipe}' is not there") and words in line


def test_an_unknown_suite_lists_those_there_are() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'table3'") as caught:
        load_suite("tabel3")
    assert len(str(caught.value).splitlines()) == 1


def test_a_suite_is_found_as_a_recipe_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=rf"^suite '{tmp_path}': is a folder; give a file in it$"):
        load_suite(str(tmp_path))
    write_suite(tmp_path).rename("mine")
    assert load_suite("mine").path == Path("mine")


# Shipped suites


@pytest.mark.parametrize("name", SUITES.names())
def test_a_shipped_suite_resolves_and_says_what_it_shows(name: str) -> None:
    plan, runs = shipped(name)
    assert plan.file.suite.name == name
    assert findings(plan, runs) == []
    assert plan.file.path.read_text().startswith("# ")


@pytest.mark.parametrize(
    ("name", "numbers"),
    [
        ("table1_vit_tiny", {"dmt": 75.0, "tinymim_mae": 74.6, "moco_v3": 73.3, "deit": 72.2, "mae": 71.6}),
        (
            "table1_vit_small",
            {"dmt": 82.2, "tinymim_mae": 81.7, "dino": 81.5, "moco_v3": 81.4, "mae": 80.6, "deit": 79.9},
        ),
        ("table1_vit_base", {"dmt": 83.7, "moco_v3": 83.2, "ibot": 83.2, "mae": 82.8}),
        ("table3", {"tinymim": 39.2, "m_tinymim": 34.5, "mse": 41.7, "dmt": 42.0}),
        (
            "table4",
            {"tinymim_mae": 39.2, "tinymim_moco_v3": 40.3, "tinymim_ibot": 40.0, "mae_moco_v3": 40.8, "dmt": 42.0},
        ),
    ],
)
def test_a_table_has_the_papers_numbers(name: str, numbers: dict[str, float]) -> None:
    variants = load_suite(name).suite.variants
    assert {key: float(variants[key].paper or "nan") for key in numbers} == numbers


@pytest.mark.parametrize(
    ("name", "row", "warmup_epochs", "frozen_epochs"), [("base", "ibot", 50, 3), ("small", "dino", 30, 1)]
)
def test_ibots_and_dinos_early_phases_have_their_authors_epochs(
    name: str, row: str, warmup_epochs: int, frozen_epochs: int
) -> None:
    config = next(run.config for run in plan_of(f"table1_vit_{name}").variants({}) if run.owner == row)
    epochs, section = config.train.epochs, config.ibot
    assert epochs is not None
    assert epochs * section.teacher_temperature_warmup == pytest.approx(warmup_epochs, abs=0.01)
    assert epochs * section.freeze_last_layer == pytest.approx(frozen_epochs, abs=0.01)


@pytest.mark.parametrize("name", ["base", "small"])
def test_moco_v3_is_trained_as_long_as_its_authors_did_for_the_tables_number(name: str) -> None:
    config = next(run.config for run in plan_of(f"table1_vit_{name}").variants({}) if run.owner == "moco_v3")
    assert config.train.epochs == 300


def test_the_rows_of_table_3_differ_from_dmt_in_what_they_are_named_after() -> None:
    runs = {run.owner: run.config for run in plan_of("table3").variants({})}
    assert [runs[name].task for name in ("tinymim", "m_tinymim")] == ["tinymim", "tinymim"]
    assert [len(runs[name].teachers.used()) for name in ("tinymim", "m_tinymim", "dmt")] == [1, 3, 3]
    assert (runs["mse"].distill.divergence, runs["dmt"].distill.divergence) == ("mse", "kl")
    weights = {name: (runs[name].distill.tfd_weight, runs[name].distill.sfd_weight) for name in ("tfd", "sfd", "dmt")}
    assert weights == {"tfd": (1, 0), "sfd": (0, 1), "dmt": (1, 1)}


def test_a_suite_may_name_a_recipe_beside_it_or_a_shipped_one(tmp_path: Path) -> None:
    path = write_suite(tmp_path, variants={"a": {"recipe": "student.yaml"}, "b": {"recipe": "vit_tiny"}}, seeds=[0])
    recipes = [run.recipe for run in plan_of(path).variants({})]
    assert recipes == [str(tmp_path / "student.yaml"), "vit_tiny"]
    assert yaml.safe_load(Path(recipes[0]).read_text())["name"] == "student"
