"""A recipe and its overrides become one checked `RunConfig`; imports no torch and reads nothing but YAML.

Precedence, in one sentence: field default < recipe file < `key=value` on the command line.
"""

import copy
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from dmt_ds.config.family import members_by_name
from dmt_ds.config.findings import describe, fields_of, not_a_section
from dmt_ds.config.resume import as_trained
from dmt_ds.config.schema import RunConfig
from dmt_ds.config.section import OF_TRAINED
from dmt_ds.config.shipped import Shipped
from dmt_ds.config.yaml_text import parse_value, parse_yaml
from dmt_ds.errors import ConfigError
from dmt_ds.redact import holds_secret, masked
from dmt_ds.run_files import SETTINGS_FILE

RECIPES = Shipped("recipe", "Shipped recipes", [Path(__file__).parents[1] / "recipes"], ".yaml")
_label = RECIPES.label
COMMAND_LINE = "command line"
Tree = dict[str, Any]


class _Settings:
    """Nested values as they were given, and who gave each."""

    def __init__(self) -> None:
        self.values: Tree = {}
        self.origins: dict[tuple[str, ...], str] = {}
        self.findings: list[str] = []

    def put(self, values: Mapping[str, Any], origin: str, prefix: tuple[str, ...] = ()) -> None:
        """Lay `values` over what is there: mappings are merged, everything else replaces."""
        for path, value in _paths(_nest(prefix, values)):
            self.origins[path] = origin
            if value is not None and (problem := not_a_section(path, value)):
                self.findings.append(f"{origin}: {problem}")
        _merge(self.values, _nest(prefix, values))


def load_config(recipe: str | Path | None, overrides: Sequence[str] = ()) -> RunConfig:
    """The run that a recipe and its overrides describe.

    Args:
        recipe: name of a shipped recipe (`vit_tiny`), or a path; None takes the defaults.
        overrides: `key=value` with a dotted key and a YAML value, such as `augment.mean=[0.5, 0.5, 0.5]`.

    Raises:
        ConfigError: something is wrong; one line a finding, all findings at once.
    """
    return load_layers(recipe, [(COMMAND_LINE, overrides)])


def load_layers(recipe: str | Path | None, layers: Sequence[tuple[str, Sequence[str]]], new: bool = True) -> RunConfig:
    """Read a run from overrides of several origins, each of which wins over the ones before.

    Args:
        recipe: name of a shipped recipe, or a path; None takes the defaults.
        layers: who gives the overrides, as findings name it, and the overrides.
        new: whether it is to be trained; what was trained already may have settings that are refused today.

    Raises:
        ConfigError: something is wrong; one line a finding, all findings at once.
    """
    settings = _Settings()
    main_origin = COMMAND_LINE
    for main_origin, values in _recipe_chain(recipe) if recipe is not None else ():
        settings.put(values, main_origin)
    for origin, overrides in layers:
        _put_overrides(settings, overrides, origin)
    return _checked(settings, main_origin, [origin for origin, _ in layers], new)


def task_of_recipe(recipe: str | Path) -> object:
    """What a recipe, or the ones that it builds on, says as its `task`; None where none does; nothing is checked."""
    return next((values["task"] for _, values in reversed(_recipe_chain(recipe)) if "task" in values), None)


def config_from_yaml(text: str, origin: str = "config.yaml") -> RunConfig:
    """The run that `to_yaml` wrote; equal to the one that was written."""
    settings = _Settings()
    settings.put(as_trained(_mapping(parse_yaml(text, origin), origin)), origin)
    return _checked(settings, origin, new=False)


def to_yaml(config: RunConfig) -> str:
    """The whole run as YAML, every setting written out."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=120)


def flatten(config: RunConfig) -> dict[str, object]:
    """Dotted key -> plain value (number, text, list, None), in the schema's order."""
    return flatten_tree(config.model_dump(mode="json"))


def flatten_tree(tree: Mapping[str, Any]) -> dict[str, object]:
    """Dotted key -> value of nested mappings; an empty mapping has no keys. Flat ones stay as they are."""
    flat: dict[str, object] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat.update({f"{key}.{inner}": item for inner, item in flatten_tree(value).items()})
        else:
            flat[key] = value
    return flat


def find_recipe(recipe: str | Path) -> Path:
    """File of a recipe: a bare name is a shipped one, else a file here; anything with a slash or an ending is a path.

    Raises:
        ConfigError: there is no such file; the shipped recipes are listed, or it is told what is there.
    """
    return RECIPES.find(recipe, _of_folder)


def _of_folder(folder: Path) -> str:
    own = folder / SETTINGS_FILE
    return f"a run's recipe is {own}" if own.is_file() else "give a YAML file in it"


def _recipe_chain(recipe: str | Path) -> list[tuple[str, Tree]]:
    """A recipe and the ones that its `base` names, the most basic first: (label, values)."""
    chain: list[tuple[str, Tree]] = []
    seen: list[Path] = []
    path: Path | None = find_recipe(recipe)
    while path is not None:
        if path.resolve() in seen:
            names = " -> ".join(_label(step) for step in [*seen, path])
            raise ConfigError(f"{_label(seen[0])}: base: the recipes go in a circle: {names}; take one base out")
        seen.append(path.resolve())
        values = _read_recipe(path)
        base = values.pop("base", None)
        chain.insert(0, (_label(path), values))
        path = _find_base(base, path)
    return chain


def _find_base(base: object, child: Path) -> Path | None:
    """File of `base`: a shipped recipe's name, or a path beside the recipe that says it."""
    if base is None:
        return None
    if not isinstance(base, str):
        raise ConfigError(f"{_label(child)}: base={base}: must be the name or the path of one recipe")
    beside = next((path for path in (child.parent / base, child.parent / f"{base}.yaml") if path.is_file()), None)
    try:
        return beside or find_recipe(base)
    except ConfigError as error:
        raise ConfigError(f"{_label(child)}: base: {error}") from None


def _read_recipe(path: Path) -> Tree:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{_label(path)}: can't be read: {error}") from None
    return copy.deepcopy(_parsed_recipe(text, _label(path)))


@lru_cache(maxsize=128)
def _parsed_recipe(text: str, label: str) -> Tree:
    """Kept, as the many runs of a suite share few recipes; by text, as a file may change."""
    return _mapping(parse_yaml(text, label), label)


def _mapping(values: object, origin: str) -> Tree:
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"{origin}: must be a mapping of keys such as 'train:', not {type(values).__name__}")
    return values


def _put_overrides(settings: _Settings, overrides: Sequence[str], origin: str) -> None:
    given: dict[str, str] = {}
    for override in overrides:
        key, equals, text = override.partition("=")
        key = key.strip()
        if not equals or not all(key.split(".")):
            settings.findings.append(f"{origin}: {override}: must be key=value, such as optim.base_lr=1e-3")
            continue
        if key in given:
            settings.findings.append(f"{origin}: {key} is given twice: {given[key]} and {text}; keep one")
            continue
        given[key] = text
        try:
            value = parse_value(text, f"{origin}: {override}")
        except ConfigError as error:
            settings.findings.append(str(error))
            continue
        *parents, last = key.split(".")
        settings.put({last: value}, origin, tuple(parents))


def _checked(settings: _Settings, main_origin: str, layers: Sequence[str] = (), new: bool = True) -> RunConfig:
    findings = settings.findings
    try:
        config = RunConfig.model_validate(settings.values, context=None if new else OF_TRAINED)
    except ValidationError as error:
        findings = list(dict.fromkeys(findings + describe(error, settings.origins, main_origin)))
    else:
        findings = findings + _secrets_in(config, settings, main_origin) + _unused_path(config, settings, layers)
    if findings:
        raise ConfigError("\n".join(findings))
    return config.model_copy(update={"output_dir": _fill_output_dir(config, settings)})


def _unused_path(config: RunConfig, settings: _Settings, layers: Sequence[str]) -> list[str]:
    """Images that somebody names over a recipe are not passed over for digits that nobody named there or later."""
    data, (path, source) = config.data, (settings.origins.get(("data", key)) for key in ("path", "source"))
    if data.source != "digits" or not data.path or config.task == "detect" or path not in layers:
        return []
    if source in layers[layers.index(path) :]:
        return []
    return [f"{path}: data.path={data.path}: is not used by data.source=digits: add data.source=folder, or another"]


def _secrets_in(config: RunConfig, settings: _Settings, main_origin: str) -> list[str]:
    """Settings go into the run's folder, its checkpoints and its record: none may hold a password."""
    flat = flatten(config)
    if not holds_secret("\n".join(f"{key}={value}" for key, value in flat.items())):  # one look in place of hundreds
        return []
    own_words = _words_of_settings(flat)
    return [
        f"{settings.origins.get(tuple(key.split('.')), main_origin)}: {masked(f'{key}={value}')}: holds a password, a "
        "token or the value of a secret variable, which the run's record would keep; leave it to the environment "
        "(MLFLOW_TRACKING_URI, MLFLOW_TRACKING_USERNAME, MLFLOW_TRACKING_PASSWORD, HF_TOKEN)"
        for key, value in flat.items()
        if holds_secret(str(value), key, own_words)
    ]


def _words_of_settings(keys: Iterable[str]) -> set[str]:
    """Words of the settings' keys and defaults; somebody's weak password may be one too."""
    defaults = (f"{key}={value}" for key, value in flatten(RunConfig.model_construct()).items())
    return {word for text in (*keys, *defaults) for word in re.findall("[a-z]+", text)}


def _fill_output_dir(config: RunConfig, settings: _Settings) -> str:
    filled = config.output_dir.replace("{name}", config.name).replace("{seed}", str(config.seed))
    if left := re.search(r"\{.*?\}", filled):
        where = f"{settings.origins.get(('output_dir',), COMMAND_LINE)}: output_dir={config.output_dir}"
        raise ConfigError(f"{where}: {left[0]} is not known; use {{name}} and {{seed}}")
    return filled


def _nest(prefix: tuple[str, ...], values: Mapping[str, Any]) -> Mapping[str, Any]:
    for name in reversed(prefix):
        values = {name: values}
    return values


def _merge(target: Tree, values: Mapping[str, Any], path: tuple[str, ...] = ()) -> None:
    for key, value in values.items():
        here = (*path, key)
        if isinstance(value, Mapping):
            if not isinstance(target.get(key), dict):
                target[key] = {}
            _merge(target[key], value, here)
        elif not fields_of(here):  # `optim:` with nothing under it changes nothing
            target[key] = _listed_members(value) if here == ("family",) else value


def _listed_members(value: Any) -> Any:
    """A family's list of names as members whose settings can follow; what is wrong with it the schema will say."""
    try:
        return members_by_name(value)
    except ValueError:
        return value


def _paths(values: Mapping[str, Any], prefix: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """All paths, of mappings too, each with its value."""
    for key, value in values.items():
        path = (*prefix, str(key))
        yield path, value
        if isinstance(value, Mapping):
            yield from _paths(value, path)
