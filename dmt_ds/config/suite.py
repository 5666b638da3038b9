"""What a suite file may contain: named variants of a recipe, seeds, teachers, a grid to tune; resolves no run."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError, field_validator, model_validator

from dmt_ds.config.findings import describe
from dmt_ds.config.load import find_recipe
from dmt_ds.config.section import Section
from dmt_ds.config.shipped import Shipped
from dmt_ds.config.yaml_text import parse_yaml
from dmt_ds.errors import ConfigError

SUITES = Shipped("suite", "Shipped suites", [Path(__file__).parents[1] / "suites"], ".yaml")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
FOLDERS = ("teachers", "tune")
"""Names that no variant can have: they are folders of the suite's output."""


class RunSpec(Section):
    """One kind of run: a recipe and its overrides."""

    recipe: str | None = None
    """Shipped recipe, or a file (relative to the suite's file or to the working directory); null takes the suite's."""
    set: dict[str, Any] = Field(default={})
    """Overrides with dotted keys, on top of the suite's own."""


class FollowUpSpec(RunSpec):
    """Further training of the encoder of every variant's run, by a recipe of its own."""

    recipe: str
    """As for a run, but the suite's own recipe is not the default."""
    set: dict[str, Any] = Field(default={})
    """Overrides with dotted keys; the suite's own `set` does not apply here. On the command line
    `segment.set.KEY=VALUE` and the like override it."""


class VariantSpec(RunSpec):
    """One system of the comparison, trained with every seed."""

    title: str | None = None
    """Its name in tables; null takes the variant's name."""
    paper: str | None = None
    """The number that the paper reports, as printed; the suite's `paper` explains what it measures."""
    tune: bool = True
    """Whether it takes part in the suite's tuning."""
    finetune: bool = True
    """Whether its encoders are fine-tuned, if the suite does that."""
    segment: bool = True
    """Whether its encoders are trained for segmentation under UPerNet, if the suite does that."""
    detect: bool = True
    """Whether its encoders are trained for detection, if the suite does that."""


class TuneSpec(Section):
    """One setting, chosen for each variant before its seeds are trained, with a seed that they don't use."""

    key: str = "optim.base_lr"
    """Dotted key of the setting."""
    values: tuple[float, ...]
    """Values to try, one run each."""
    seed: int = 100
    """Seed of these runs; not one of the suite's `seeds`."""
    set: dict[str, Any] = Field(default={})
    """Overrides of these runs, on top of the variant's, such as a shorter training."""
    metric: str = "eval/select_knn_top1"
    """Metric that chooses the value: higher is better. It must not use validation images."""


class PaperSpec(Section):
    """What the variants' `paper` strings are."""

    metric: str
    """Data set, measure, student, table."""


class Suite(Section):
    """A whole suite file."""

    name: str = Field(pattern=rf"^{NAME.pattern}$")
    """Letters, digits, `.`, `_`, `-`: experiment and parent run in MLflow, and folder of the runs."""
    recipe: str | None = None
    """Recipe of every run that names no other."""
    seeds: tuple[int, ...] = Field(min_length=1)
    """Each variant is trained once with each of these seeds."""
    set: dict[str, Any] = Field(default={})
    """Overrides of all runs; a variant's own take precedence; `{teachers}` is the folder of the teachers' runs."""
    teachers: dict[str, RunSpec] = Field(default={})
    """Name -> run that trains a teacher of other runs; made first, once."""
    tune: TuneSpec | None = None
    """Null tunes nothing."""
    variants: dict[str, VariantSpec] = Field(min_length=1)
    """Name -> system to compare."""
    finetune: FollowUpSpec | None = None
    """Recipe of task `classify` with which the encoder of each variant's run is fine-tuned after its evaluation, on the
    run's images and with its seed; null fine-tunes nothing."""
    segment: FollowUpSpec | None = None
    """Recipe of task `segment` with which that encoder is then trained under UPerNet, with the run's seed, on images
    that this recipe and its `set` name, never the run's; null segments nothing."""
    detect: FollowUpSpec | None = None
    """Recipe of task `detect` with which that encoder is then trained under a detector, also on images of its own; null
    detects nothing."""
    paper: PaperSpec | None = None
    """Null if no variant has a number from the paper."""

    @field_validator("teachers", "variants", mode="before")
    @classmethod
    def _nothing_given_is_nothing_set(cls, specs: Any) -> Any:
        """`dmt:` alone is a variant that changes nothing."""
        if not isinstance(specs, Mapping):
            return specs
        return {name: {} if spec is None else spec for name, spec in specs.items()}

    @model_validator(mode="after")
    def _names_are_folders(self) -> "Suite":
        for name in [*self.teachers, *self.variants]:
            if not NAME.fullmatch(name):
                raise ValueError(f"'{name}' names a folder: use letters, digits, '.', '_', '-'")
        if taken := [name for name in self.variants if name in FOLDERS]:
            raise ValueError(f"variants.{taken[0]}: is the name of another folder of the suite; choose another")
        return self

    @model_validator(mode="after")
    def _seeds_are_apart(self) -> "Suite":
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds {list(self.seeds)}: one is given twice")
        if self.tune and self.tune.seed in self.seeds:
            raise ValueError(f"tune.seed={self.tune.seed}: is one of the seeds that are compared; choose another")
        if self.tune and len(self.tune.values) < 2:
            raise ValueError(f"tune.values {list(self.tune.values)}: give at least two, or leave tune out")
        if self.tune and len(set(self.tune.values)) < len(self.tune.values):
            raise ValueError(f"tune.values {list(self.tune.values)}: one is given twice")
        return self

    @model_validator(mode="after")
    def _paper_is_explained(self) -> "Suite":
        told = [name for name, variant in self.variants.items() if variant.paper is not None]
        if told and self.paper is None:
            raise ValueError(f"paper.metric: is missing; it says what variants.{told[0]}.paper measures")
        return self


class SuiteFile(Section):
    """A suite, and where it was read from."""

    suite: Suite
    path: Path
    label: str
    """How findings name the file."""
    given: dict[str, dict[str, Any]] = Field(default={})
    """What the command line says of `finetune` and so on: overrides with dotted keys, over the file's own `set`."""

    def recipe_of(self, spec: RunSpec, where: str) -> str:
        """Shipped recipe's name, or a file's absolute path.

        Raises:
            ConfigError: there is no recipe; one line.
        """
        recipe = spec.recipe or self.suite.recipe
        if recipe is None:
            raise ConfigError(
                f"{self.label}: {where}.recipe: is missing, and the suite has none for all runs: give recipe=..."
            )
        beside = self.path.parent / recipe
        if "/" in recipe or recipe.endswith(".yaml"):
            return str((beside if beside.is_file() else self._found(recipe, where)).resolve())
        self._found(recipe, where)
        return recipe

    def _found(self, recipe: str, where: str) -> Path:
        try:
            return find_recipe(recipe)
        except ConfigError as error:
            raise ConfigError(f"{self.label}: {where}: {error}") from None


def load_suite(suite: str) -> SuiteFile:
    """Read a suite file.

    Args:
        suite: name of a shipped suite, or a path.

    Raises:
        ConfigError: something is wrong; one line a finding, all findings at once.
    """
    path = SUITES.find(suite)
    label = SUITES.label(path)
    try:
        values = parse_yaml(path.read_text(encoding="utf-8"), label)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{label}: can't be read: {error}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{label}: must be a mapping with 'name:', 'recipe:', 'seeds:' and 'variants:'")
    try:
        return SuiteFile(suite=Suite.model_validate(values), path=path, label=label)
    except ValidationError as error:
        raise ConfigError("\n".join(describe(error, {}, label, Suite))) from None
