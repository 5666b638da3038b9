"""A suite on a SLURM cluster: one array a stage, each run a task of `slurm/suite.sh`; runs nothing here."""

import hashlib
import os
import shlex
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dmt_ds.commands.suites.sbatch_ranks import ranks_of
from dmt_ds.commands.suites.suite import note_on_parent
from dmt_ds.commands.suites.suite_check import check_batches, check_finished, check_follow_ups, check_inputs
from dmt_ds.commands.suites.suite_local import Say
from dmt_ds.commands.suites.suite_state import changed, check_teachers, choose, is_judged, is_tuned, left_of
from dmt_ds.config.suite_follow_ups import KINDS, FollowUp, asked_for
from dmt_ds.config.suite_plan import SuitePlan
from dmt_ds.config.suite_run import Role, SuiteRun, as_overrides
from dmt_ds.errors import ConfigError, LaunchError

STAGES: dict[str, Role] = {
    "teachers": "teacher",
    "tune": "tune",
    "seeds": "variant",
    **{kind.name: "variant" for kind in KINDS},
}
"""As the command line calls them, in order."""
_FOLLOW_UPS = {kind.name for kind in KINDS}


@dataclass(frozen=True)
class Array:
    """One `sbatch`.

    Attributes:
        options: of sbatch.
        words: the script and its arguments.
    """

    stage: str
    name: str
    options: Sequence[str]
    words: Sequence[str]

    @property
    def what(self) -> str:
        """Role of the runs that it trains, or what it does with their encoders."""
        return self.stage if self.stage in _FOLLOW_UPS else STAGES[self.stage]


def arrays(
    plan: SuitePlan, runs: Sequence[SuiteRun], only: Sequence[str], at_a_time: int | None, options: Sequence[str]
) -> list[Array]:
    """What there is to submit, one a stage, in order; none where all of a stage is finished.

    Args:
        plan: all of the suite.
        runs: those to make.
        only: as the command line has it.
        at_a_time: tasks of an array that may run together; None leaves it to the cluster.
        options: of sbatch, further ones; `STAGE:OPTION` is of that stage alone.

    Raises:
        ConfigError: what is finished has other settings than the suite asks for now, as far as that can be seen here;
            or an option is of a stage that the suite does not have, or is none.
        LaunchError: the scripts are not there.
    """
    _check_options(plan, options)
    check_finished(plan, runs, only_what_is_here=True)  # a task looks anew, where it runs
    script = _script()
    if not script.is_file():
        raise LaunchError(f"{script}: does not exist; set DMT_DS_HOME to a checkout, which has the scripts for SLURM")
    of_follow_ups = {f"{kind}.set.{key}": v for kind, values in plan.file.given.items() for key, v in values.items()}
    given = [
        *as_overrides({**plan.given, **of_follow_ups}),
        "-o",
        str(plan.output),
        *(word for name in only for word in ("--only", name)),
    ]
    found = []
    for stage, role in STAGES.items():
        of_stage = _of(runs, role)
        tasks = [number for number, run in enumerate(of_stage) if not _is_done(run, stage)]
        if tasks:
            array = f"--array={','.join(map(str, tasks))}{'' if at_a_time is None else f'%{at_a_time}'}"
            name = f"{plan.file.suite.name}-{stage}"
            of_sbatch = ["--parsable", array, f"--job-name={name}", *_options_of(stage, options)]
            numbered = ["--numbered", _mark_of(of_stage[: tasks[-1] + 1])]
            words = [str(script), stage, str(plan.file.path.resolve()), *given, *numbered]
            found.append(Array(stage, name, of_sbatch, words))
    return found


def show(arrays: Sequence[Array], say: Say) -> None:
    """The commands as a shell takes them, each after the one before."""
    for number, array in enumerate(arrays):
        after = f"--dependency=afterany:$job{number - 1} " if number else ""
        say(f"job{number}=$(sbatch {shlex.join(array.options)} {after}{shlex.join(array.words)})")


def submit(plan: SuitePlan, runs: Sequence[SuiteRun], arrays: Sequence[Array], say: Say) -> None:
    """Submit them, each after all tasks of the one before have ended, well or not: a task says what it lacks.

    Raises:
        ConfigError: what is to be done with the encoders can't be done, a batch can't be cut for the tasks that sbatch
            is asked for, or images or teachers are not there, also those of finished runs that have another name.
        LaunchError: there is no sbatch, or it refuses.
    """
    if shutil.which("sbatch") is None:
        raise LaunchError("there is no sbatch here: run this on a login node, or use --slurm to print the commands")
    check_follow_ups(runs)
    if os.environ.get("DMT_DS_DOCTOR") != "0":  # which is set where compute nodes alone have the data
        check_batches(plan, runs, {array.what: ranks_of(_script(), array.options) for array in arrays}.get)
        check_finished(plan, runs)
        check_inputs(plan, runs)
    note_on_parent(plan, "RUNNING")
    before: str | None = None
    for array in arrays:
        after = [] if before is None else [f"--dependency=afterany:{before}"]  # the last of several counts
        command = ["sbatch", *array.options, *after, *array.words]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise LaunchError(f"sbatch: {' '.join(done.stderr.split())}")
        before = done.stdout.strip().partition(";")[0]  # on several clusters an id is followed by ;CLUSTER
        say(f"{before}  {array.name}")


def arguments_of(
    plan: SuitePlan, runs: Sequence[SuiteRun], stage: str, number: int, mark: str | None = None
) -> list[str]:
    """Arguments of the stage's command for one task of an array; none where there is nothing left to do.

    Args:
        plan: all of the suite.
        runs: as those that were submitted.
        stage: as the command line calls it.
        number: of the task.
        mark: of the stage's first runs, as they were numbered when the array was submitted.

    Raises:
        ConfigError: there is no such run, it is another one by now, it was trained with other settings, or what it
            needs is missing.
    """
    of_stage = _of(runs, STAGES[stage])
    if mark is not None and mark not in {_mark_of(of_stage[:count]) for count in range(len(of_stage) + 1)}:
        raise ConfigError(
            f"{plan.file.label}: task {number} of stage {stage} may be another run than when the array was submitted: "
            "cancel the array, and submit the suite again"
        )
    if number >= len(of_stage):
        raise ConfigError(f"--print-run {number}: stage {stage} has {len(of_stage)} runs, the first of which is 0")
    run, tune = of_stage[number], plan.file.suite.tune
    if tune is not None and is_tuned(plan, run):
        chosen = {run.owner: choose(plan, tune, run.owner).value}
        run = next(other for other in plan.variants(chosen) if other.folder == run.folder)
    check_teachers(plan, run)
    if difference := changed(run):
        raise ConfigError(difference)
    if _is_done(run, stage):
        return []
    follow_up = _left(run, stage)
    if follow_up is None:
        return ["-c", run.recipe, *run.overrides]
    if not is_judged(run):
        raise ConfigError(f"{run.label}: not {follow_up.kind.done}: it is not trained and evaluated yet")
    return list(follow_up.arguments)


def _script() -> Path:
    return Path(os.environ.get("DMT_DS_HOME", Path(__file__).parents[3])) / "slurm" / "suite.sh"


def _options_of(stage: str, options: Sequence[str]) -> list[str]:
    """Those of all stages, then those of this one, which win."""
    split = [_split(option) for option in options]
    return [option for of in (None, stage) for of_stage, option in split if of_stage == of]


def _split(option: str) -> tuple[str | None, str]:
    """(stage, or what is written in its place, or None where it is of all; the option of sbatch)."""
    stage, _, rest = option.partition(":")
    is_of_one = stage in STAGES or (rest.startswith("-") and not stage.startswith("-"))
    return (stage, rest) if is_of_one else (None, option)


def _check_options(plan: SuitePlan, options: Sequence[str]) -> None:
    """What sbatch would take for the name of a script, when arrays before it are submitted, or nobody would take.

    Raises:
        ConfigError: an option of one stage does not begin as one does, or the suite has no such stage.
    """
    suite = plan.file.suite
    has = {"teachers": bool(suite.teachers), "tune": suite.tune is not None, "seeds": True}
    has |= {kind.name: True for kind, _ in asked_for(suite)}
    for option in options:
        stage, own = _split(option)
        if stage is None:
            continue
        if stage not in STAGES:
            raise ConfigError(f"--sbatch={option}: there is no stage {stage}; there are: {', '.join(STAGES)}")
        if not own.startswith("-"):
            raise ConfigError(f"--sbatch={option}: is not an option of sbatch: write one, such as {stage}:--nodes=2")
        if not has.get(stage):
            stages = ", ".join(known for known in STAGES if has.get(known))
            raise ConfigError(f"--sbatch={option}: {plan.file.label} has no {stage}; its stages are: {stages}")


def _mark_of(runs: Sequence[SuiteRun]) -> str:
    """Tells these runs in this order from others: an array's task has a number alone, and the suite is read anew."""
    return hashlib.sha256("\n".join(str(run.folder) for run in runs).encode()).hexdigest()[:12]


def _is_done(run: SuiteRun, stage: str) -> bool:
    return _left(run, stage) is None if stage in _FOLLOW_UPS else is_judged(run)


def _left(run: SuiteRun, stage: str) -> FollowUp | None:
    """What the stage has to do with a run's encoder."""
    return next((left for left in left_of(run) if left.kind.name == stage), None)


def _of(runs: Sequence[SuiteRun], role: Role) -> list[SuiteRun]:
    return [run for run in runs if run.role == role]
