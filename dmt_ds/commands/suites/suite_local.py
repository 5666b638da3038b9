"""The runs of a suite on this machine, some at a time: each trained, then judged, each in processes of its own."""

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from dmt_ds.commands.child_command import Command, RunningCommand
from dmt_ds.commands.suites.suite_state import (
    SCORE,
    changed,
    check_teachers,
    choose,
    is_finished,
    is_judged,
    is_trained,
    is_tuned,
    judge_as_asked,
    left_of,
    scores_of,
)
from dmt_ds.config.suite_plan import SuitePlan
from dmt_ds.config.suite_run import Role, SuiteRun
from dmt_ds.engine.ranks.stopping import StopRequest
from dmt_ds.errors import ConfigError, DmtError
from dmt_ds.run_files import FAILURE_FILE, OUTPUT_FILE

SECONDS_BETWEEN_LOOKS = 0.1

Say = Callable[[str], None]


@dataclass(frozen=True)
class Phase:
    """One phase of a suite.

    Attributes:
        name: of the command.
        arguments: of the command.
        doing: what lines for people call it.
        on_all_ranks: whether it trains.
    """

    name: str
    arguments: tuple[str, ...]
    doing: str
    on_all_ranks: bool = True


def next_phase(run: SuiteRun) -> Phase | None:
    """What comes next; None where the run is finished."""
    if not is_trained(run):
        return Phase("pretrain", ("-c", run.recipe, *run.overrides), "training")
    if not is_judged(run):
        return Phase("evaluate", ("-e", str(run.folder)), "evaluation", on_all_ranks=False)
    return next((Phase(left.kind.name, left.arguments, left.kind.doing) for left in left_of(run)), None)


@dataclass
class Job:
    """A run that is under way."""

    run: SuiteRun
    command: RunningCommand
    phase: Phase
    slot: int
    started: float


class LocalSuite:
    """Starts what can start, and tells what ended; a run waits for its own teachers and its own tuning only.

    Attributes:
        failures: label -> why a run failed or could not start.
        was_stopped: whether a signal ended it.
    """

    def __init__(self, plan: SuitePlan, runs: Sequence[SuiteRun], jobs: int, ranks: int, say: Say) -> None:
        """What is finished already is kept.

        Args:
            plan: all of the suite.
            runs: those to make, in the order in which they start.
            jobs: runs at a time.
            ranks: processes of each training.
            say: takes a line for the person who waits.
        """
        self.failures: dict[str, str] = {}
        self.was_stopped = False
        self._plan = plan
        self._waiting = list(runs)
        self._total = len(runs)
        self._jobs: list[Job] = []
        self._num_jobs, self._ranks = jobs, ranks
        self._say = say
        self._needs = {run.folder: self._needs_of(run) for run in runs}
        self._ended: dict[Path, bool] = {}  # folder -> whether it finished
        self._chosen: dict[str, float] = {}
        self._seconds: dict[Role, list[float]] = {}

    def make_all(self) -> None:
        """Make runs until all have ended, or a signal asks to save and end.

        Raises:
            KeyboardInterrupt: a second Ctrl-C; everything was ended at once.
        """
        stop = StopRequest().install()
        try:
            while self._jobs or (self._waiting and not stop.requested):
                if stop.requested:
                    self.was_stopped = True
                    for job in self._jobs:
                        job.command.stop()
                else:
                    self._start_what_can()
                time.sleep(SECONDS_BETWEEN_LOOKS)
                for job in [job for job in self._jobs if job.command.poll() is not None]:
                    self._jobs.remove(job)
                    self._on_end(job, stop.requested)
        except KeyboardInterrupt:
            for job in self._jobs:
                job.command.kill()
            raise

    def _start_what_can(self) -> None:
        for run in list(self._waiting):
            needs_nothing_more = all(folder in self._ended for folder in self._needs[run.folder])  # well or not
            if needs_nothing_more and (is_finished(run) or len(self._jobs) < self._num_jobs):
                self._waiting.remove(run)
                self._begin(run)

    def _needs_of(self, run: SuiteRun) -> list[Path]:
        """Folders of its teachers and of its tuning."""
        tried = [other.folder for other in self._plan.tried(run.owner)] if run.role == "variant" else []
        return [*tried, *(self._plan.teachers_folder / name for name in self._plan.teachers_of(run))]

    def _begin(self, run: SuiteRun) -> None:
        """Start a run, or say why there is nothing to start."""
        try:
            run = self._with_choice(run)
            check_teachers(self._plan, run)
            if difference := changed(run):
                raise ConfigError(difference)
        except DmtError as error:
            self._end(run, f"{run.label}: {error}", failure=str(error))
            return
        phase = next_phase(run)
        if phase is None:
            self._ended[run.folder] = True
            return
        (run.folder / FAILURE_FILE).unlink(missing_ok=True)
        self._say(f"  {run.label}: {phase.doing}; log: {run.folder / OUTPUT_FILE}")
        self._start(run, phase, time.monotonic())

    def _with_choice(self, run: SuiteRun) -> SuiteRun:
        """A seed of a tuned variant has its chosen value."""
        tune = self._plan.file.suite.tune
        if tune is None or not is_tuned(self._plan, run):
            return run
        if run.owner not in self._chosen:
            choice = choose(self._plan, tune, run.owner)
            self._chosen[run.owner] = choice.value
            self._say(f"  {choice}")
            if choice.is_at_the_edge:
                self._say(f"  {choice.variant}: warning: that is at the edge of tune.values; the best may lie beyond")
        return next(other for other in self._plan.variants(self._chosen) if other.folder == run.folder)

    def _start(self, run: SuiteRun, phase: Phase, started: float) -> None:
        if phase.name == "evaluate":
            judge_as_asked(run)
        slot = next(slot for slot in range(self._num_jobs) if slot not in {job.slot for job in self._jobs})
        words, processes = (phase.name, *phase.arguments), self._ranks if phase.on_all_ranks else 1
        command = Command(words, run.folder / OUTPUT_FILE, self._environment(slot), processes)
        self._jobs.append(Job(run, RunningCommand(command), phase, slot, started))

    def _environment(self, slot: int) -> Mapping[str, str]:
        """This one, with cores and GPUs shared out among the runs."""
        threads = max(1, (os.cpu_count() or 1) // (self._num_jobs * self._ranks))
        mine = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(threads))}
        if (num_gpus := torch.cuda.device_count()) > 1:
            visible = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(num_gpus)))).split(",")
            mine["CUDA_VISIBLE_DEVICES"] = ",".join(share_of(visible, slot, self._ranks))
        return {**os.environ, **mine}

    def _on_end(self, job: Job, stopping: bool) -> None:
        run, code, following = job.run, job.command.poll(), next_phase(job.run)
        if code == 0 and following is not None and following.name != job.phase.name and not stopping:
            self._start(run, following, job.started)
        elif code == 0 and following is None:
            seconds = time.monotonic() - job.started
            self._seconds.setdefault(run.role, []).append(seconds)
            self._end(run, f"{run.label}: {seconds:.0f} s{_score(run)}{self._time_left()}")
        elif code == 0 or stopping:
            self._ended[run.folder] = False
            self._say(f"  {run.label}: stopped{' after a save' if code == 0 else ''}; the same command resumes it")
        else:
            where = "" if job.phase.name == "pretrain" else f"{job.phase.doing}: "
            failure = f"{where}{'; '.join(job.command.errors()[-3:])}"
            (run.folder / FAILURE_FILE).write_text(failure + "\n")
            self._end(run, f"{run.label}: failed: {failure}; log: {job.command.log}", failure)

    def _end(self, run: SuiteRun, line: str, failure: str | None = None) -> None:
        self._ended[run.folder] = failure is None
        if failure is not None:
            self.failures[run.label] = failure
        self._say(f"[{len(self._ended)}/{self._total}] {line}")

    def _time_left(self) -> str:
        """From the runs of this call: each role takes the mean time of its own, or of all."""
        known = [seconds for of_role in self._seconds.values() for seconds in of_role]
        mean = {role: sum(found) / len(found) for role, found in self._seconds.items()}
        expected = [mean.get(run.role, sum(known) / len(known)) for run in self._waiting]
        expected += [
            max(0.0, mean.get(job.run.role, sum(known) / len(known)) - (time.monotonic() - job.started))
            for job in self._jobs
        ]
        left = sum(expected) / self._num_jobs
        return f", about {_duration(left)} left" if expected else ""


def share_of(devices: Sequence[str], slot: int, ranks: int) -> list[str]:
    """The devices of the runs in one slot, one a rank; slots beyond the last device begin again at the first."""
    start = slot * ranks % (len(devices) - len(devices) % ranks or len(devices))
    return list(devices[start : start + ranks])


def _score(run: SuiteRun) -> str:
    score = scores_of(run).get(SCORE)
    return "" if score is None else f", k-NN {100 * score:.1f} %"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h"
