"""One run of a suite: its settings, and the arguments of the commands that make it; knows no other run."""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import yaml

from dmt_ds.config.load import load_layers
from dmt_ds.config.schema import RunConfig
from dmt_ds.config.suite import RunSpec, SuiteFile
from dmt_ds.config.yaml_text import parse_value
from dmt_ds.errors import ConfigError

Role = Literal["teacher", "tune", "variant"]
Layer = tuple[str, dict[str, Any]]
"""Who gives settings, as findings name it, and the settings by dotted key."""


@dataclass(frozen=True)
class SuiteRun:
    """One training run of a suite.

    Attributes:
        owner: the teacher or variant.
        label: what lines for people call it.
        place: where the suite's file speaks of it.
        layers: settings over the recipe, the later the stronger.
        value: of the tuned setting, in a run that tries one.
    """

    role: Role
    owner: str
    label: str
    folder: Path
    file: SuiteFile
    spec: RunSpec
    place: str
    layers: tuple[Layer, ...]
    value: float | None = None

    @cached_property
    def recipe(self) -> str:
        """Shipped recipe's name, or a file's absolute path.

        Raises:
            ConfigError: there is no such recipe; one line.
        """
        return self.file.recipe_of(self.spec, self.place)

    @cached_property
    def config(self) -> RunConfig:
        """What it resolves to.

        Raises:
            ConfigError: something is wrong; one line a finding.
        """
        layers = [(origin, as_overrides(values)) for origin, values in self.layers]
        return load_layers(self.recipe, layers, new=not is_done(self.folder))

    @property
    def overrides(self) -> list[str]:
        """The layers as one list of `key=value`."""
        merged: dict[str, Any] = {}
        for _, values in self.layers:
            for key, value in values.items():
                merged.pop(key, None)  # behind what an earlier layer gave, of its section too
                merged[key] = value
        return as_overrides(merged)


def is_done(folder: Path) -> bool:
    """Whether what a suite makes in a folder is made: a training leaves this file at its end."""
    return (folder / "DONE").exists()


def as_overrides(values: Mapping[str, Any]) -> list[str]:
    """`key=value` as the command line takes it."""
    return [f"{key}={_written(value)}" for key, value in values.items()]


def _written(value: Any) -> str:
    """As plain as the reader of overrides takes it back, on one line: an array's task gets its words line by line."""
    if isinstance(value, str) and value:
        with suppress(ConfigError):
            if parse_value(value, "suite") == value:
                return value
    text = yaml.safe_dump(value, default_flow_style=True, width=10**6).strip().removesuffix("\n...").strip()
    return text if "\n" not in text else yaml.safe_dump(value, default_style='"', width=10**6).strip()
