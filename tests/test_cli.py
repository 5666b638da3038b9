"""The command line: what it says, what it returns, and how little it needs."""

import errno
import json
import logging
import shlex
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result
from packaging.version import Version

from dmt_ds.cli import main
from dmt_ds.config.load import config_from_yaml, load_config
from dmt_ds.errors import DataError, DmtError, PeerFailedError, StorageError
from tests import processes


def call(*arguments: str, **environment: str) -> Result:
    return CliRunner().invoke(main, list(arguments), env=environment)


def commands(group: click.Command, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    for name, command in getattr(group, "commands", {}).items():
        yield (*path, name), command
        yield from commands(command, (*path, name))


ALL = dict(commands(main))
LEAVES = {path: command for path, command in ALL.items() if not isinstance(command, click.Group)}


@pytest.fixture(autouse=True)
def own_log_level() -> Iterator[None]:
    yield
    logging.getLogger("dmt_ds").setLevel(logging.NOTSET)


# Help


@pytest.mark.parametrize("path", ALL, ids=" ".join)
def test_every_command_explains_itself(path: tuple[str, ...]) -> None:
    result = call(*path, "--help")
    assert result.exit_code == 0
    assert "Usage: " in result.output


@pytest.mark.parametrize("path", LEAVES, ids=" ".join)
def test_every_command_shows_examples_that_it_understands(path: tuple[str, ...]) -> None:
    lines = [line for line in (LEAVES[path].epilog or "").splitlines() if "dmt" in line]
    assert lines
    for line in lines:
        words = shlex.split(line.split(" > ")[0])
        start = words.index("dmt-ds") if "dmt-ds" in words else words.index("dmt_ds")
        assert tuple(words[start + 1 : start + 1 + len(path)]) == path
        LEAVES[path].make_context(path[-1], words[start + 1 + len(path) :])


@pytest.mark.parametrize("path", ALL, ids=" ".join)
def test_every_option_says_what_it_is(path: tuple[str, ...]) -> None:
    options = [option for option in ALL[path].params if isinstance(option, click.Option) and not option.hidden]
    assert [option.name for option in options if not option.help] == []


def test_help_keeps_its_examples_line_by_line() -> None:
    text = CliRunner().invoke(main, ["--help"]).output
    assert "\\b" not in text
    assert any(line.strip().startswith("dmt-ds quickstart") for line in text.splitlines())


def test_help_needs_no_library_but_click() -> None:
    code = (
        "import sys; sys.argv = ['dmt-ds', '--help']\nfrom dmt_ds.cli import main\n"
        "heavy = {'torch', 'pydantic', 'yaml', 'numpy', 'mlflow'}\n"
        "try: main()\nexcept SystemExit: print(sorted(heavy & set(sys.modules)))"
    )
    assert processes.run(["-c", code]).stdout.splitlines()[-1] == "[]"


def test_the_module_is_the_same_command() -> None:
    assert processes.run(["-m", "dmt_ds", "--version"]).stdout.startswith("dmt-ds, version ")


# What goes wrong


def test_an_error_of_the_user_is_one_line_a_finding_and_exit_code_two() -> None:
    done = processes.run(["-m", "dmt_ds", "config", "-c", "vit_tiny", "epochs=3", "seed=x"], check=False)
    assert done.returncode == 2
    assert done.stdout == ""
    assert sorted(done.stderr.splitlines()) == [
        "dmt-ds: error: command line: epochs: unknown key. Did you mean 'train.epochs'?",
        "dmt-ds: error: command line: seed=x: not a whole number",
    ]


@pytest.mark.parametrize("command", ["knn", "evaluate", "finetune", "segment", "config", "doctor"])
def test_an_encoder_that_is_not_there_is_called_one_and_the_kinds_there_are_named(command: str) -> None:
    result = call(command, "-e", "nothere")
    assert result.exit_code == 2
    assert result.stderr == (
        "dmt-ds: error: encoder nothere: no such file; name a run's folder, a weights file, timm:TAG or hf:ID "
        "(`dmt-ds teachers list`)\n"
    )


def test_a_tag_that_is_near_none_points_to_the_list() -> None:
    result = call("detect", "-e", "timm:nope_model")
    assert result.exit_code == 2
    assert result.stderr.endswith("has no such weights; `dmt-ds teachers list` shows some that there are\n")


TIMM_ASKS_FIRST = pytest.mark.skipif(
    Version(version("timm")) < Version("1.0.31"), reason="timm before 1.0.31 fetches a LeViT before it looks at it"
)


@pytest.mark.parametrize(
    "arch", ["resnet50", pytest.param("levit_128", marks=TIMM_ASKS_FIRST), "vit_medium_patch16_gap_240"]
)
def test_what_is_no_vit_is_called_that_and_is_not_asked_of_a_network(arch: str) -> None:
    result = call("finetune", "-e", f"timm:{arch}")
    assert result.exit_code == 2
    assert result.stderr == (
        f"dmt-ds: error: encoder timm:{arch}: is not a ViT with a class token and a LayerNorm over all tokens; "
        "take another tag\n"
    )


def test_debug_shows_where_an_error_came_from() -> None:
    done = processes.run(["-m", "dmt_ds", "--debug", "config", "seed=x"], check=False)
    assert "Traceback" in done.stderr
    assert "ConfigError" in done.stderr


def test_a_rank_says_who_it_is_before_its_error() -> None:
    arguments = ["teachers", "inspect", "/nowhere/mae.pth"]
    assert call(*arguments, RANK="0").stderr.startswith("dmt-ds: error: /nowhere/mae.pth")
    assert call(*arguments, RANK="3").stderr.startswith("dmt-ds: error: rank 3: /nowhere/mae.pth")


def test_a_recipes_error_that_all_ranks_find_is_said_by_rank_0_alone() -> None:
    assert call("config", "seed=x", RANK="0").stderr.startswith("dmt-ds: error: command line: seed")
    result = call("config", "seed=x", RANK="3")
    assert (result.exit_code, result.stderr) == (2, "")


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (StorageError("x"), 75),
        (PeerFailedError("x"), 1),
        (DataError("x"), 2),
        (OSError(errno.ESTALE, "Stale file handle", "x"), 75),
        (OSError(errno.EACCES, "Permission denied", "x"), 2),
    ],
)
def test_the_exit_code_says_whether_another_try_is_worth_it(
    error: DmtError | OSError, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> None:
        raise error

    monkeypatch.setattr("dmt_ds.config.load.load_config", fails)
    assert call("config", "-c", "vit_tiny").exit_code == code


def test_a_bug_of_ours_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dmt_ds.config.load.load_config", lambda *_: 1 / 0)
    assert isinstance(call("config", "-c", "vit_tiny").exception, ZeroDivisionError)


def test_ctrl_c_gives_the_shells_exit_code(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("dmt_ds.config.load.load_config", interrupted)
    result = call("config", "-c", "vit_tiny")
    assert result.exit_code == 130
    assert result.stderr == "dmt-ds: stopped\n"


@pytest.mark.parametrize("arguments", [["pretrian"], ["config", "--ranks", "0"], ["knn"], ["pretrain", "--nonsense"]])
def test_a_command_line_that_makes_no_sense_is_exit_code_two(arguments: list[str]) -> None:
    result = call(*arguments)
    assert result.exit_code == 2
    assert "Error: " in result.stderr


# Logging


@pytest.mark.parametrize(
    ("environment", "level"),
    [
        ({}, logging.INFO),
        ({"RANK": "0"}, logging.INFO),
        ({"RANK": "1"}, logging.WARNING),
        ({"SLURM_PROCID": "2"}, logging.WARNING),
    ],
)
def test_only_the_first_rank_talks(environment: dict[str, str], level: int) -> None:
    call("config", "-c", "vit_tiny", **environment)
    assert logging.getLogger("dmt_ds").level == level


# config


def test_config_prints_a_recipe_that_loads_back() -> None:
    printed = call("config", "-c", "vit_small", "optim.base_lr=1e-3").output
    assert config_from_yaml(printed) == load_config("vit_small", ["optim.base_lr=1e-3"])


def test_config_prints_the_deepspeed_files_filled_in_for_so_many_ranks() -> None:
    printed = call("config", "-c", "vit_small", "--ds", "--ranks", "16").output
    student, teacher = (json.loads(part.split("\n", 1)[1]) for part in printed.split("---\n")[1:])
    assert student["gradient_accumulation_steps"] == 4096 // (128 * 16)
    assert teacher["zero_optimization"]["stage"] == 3


def test_config_prints_every_setting_with_its_meaning(tmp_path: Path) -> None:
    printed = call("config", "--defaults").output
    path = tmp_path / "mine.yaml"
    path.write_text(printed)
    assert load_config(path, ["task=mae"]) == load_config(None, ["task=mae"])
    lines = printed.splitlines()
    for number, line in enumerate(lines):
        if line.strip() and not line.lstrip().startswith("#"):
            assert lines[number - 1].lstrip().startswith("# ") and len(lines[number - 1].strip()) > 4, line


def test_config_prints_single_values_for_scripts() -> None:
    keys = ("--get", "output_dir", "--get", "train.stop_after_step", "--get", "optim.base_lr")
    printed = call("config", "-c", "vit_small", "output_dir=runs/x y", "optim.base_lr=1e-3", *keys).output
    assert printed.splitlines() == ["runs/x y", "null", "0.001"]
    wrong = call("config", "-c", "vit_small", "--get", "output_dri")
    assert wrong.exit_code == 2 and "output_dri: unknown key" in wrong.output


def test_config_imports_no_torch() -> None:
    code = (
        "import sys; sys.argv = ['dmt-ds', 'config', '-c', 'vit_tiny', '--ds']\nfrom dmt_ds.cli import main\n"
        "try: main()\nexcept SystemExit: print('torch' in sys.modules)"
    )
    assert processes.run(["-c", code]).stdout.splitlines()[-1] == "False"


def test_training_is_imported_without_what_only_some_runs_or_later_moments_need() -> None:
    late = ("torchvision", "timm", "torch._dynamo", "deepspeed", "mlflow", "matplotlib", "sklearn", "pycocotools")
    code = f"import sys, dmt_ds.commands.training.pretrain; print([name for name in {late} if name in sys.modules])"
    assert processes.run(["-c", code]).stdout.splitlines()[-1] == "[]"


# pretrain --dry-run


def test_a_dry_run_only_looks(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    result = call(
        "pretrain", "-c", "mae", f"output_dir={folder}", "data.source=digits", "tracking.enabled=false", "--dry-run"
    )
    assert result.exit_code == 0, result.output
    assert "✓ batch" in result.output
    assert not folder.exists()


def test_a_dry_run_of_what_can_not_run_is_exit_code_two(tmp_path: Path) -> None:
    overrides = [f"output_dir={tmp_path}", f"data.path={tmp_path}/nothing", "tracking.enabled=false"]
    result = call("pretrain", "-c", "mae", *overrides, "--dry-run")
    assert result.exit_code == 2
    assert "✗ data" in result.output


def test_on_several_ranks_only_the_first_one_examines() -> None:
    assert call("doctor", "-c", "mae", RANK="1").output == ""
