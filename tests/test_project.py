"""The house keeps its rules: floors, doors, sizes, and project files that agree with each other."""

import ast
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "dmt_ds"

FLOORS = [
    {"errors", "storage", "redact", "run_files", "sample_rng", "triton_support", "distill", "__init__"},
    {"config", "tracking"},
    {"data", "models", "planning"},
    {"engine", "methods", "downstream"},
    {"commands"},
    {"cli"},
    {"__main__"},
]
STRANGERS = list(combinations(("data", "models", "planning", "tracking"), 2))
DOORS = {
    "deepspeed": {"engine/ds_engine.py"},
    "mlflow": {"tracking/mlflow_*.py"},
    "timm": {"models/vit.py"},
    "transformers": {"models/hf_vit.py", "models/uper_heads.py"},
    "onnxruntime": {"models/graph_files.py"},
    "datasets": {"data/sources.py"},
    "pycocotools": {"data/coco_library.py"},
}

FILES = sorted(PACKAGE.rglob("*.py"))


@cache
def text_of(path: Path) -> str:
    return path.read_text(encoding="utf-8")


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(text_of(path))


def in_package(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


def area_of(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def floor_of(area: str) -> int:
    return next(number for number, areas in enumerate(FLOORS) if area in areas)


def imported_modules(tree: ast.AST) -> Iterator[tuple[str, ast.stmt]]:
    """Dotted names of everything that is imported, also within functions."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            yield node.module or "", node
            yield from ((f"{node.module}.{alias.name}", node) for alias in node.names)


@cache
def own_imports(path: Path) -> set[Path]:
    """Files of the package that a file imports."""
    found = set()
    for name, _ in imported_modules(tree_of(path)):
        parts = name.split(".")
        if parts[0] == "dmt_ds":
            module = PACKAGE.joinpath(*parts[1:])
            candidates = (
                [module.with_suffix(".py"), module / "__init__.py"] if len(parts) > 1 else [PACKAGE / "__init__.py"]
            )
            found |= {candidate for candidate in candidates if candidate.is_file()}
    return found - {path}


@pytest.mark.parametrize("path", FILES, ids=in_package)
def test_a_file_imports_only_from_its_own_floor_or_below(path: Path) -> None:
    area = area_of(path)
    above = [in_package(target) for target in own_imports(path) if floor_of(area_of(target)) > floor_of(area)]
    assert not above, f"{in_package(path)} imports from above: {above}"


@pytest.mark.parametrize("path", FILES, ids=in_package)
def test_data_models_and_planning_know_neither_each_other_nor_tracking(path: Path) -> None:
    for one, other in STRANGERS:
        for here, there in ((one, other), (other, one)):
            if area_of(path) == here:
                assert there not in {area_of(target) for target in own_imports(path)}


def test_there_is_no_import_circle() -> None:
    graph = {path: own_imports(path) for path in FILES}
    done: set[Path] = set()

    def visit(path: Path, trail: tuple[Path, ...]) -> None:
        assert path not in trail, " -> ".join(in_package(step) for step in [*trail[trail.index(path) :], path])
        if path not in done:
            for target in graph[path]:
                visit(target, (*trail, path))
            done.add(path)

    for path in FILES:
        visit(path, ())


@pytest.mark.parametrize("path", FILES, ids=in_package)
def test_a_heavy_library_is_imported_through_its_door_only_and_lazily(path: Path) -> None:
    tree = tree_of(path)
    for name, node in imported_modules(tree):
        library = name.split(".")[0]
        if library in DOORS:
            assert any(Path(in_package(path)).match(door) for door in DOORS[library]), (
                f"{library} in {in_package(path)}"
            )
            assert node not in tree.body, f"{in_package(path)}:{node.lineno}: import {library} inside a function"


@pytest.mark.parametrize("path", sorted((PACKAGE / "distill").rglob("*.py")), ids=in_package)
def test_the_paper_needs_only_torch(path: Path) -> None:
    roots = {name.split(".")[0] for name, _ in imported_modules(tree_of(path))}
    own = {name for name, _ in imported_modules(tree_of(path)) if name.startswith("dmt_ds")}
    assert roots <= {"torch", "triton", "dmt_ds", *sys.stdlib_module_names}
    assert all(name.startswith("dmt_ds.distill") for name in own), own


WITHOUT_TORCH = [*(PACKAGE / "config").rglob("*.py"), *(PACKAGE / "planning").rglob("*.py")]


@pytest.mark.parametrize("path", sorted(WITHOUT_TORCH), ids=in_package)
def test_a_recipe_is_checked_and_planned_without_torch(path: Path) -> None:
    roots = {name.split(".")[0] for name, _ in imported_modules(tree_of(path))}
    assert "torch" not in roots


@pytest.mark.parametrize("path", FILES, ids=in_package)
def test_files_and_functions_stay_short(path: Path) -> None:
    assert len(text_of(path).splitlines()) <= 300
    for node in ast.walk(tree_of(path)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            assert length <= 60, f"{in_package(path)}:{node.lineno}: {node.name} has {length} lines"


@pytest.mark.parametrize("path", FILES, ids=in_package)
def test_only_commands_see_the_whole_run(path: Path) -> None:
    if area_of(path) not in ("config", "commands", "cli"):
        assert "dmt_ds.config.schema.RunConfig" not in {name for name, _ in imported_modules(tree_of(path))}


def test_no_file_is_a_drawer_for_odds_and_ends() -> None:
    assert not [in_package(path) for path in FILES if path.stem in {"utils", "helpers", "common", "misc"}]


def project() -> dict[str, Any]:
    """`[project]` of pyproject.toml, by a reader for the few forms that stand there (tomllib is 3.11's)."""
    text = text_of(ROOT / "pyproject.toml")
    table = re.search(r"^\[project\]\n(.*?)^\[", text, re.M | re.S)
    extras = re.search(r"^\[project\.optional-dependencies\]\n(.*?)^\[", text, re.M | re.S)
    assert table
    assert extras
    lists = {
        match[1]: re.findall(r'"([^"]+)"', re.sub(r"#.*", "", match[2]))
        for match in re.finditer(r"^([\w-]+) = \[(.*?)\]$", table[1] + extras[1], re.M | re.S)
    }
    python = re.search(r'^requires-python = "(.*)"$', table[1], re.M)
    assert python
    return {**lists, "requires-python": python[1], "extras": re.findall(r"^([\w-]+) = \[", extras[1], re.M)}


def required() -> list[Requirement]:
    settings = project()
    names = ["dependencies", *settings["extras"]]
    return [Requirement(line) for name in names for line in settings[name]]


def locked() -> list[Requirement]:
    lines = text_of(ROOT / "requirements.lock").splitlines()
    return [Requirement(line) for line in lines if line and not line.startswith("#")]


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_every_package_that_is_imported_is_asked_for() -> None:
    other_names = {"PIL": "pillow", "pydantic_core": "pydantic", "sklearn": "scikit-learn", "yaml": "pyyaml"}
    roots = {name.split(".")[0] for path in FILES for name, _ in imported_modules(tree_of(path))}
    with_torch = {"triton"}  # torch brings it where there is CUDA; nothing else needs it
    imported = {other_names.get(root, root) for root in roots - {"dmt_ds", *with_torch, *sys.stdlib_module_names}}
    always = {Requirement(line).name for line in project()["dependencies"]}
    optional = {Requirement(line).name for extra in ("export", "detection") for line in project()[extra]}
    assert always <= imported <= always | optional


@pytest.mark.parametrize("wanted", required(), ids=str)
@pytest.mark.parametrize("python", ["3.10", "3.11", "3.12", "3.13"])
def test_the_lock_has_every_requirement_in_an_allowed_version(wanted: Requirement, python: str) -> None:
    environment = {"python_version": python, "python_full_version": f"{python}.1", "sys_platform": "linux"}
    pins = [
        pin
        for pin in locked()
        if canonical(pin.name) == canonical(wanted.name) and (pin.marker is None or pin.marker.evaluate(environment))
    ]
    assert len(pins) == 1, f"make lock: {wanted} is pinned {len(pins)} times on Python {python}"
    (specifier,) = pins[0].specifier
    assert specifier.operator == "=="
    assert wanted.specifier.contains(Version(specifier.version))


def test_the_lock_names_no_index() -> None:
    assert "://" not in text_of(ROOT / "requirements.lock")


def test_the_conda_environment_installs_this_project_in_locked_versions() -> None:
    environment = yaml.safe_load(text_of(ROOT / "environment.yml"))
    plain = {line for line in environment["dependencies"] if isinstance(line, str)}
    (pip,) = (line["pip"] for line in environment["dependencies"] if isinstance(line, dict))
    python = next(line.removeprefix("python=") for line in plain if line.startswith("python="))
    assert SpecifierSet(project()["requires-python"]).contains(Version(python))
    assert pip[0] == "-c requirements.lock"
    extras = re.fullmatch(r"-e \.\[(.*)\]", pip[1])
    assert extras
    assert set(extras[1].split(",")) <= set(project()["extras"])
    assert not {line.split("=")[0].split(">")[0] for line in plain} & {canonical(need.name) for need in required()}


def test_python_versions_agree_between_files() -> None:
    text = text_of(ROOT / "pyproject.toml")
    lowest = project()["requires-python"].removeprefix(">=")
    assert f'target-version = "py{lowest.replace(".", "")}"' in text
    assert f'python_version = "{lowest}"' in text
    assert f"--python-version {lowest} " in text_of(ROOT / "Makefile")


def test_every_shipped_yaml_and_json_is_in_the_wheel_settings() -> None:
    text = text_of(ROOT / "pyproject.toml")
    assert 'packages = ["dmt_ds"]' in text  # takes dmt_ds/recipes along
    assert 'ds_configs = "dmt_ds/ds_configs"' in text


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_make_alone_lists_its_targets() -> None:
    listed = subprocess.run(["make"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for target in ("quickstart", "test", "bench", "lint", "lock"):
        assert f"make {target} " in listed


def readme_commands() -> list[list[str]]:
    """Each `dmt-ds SUBCOMMAND ...` that the README shows."""
    readme = ROOT / "README.md"
    text = text_of(readme) if readme.is_file() else ""
    blocks = re.findall(r"^```(?:sh|bash|console)?\n(.*?)^```", text, re.M | re.S)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [match[1].split() for line in lines if (match := re.search(r"(?:dmt-ds|-m dmt_ds) ([a-z].*)", line))]


def test_the_readme_shows_only_commands_and_options_that_exist() -> None:
    from dmt_ds.cli import main

    for words in readme_commands():
        command: Any = main
        while words and hasattr(command, "commands"):
            name = words.pop(0)
            assert name in command.commands, f"README: no command {name}"
            command = command.commands[name]
        known = {option for parameter in command.params for option in parameter.opts} | {"--help"}
        used = {word.split("=")[0] for word in words if word.startswith("-")}
        assert used <= known, f"README: {command.name} has no {used - known}"
