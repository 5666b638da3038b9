"""The house keeps its rules: floors, doors, sizes, and project files that agree with each other."""

import ast
import re
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "dmt_ds"

FLOORS = [
    {"errors", "storage", "redact", "run_files", "sample_rng", "triton_support", "wording", "distill", "__init__"},
    {"config", "tracking"},
    {"data", "models", "planning"},
    {"engine", "methods", "downstream"},
    {"commands"},
    {"cli"},
    {"__main__"},
]
STRANGERS = {"data", "models", "planning", "tracking"}
DOORS = {
    "deepspeed": {"engine/deepspeed/ds_engine.py"},
    "mlflow": {"tracking/mlflow_*.py"},
    "timm": {"models/vit.py", "models/plain_vit.py"},
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


@cache
def imported_modules(path: Path) -> list[tuple[str, ast.stmt]]:
    """Dotted names of everything that is imported, also within functions."""
    found: list[tuple[str, ast.stmt]] = []
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            found += ((alias.name, node) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{in_package(path)}:{node.lineno}: relative import"
            found.append((node.module or "", node))
            found += ((f"{node.module}.{alias.name}", node) for alias in node.names)
    return found


@cache
def own_imports(path: Path) -> set[Path]:
    """Files of the package that a file imports."""
    found = set()
    for name, _ in imported_modules(path):
        parts = name.split(".")
        if parts[0] == "dmt_ds":
            module = PACKAGE.joinpath(*parts[1:])
            candidates = (
                [module.with_suffix(".py"), module / "__init__.py"] if len(parts) > 1 else [PACKAGE / "__init__.py"]
            )
            found |= {candidate for candidate in candidates if candidate.is_file()}
    return found - {path}


def test_a_file_imports_only_from_its_own_floor_or_below() -> None:
    above = [
        f"{in_package(path)} imports {in_package(target)}"
        for path in FILES
        for target in own_imports(path)
        if floor_of(area_of(target)) > floor_of(area_of(path))
    ]
    assert above == []


def test_data_models_and_planning_know_neither_each_other_nor_tracking() -> None:
    known = [
        f"{in_package(path)} imports {in_package(target)}"
        for path in FILES
        for target in own_imports(path)
        if area_of(path) != area_of(target) and {area_of(path), area_of(target)} <= STRANGERS
    ]
    assert known == []


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


def test_a_heavy_library_is_imported_through_its_door_only_and_lazily() -> None:
    imports = [
        (path, node, name.split(".")[0])
        for path in FILES
        for name, node in imported_modules(path)
        if name.split(".")[0] in DOORS
    ]
    elsewhere = [
        f"{in_package(path)}:{node.lineno}: {library}"
        for path, node, library in imports
        if not any(Path(in_package(path)).match(door) for door in DOORS[library])
    ]
    assert elsewhere == []
    at_once = [f"{in_package(path)}:{node.lineno}" for path, node, _ in imports if node in tree_of(path).body]
    assert at_once == [], "import it inside a function"


def files_of(*areas: str) -> list[Path]:
    found = [path for path in FILES if area_of(path) in areas]
    assert {area_of(path) for path in found} == set(areas)
    return found


def test_the_paper_needs_only_torch() -> None:
    allowed = {"torch", "triton", *sys.stdlib_module_names}
    others = [
        f"{in_package(path)} imports {name}"
        for path in files_of("distill")
        for name, _ in imported_modules(path)
        if name.split(".")[0] not in allowed and not name.startswith("dmt_ds.distill")
    ]
    assert others == []


def test_a_recipe_is_checked_and_planned_without_torch() -> None:
    with_torch = [
        f"{in_package(path)}:{node.lineno}"
        for path in (*files_of("config", "planning"), PACKAGE / "distill" / "choices.py")
        for name, node in imported_modules(path)
        if name.split(".")[0] == "torch"
    ]
    assert with_torch == []


def test_files_and_functions_stay_short() -> None:
    lines = {in_package(path): len(text_of(path).splitlines()) for path in FILES}
    for path in FILES:
        for node in ast.walk(tree_of(path)):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                length = (node.end_lineno or node.lineno) - node.lineno + 1
                lines[f"{in_package(path)}:{node.lineno}: {node.name}"] = length
    assert {place: length for place, length in lines.items() if length > (60 if ":" in place else 300)} == {}


def test_only_commands_see_the_whole_run() -> None:
    others = [
        in_package(path)
        for path in FILES
        if area_of(path) not in ("config", "commands", "cli")
        and "dmt_ds.config.schema.RunConfig" in {name for name, _ in imported_modules(path)}
    ]
    assert others == []


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


@cache
def locked() -> list[Requirement]:
    lines = text_of(ROOT / "requirements.lock").splitlines()
    return [Requirement(line) for line in lines if line and not line.startswith("#")]


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_every_package_that_is_imported_is_asked_for() -> None:
    other_names = {"PIL": "pillow", "pydantic_core": "pydantic", "sklearn": "scikit-learn", "yaml": "pyyaml"}
    roots = {name.split(".")[0] for path in FILES for name, _ in imported_modules(path)}
    with_torch = {"triton"}  # torch brings it where there is CUDA; nothing else needs it
    imported = {other_names.get(root, root) for root in roots - {"dmt_ds", *with_torch, *sys.stdlib_module_names}}
    always = {Requirement(line).name for line in project()["dependencies"]}
    optional = {Requirement(line).name for extra in ("export", "detection") for line in project()[extra]}
    assert always <= imported <= always | optional


def pins_on(python: str) -> dict[str, list[str]]:
    """Package -> the versions that the lock has for a release of Python: one each."""
    environment = {"python_version": python, "python_full_version": f"{python}.1", "sys_platform": "linux"}
    pins: dict[str, list[str]] = {}
    for pin in locked():
        if pin.marker is None or pin.marker.evaluate(environment):
            (specifier,) = pin.specifier
            assert specifier.operator == "==", pin
            pins.setdefault(canonical(pin.name), []).append(specifier.version)
    return pins


@pytest.mark.parametrize("python", ["3.10", "3.11", "3.12", "3.13"])
def test_the_lock_has_every_requirement_in_an_allowed_version(python: str) -> None:
    pins = pins_on(python)
    found = {str(wanted): pins.get(canonical(wanted.name), []) for wanted in required()}
    assert {wanted: versions for wanted, versions in found.items() if len(versions) != 1} == {}, "make lock"
    refused = {str(wanted) for wanted in required() if not wanted.specifier.contains(*found[str(wanted)])}
    assert refused == set(), "make lock"


def test_the_lock_names_no_index() -> None:
    assert "://" not in text_of(ROOT / "requirements.lock")


def test_the_conda_environment_installs_this_project_in_locked_versions() -> None:
    environment = yaml.safe_load(text_of(ROOT / "environment.yml"))
    plain = {line for line in environment["dependencies"] if isinstance(line, str)}
    (pip,) = (line["pip"] for line in environment["dependencies"] if isinstance(line, dict))
    python = next(line.removeprefix("python=") for line in plain if line.startswith("python="))
    assert SpecifierSet(project()["requires-python"]).contains(python)
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
