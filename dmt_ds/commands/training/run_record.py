"""What a run's folder says of its model, without what is nobody's business: whole paths, stores, users."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dmt_ds.commands.annotations.annotated_tasks import KINDS, kind_of
from dmt_ds.commands.run_folder import settings_of
from dmt_ds.commands.training.pretraining_methods import method_of
from dmt_ds.config.idle import idle_settings
from dmt_ds.config.load import flatten
from dmt_ds.config.schema import TEACHER_TASKS, DataConfig, RunConfig
from dmt_ds.run_files import ENVIRONMENT_FILE
from dmt_ds.tracking.compared_runs import SCORE
from dmt_ds.tracking.tracker import read_points

_SETTINGS = {
    "train": {"epochs", "steps", "global_batch_size", "deepspeed"},
    "data": {"image_size", "crop_scale", "horizontal_flip", "max_train_images"},
}
"""Of these sections only this is told; the sections of the student, the optimizer and the method are told whole."""
_OF_OTHER_WEIGHTS = ("eval/select_", *(f"eval/{name}_" for kind in KINDS.values() for name in kind.told_as))
"""Scores that choose settings, and those of what was made of an encoder afterwards."""


@dataclass(frozen=True)
class RunRecord:
    """What is known of a model beside its weights; empty where its folder lies in no run.

    Attributes:
        name: of the run.
        config: its settings.
        provenance: of the model, as its own folder has it; sources of teachers without the folders they lie in.
        scores: `eval/*` metrics that were measured at the model's own step, with their values.
        environment: versions of what trained it.
    """

    name: str
    config: RunConfig | None = None
    provenance: dict[str, Any] = field(default_factory=dict)
    scores: dict[str, float] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def teachers(self) -> dict[str, dict[str, Any]]:
        """Name -> what the run noted of it; also the weights that it started from."""
        return dict(self.provenance.get("teachers", {}))

    @property
    def data_name(self) -> str | None:
        """What people call the images."""
        return None if self.config is None else data_name(self.config.data)

    def settings(self) -> dict[str, Any]:
        """The recipe's part that makes the model what it is, as plain values."""
        if self.config is None:
            return {}
        told = self.config.model_dump(mode="json")
        own = method_of(self.config).section or self.config.task
        sections = ["student", "data", "train", "optim", "augment", own]
        settings = {"task": told["task"], "seed": told["seed"]}
        for name in sections:
            only = _SETTINGS.get(name, set(told[name]))
            settings[name] = {key: value for key, value in told[name].items() if key in only and value is not None}
        for idle in idle_settings(flatten(self.config)):
            section, _, key = idle.partition(".")
            settings.get(section, {}).pop(key, None)
        for section, key in (("student", "init_from"), ("train", "deepspeed")):
            if key in settings[section]:
                settings[section][key] = public_name(settings[section][key])
        return settings


def read_record(folder: Path | None, provenance: Mapping[str, Any], name: str) -> RunRecord:
    """The record of a model whose folder says `provenance`.

    Args:
        folder: of the run; None where there is none.
        name: what to call the model where no run says it.

    Raises:
        ConfigError: the run's settings can't be read by this version.
    """
    public = _public(provenance)
    if folder is None:
        return RunRecord(str(provenance.get("name") or name), provenance=public)
    config = settings_of(folder)
    kind = kind_of(config)
    return RunRecord(
        name=str(provenance.get("name") or config.name),
        config=config,
        provenance=public,
        scores=_scores(folder, provenance.get("step"), averaged=kind is not None and kind.averages(config)),
        environment=_environment(folder / ENVIRONMENT_FILE),
    )


def recorded_settings(config: RunConfig) -> dict[str, Any]:
    """Dotted key -> value, without what this run never looks at."""
    settings = flatten(config)
    idle = idle_settings(settings)
    return {key: value for key, value in settings.items() if key not in idle}


def data_name(data: DataConfig) -> str:
    """What people call the images; of a glob of files the folder."""
    if data.path is None or data.source == "digits":
        return data.source
    return public_name(re.split(r"/[^/]*[*?\[{]", data.path)[0])


def public_name(source: str) -> str:
    """A source as others may read it: tags and hub ids as they are, of a path only the last part."""
    kind, separator, rest = source.partition(":")
    if separator and kind in ("timm", "hf"):
        return f"{kind}:{public_name(rest)}" if rest.startswith(("/", "~", ".")) else source
    is_hub_id = re.fullmatch(r"[\w.-]+/[\w.-]+", source) and not Path(source).exists()
    return source if is_hub_id else Path(source.rstrip("/*")).name or source


def distils(record: RunRecord) -> bool:
    """Whether the model learned from teachers."""
    return record.provenance.get("task") in TEACHER_TASKS


def _public(provenance: Mapping[str, Any]) -> dict[str, Any]:
    teachers = {}
    for name, teacher in dict(provenance.get("teachers", {})).items():
        teachers[name] = _public(teacher) if "teachers" in teacher else dict(teacher)
        if "source" in teacher:
            teachers[name]["source"] = public_name(str(teacher["source"]))
    return {**provenance, "teachers": teachers}


def _scores(folder: Path, step: int | None, averaged: bool) -> dict[str, float]:
    """Of the metrics of all steps those that were measured with these very weights.

    Args:
        averaged: the running mean of the weights is the model, so that its scores are the model's own.
    """
    found: dict[str, float] = {}
    for point in read_points(folder):
        if point["step"] == step:
            found |= {name: value for name, value in point["metrics"].items() if SCORE.fullmatch(name)}
    if averaged:
        means = {name: value for name, value in found.items() if name.startswith("eval/ema_")}
        found = {name.replace("eval/ema_", "eval/"): value for name, value in means.items()}
    return {name: value for name, value in sorted(found.items()) if not name.startswith(_OF_OTHER_WEIGHTS)}


def _environment(path: Path) -> dict[str, str]:
    try:
        told = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    names = ("torch", "deepspeed", "git_commit")
    return {name: str(told[name]) for name in names if told.get(name)}
