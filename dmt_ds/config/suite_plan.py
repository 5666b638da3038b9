"""The runs of a suite: which there are, where each lies, what each is given, and which wait for which; starts none."""

import difflib
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from dmt_ds.config.load import COMMAND_LINE
from dmt_ds.config.schema import TASKS_OF_SECTION, TEACHER_TASKS, TaskName
from dmt_ds.config.suite import RunSpec, SuiteFile, VariantSpec
from dmt_ds.config.suite_follow_ups import FOLLOW_UP_KEYS, asked_for, follow_ups_of
from dmt_ds.config.suite_run import Layer, Role, SuiteRun, as_overrides
from dmt_ds.errors import ConfigError

OWN_KEYS = ("output_dir", "name", "tracking.parent")
"""Settings that the suite gives each of its runs; `seed` is one more, but of a teacher's."""


@dataclass(frozen=True)
class SuitePlan:
    """All runs of a suite.

    Attributes:
        output: absolute folder of the runs.
        given: what the command line overrides in all of them.
        store: tracking store of runs whose recipe names none; None leaves it to the environment.
    """

    file: SuiteFile
    output: Path
    given: Mapping[str, Any]
    store: str | None

    def teachers(self) -> list[SuiteRun]:
        """Runs that others start from."""
        return [self._teacher(name, spec) for name, spec in self.file.suite.teachers.items()]

    def tuning(self) -> list[SuiteRun]:
        """Each tuned variant at each value."""
        tune, variants = self.file.suite.tune, self.file.suite.variants.items()
        values = tune.values if tune else ()
        return [self._tuning(name, spec, value) for name, spec in variants if spec.tune for value in values]

    def tried(self, variant: str) -> list[SuiteRun]:
        """The runs that choose a variant's value; none where it is not tuned."""
        return [run for run in self.tuning() if run.owner == variant]

    def variants(self, chosen: Mapping[str, float]) -> list[SuiteRun]:
        """Each variant with each seed; `chosen` has the tuned variants' values (the first of the grid stands in)."""
        suite = self.file.suite
        return [self._variant(name, seed, chosen.get(name)) for name in suite.variants for seed in suite.seeds]

    def teachers_of(self, run: SuiteRun) -> list[str]:
        """Names of the suite's teachers that a run starts from.

        Raises:
            ConfigError: a source names a teacher that the suite does not make.
        """
        config, found = run.config, []
        used = config.teachers.used() if config.task in TEACHER_TASKS else {}
        sources = [(f"teachers.models.{name}.source", teacher.source) for name, teacher in used.items()]
        sources += [("student.init_from", config.student.init_from)] if config.student.init_from else []
        for key, source in sources:
            path = Path(source)
            if path.is_relative_to(self.teachers_folder) and path != self.teachers_folder:
                name = path.relative_to(self.teachers_folder).parts[0]
                if name not in self.file.suite.teachers:
                    raise ConfigError(f"{self.file.label}: {run.label}: {key}: {self._no_teacher(name)}")
                found.append(name)
        return list(dict.fromkeys(found))

    @property
    def teachers_folder(self) -> Path:
        """What `{teachers}` stands for."""
        return self.output / "teachers"

    def _no_teacher(self, name: str) -> str:
        known = list(self.file.suite.teachers)
        close = difflib.get_close_matches(name, known, n=1)
        hint = f"Did you mean '{close[0]}'?" if close else f"It makes: {', '.join(known) or 'none'}"
        return f"the suite makes no teacher '{name}'. {hint}"

    def _teacher(self, name: str, spec: RunSpec) -> SuiteRun:
        seed: Layer = (self.file.label, {"seed": 0})
        return self._run("teacher", name, f"teacher {name}", Path("teachers", name), spec, before=[seed])

    def _tuning(self, name: str, spec: VariantSpec, value: float) -> SuiteRun:
        tune = self.file.suite.tune
        assert tune is not None
        layers: list[Layer] = [
            (f"{self.file.label}: tune.set", tune.set),
            (f"{self.file.label}: tune.key", {tune.key: value_text(value)}),
            (self.file.label, {"seed": tune.seed}),
        ]
        label, folder = f"{name} {tune.key}={value_text(value)}", Path("tune", name, value_text(value))
        return self._run("tune", name, label, folder, spec, after=layers, value=value)

    def _variant(self, name: str, seed: int, chosen: float | None) -> SuiteRun:
        spec, tune = self.file.suite.variants[name], self.file.suite.tune
        layers: list[Layer] = [(self.file.label, {"seed": seed})]
        if tune and spec.tune:
            value = tune.values[0] if chosen is None else chosen
            layers.append((f"{self.file.label}: tune.key", {tune.key: value_text(value)}))
        return self._run("variant", name, f"{name} seed{seed}", Path(name, f"seed{seed}"), spec, after=layers)

    def _run(
        self,
        role: Role,
        owner: str,
        label: str,
        folder: Path,
        spec: RunSpec,
        before: Sequence[Layer] = (),
        after: Sequence[Layer] = (),
        value: float | None = None,
    ) -> SuiteRun:
        """A run; what the suite's file says of it has `{teachers}` filled in."""
        suite, label_of_file = self.file.suite, self.file.label
        place = f"{'teachers' if role == 'teacher' else 'variants'}.{owner}"
        own = {
            "output_dir": str(self.output / folder),
            "name": _safe("-".join(folder.parts)),
            "tracking.parent": suite.name,
        }
        tags = {"suite": suite.name, "variant": owner, "role": role, "title": owner}
        if isinstance(spec, VariantSpec):
            tags["title"] = spec.title or owner
            tags |= {"paper": spec.paper} if spec.paper and role == "variant" else {}
        layers = [
            (label_of_file, self._tracking()),
            *before,
            (f"{label_of_file}: set", suite.set),
            (f"{label_of_file}: {place}.set", spec.set),
            *after,
            (label_of_file, {**own, **{f"tracking.tags.{key}": text for key, text in tags.items()}}),
            (COMMAND_LINE, dict(self.given)),
        ]
        filled = tuple((origin, self._fill(values)) for origin, values in layers)
        return SuiteRun(role, owner, label, self.output / folder, self.file, spec, place, filled, value)

    def _tracking(self) -> dict[str, Any]:
        store = {} if self.store is None else {"tracking.uri": self.store}
        return {"tracking.experiment": self.file.suite.name, **store}

    def _fill(self, value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: self._fill(item) for key, item in value.items()}
        if isinstance(value, list):
            return [self._fill(item) for item in value]
        return value.replace("{teachers}", str(self.teachers_folder)) if isinstance(value, str) else value


def value_text(value: float) -> str:
    """A tuned value as folders and overrides have it, short and exact: 5.0e-4 is 0.0005."""
    short = f"{value:g}"
    return short if float(short) == value else repr(value)


def findings(plan: SuitePlan, runs: Sequence[SuiteRun]) -> list[str]:
    """What is wrong with a suite and its runs, one line each, all at once."""
    found = list(_misplaced(plan))
    for run in runs:
        checks: list[Callable[[], object]] = [
            partial(plan.teachers_of, run),
            *(partial(getattr, follow_up, "config") for follow_up in follow_ups_of(run)),
        ]
        for check in checks:
            try:
                check()
            except ConfigError as error:
                found += str(error).splitlines()
    if not found:  # else the tasks are not known
        found = list(_unused(plan, {run.config.task for run in runs}))
    return list(dict.fromkeys(found))


def _unused(plan: SuitePlan, tasks: Collection[TaskName]) -> Iterator[str]:
    """Settings of the command line that no run of the suite would look at, most often meant for what follows."""
    for key, value in plan.given.items():
        (setting,) = as_overrides({key: value})
        users = TASKS_OF_SECTION.get(key.partition(".")[0], ())
        if not users or set(users) & set(tasks):
            continue
        meant = [f"{kind.name}.set.{setting}" for kind, _ in asked_for(plan.file.suite) if kind.task in users]
        remedy = f"for the further training of their encoders give {meant[0]}" if meant else "take it out"
        yield f"{COMMAND_LINE}: {key}: no run of the suite is of task {' or '.join(users)}; {remedy}"


def _as_given(kind: str, settings: Mapping[str, Any]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """A follow-up's settings and the keys that are not for them, as the command line has both."""
    prefix = f"{kind}.set."
    return {prefix + key: value for key, value in settings.items()}, tuple(prefix + key for key in FOLLOW_UP_KEYS)


def _misplaced(plan: SuitePlan) -> Iterator[str]:
    """Settings that the suite gives each run by itself."""
    suite, label = plan.file.suite, plan.file.label
    places: list[tuple[str, Mapping[str, Any], tuple[str, ...]]] = [
        (f"{label}: set", suite.set, ("seed", *OWN_KEYS)),
        *((f"{label}: teachers.{name}.set", spec.set, OWN_KEYS) for name, spec in suite.teachers.items()),
        *((f"{label}: variants.{name}.set", spec.set, ("seed", *OWN_KEYS)) for name, spec in suite.variants.items()),
        (f"{label}: tune.set", suite.tune.set if suite.tune else {}, ("seed", *OWN_KEYS)),
        *((f"{label}: {kind.name}.set", spec.set, FOLLOW_UP_KEYS) for kind, spec in asked_for(suite)),
        (COMMAND_LINE, plan.given, ("seed", *OWN_KEYS, *([suite.tune.key] if suite.tune else []))),
        *((COMMAND_LINE, *_as_given(kind, settings)) for kind, settings in plan.file.given.items()),
    ]
    for where, values, own in places:
        for key in values:
            if key in own:
                yield f"{where}: {key}: is given to each run by the suite itself; take it out"
    for kind in set(plan.file.given) - {kind.name for kind, _ in asked_for(suite)}:
        yield f"{COMMAND_LINE}: {kind}.set: {label} has no {kind}:; add {kind}: {{recipe: ...}} there, or take it out"


def _safe(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]", "_", name)
