"""What a suite does with the encoder of a judged run: what there is, where it goes, by which command; starts none."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from dmt_ds.config.images import LEARN_IMAGES_OF_ORIGIN, RESIZE_POSITIONS, WHERE_IMAGES_ARE
from dmt_ds.config.load import COMMAND_LINE, load_layers, task_of_recipe
from dmt_ds.config.schema import RunConfig
from dmt_ds.config.suite import FollowUpSpec, Suite
from dmt_ds.config.suite_run import SuiteRun, as_overrides, is_done
from dmt_ds.errors import ConfigError

FOLLOW_UP_KEYS = ("task", "seed", "output_dir", "name")
"""Settings that the suite gives each of them."""
_IMAGES = (*WHERE_IMAGES_ARE, "num_workers", "bad_images")
"""Settings of the section `data` that are handed on with the images."""
_SHAPE = ("arch", "patch_size", "embed_dim", "depth", "num_heads")
"""Settings of the section `student` that are the encoder's."""
_COLOURS = ("augment.mean", "augment.std")
"""Settings that an encoder brings with its weights."""


@dataclass(frozen=True)
class FollowUpKind:
    """One thing to do with an encoder.

    Attributes:
        name: its command, its key in a suite's file and in a variant, its SLURM stage, and its folder in a run.
        task: what its recipe must be of.
        doing: what lines for people call the work.
        done: what they call an encoder with which it was done.
    """

    name: Literal["finetune", "segment", "detect"]
    task: Literal["classify", "segment", "detect"]
    doing: str
    done: str


KINDS = (
    FollowUpKind("finetune", "classify", "fine-tuning", "fine-tuned"),
    FollowUpKind("segment", "segment", "segmentation", "segmented"),
    FollowUpKind("detect", "detect", "detection", "put under a detector"),
)
"""In the order in which they are done."""


@dataclass(frozen=True)
class FollowUp:
    """One thing to do with the encoder of one run."""

    kind: FollowUpKind
    spec: FollowUpSpec
    run: SuiteRun

    @property
    def folder(self) -> Path:
        """The `output_dir` of its command."""
        return self.run.folder / self.kind.name

    @property
    def given_by_encoder(self) -> tuple[str, ...]:
        """Settings that come with the encoder, which `config` knows in part before it is there."""
        shape = (*(f"student.{key}" for key in (*_SHAPE, "last_block_num_heads", "init_from")), *_COLOURS)
        return shape if self.kind.task in RESIZE_POSITIONS else (*shape, "data.image_size")

    @property
    def recipe(self) -> str:
        """Shipped recipe's name, or a file's absolute path.

        Raises:
            ConfigError: there is no such recipe, or it is of another task; one line.
        """
        recipe = self.run.file.recipe_of(self.spec, self.kind.name)
        if (task := task_of_recipe(recipe)) not in (None, self.kind.task):
            where = f"{self.run.file.label}: {self.kind.name}.recipe={self.spec.recipe}"
            raise ConfigError(f"{where}: is of task {task}, not {self.kind.task}: take another recipe")
        return recipe

    @cached_property
    def arguments(self) -> tuple[str, ...]:
        """Arguments of its command.

        Raises:
            ConfigError: its recipe won't do; one line.
        """
        return ("-e", str(self.run.folder), "-c", self.recipe, *as_overrides(self._own | self.spec.set | self._given))

    @cached_property
    def config(self) -> RunConfig:
        """What it resolves to, as far as that is known before the encoder is there.

        Raises:
            ConfigError: something is wrong; one line a finding.
        """
        label, student = self.run.file.label, self.run.config.student
        encoder: dict[str, Any] = {f"student.{key}": getattr(student, key) for key in _SHAPE}
        encoder["student.init_from"] = str(self.run.folder)
        if self.kind.task not in RESIZE_POSITIONS:
            encoder["data.image_size"] = self.run.config.data.image_size
        layers = [(f"encoder of {self.run.label}", encoder), (label, self._own)]
        given = f"{COMMAND_LINE}: {self.kind.name}.set"
        layers += [(f"{label}: {self.kind.name}.set", self.spec.set), (given, self._given)]
        try:
            overrides = [(origin, as_overrides(values)) for origin, values in layers]
            return load_layers(self.recipe, overrides, new=not is_done(self.folder))
        except ConfigError as error:
            raise ConfigError(str(error).replace(f"{given}: ", f"{given}.")) from None  # keys as they were given

    @property
    def _given(self) -> dict[str, Any]:
        """What the command line gives it."""
        return self.run.file.given.get(self.kind.name, {})

    @property
    def _own(self) -> dict[str, Any]:
        """What the suite gives it; its `set` wins, and the command line over that."""
        config = self.run.config
        images = {f"data.{key}": getattr(config.data, key) for key in _IMAGES}
        return {
            "task": self.kind.task,  # for a job's look at the settings, which is of any task
            "seed": config.seed,
            "output_dir": str(self.folder),
            "name": f"{config.name}-{self.kind.name}",
            **(images if self.kind.task in LEARN_IMAGES_OF_ORIGIN else {}),
            "train.deepspeed": config.train.deepspeed,
            "tracking.enabled": config.tracking.enabled,
            "tracking.uri": config.tracking.uri,
            "tracking.experiment": f"{config.tracking.experiment}_{self.kind.name}",  # no rows among the variants
        }


def sort_given(given: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """The command line's settings: those of all runs, and those of what follows them, `KIND.set.KEY`, by kind."""
    of_runs, of_follow_ups = dict(given), {kind.name: dict[str, Any]() for kind in KINDS}
    for kind, settings in of_follow_ups.items():
        prefix = f"{kind}.set."
        settings |= {key.removeprefix(prefix): of_runs.pop(key) for key in given if key.startswith(prefix)}
    return of_runs, {kind: settings for kind, settings in of_follow_ups.items() if settings}


def asked_for(suite: Suite) -> list[tuple[FollowUpKind, FollowUpSpec]]:
    """What a suite does with encoders, in order, and how."""
    specs: list[tuple[FollowUpKind, FollowUpSpec | None]] = [(kind, getattr(suite, kind.name)) for kind in KINDS]
    return [(kind, spec) for kind, spec in specs if spec is not None]


def follow_ups_of(run: SuiteRun) -> list[FollowUp]:
    """What the suite does with a run's encoder, in order; nothing with a teacher's or a tuning run's."""
    if run.role != "variant":
        return []
    suite = run.file.suite
    variant = suite.variants[run.owner]
    return [FollowUp(kind, spec, run) for kind, spec in asked_for(suite) if getattr(variant, kind.name)]
