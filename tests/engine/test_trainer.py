"""The order of things in the loop, with parts that note what they are told; over ranks: `test_deferred_updates`."""

import gc
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from dmt_ds.data.batch import Batch
from dmt_ds.engine import dist
from dmt_ds.engine.task import Progress
from dmt_ds.engine.trainer import Outcome, Surroundings, Trainer, TrainPlan
from dmt_ds.errors import DivergenceError, PeerFailedError
from dmt_ds.tracking import meters

GLOBAL_BATCH = 8


class Clock:
    """Stands still but where somebody takes his time."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Run:
    """What all parts have been told, in its order, and what they do about it."""

    def __init__(self, **plan: Any) -> None:
        lengths = {"total_steps": 3, "log_every_steps": 100, "save_every_steps": 100, "grad_accum_steps": 1} | plan
        self.plan = TrainPlan(global_batch_size=GLOBAL_BATCH, **lengths)
        self.told: list[tuple[Any, ...]] = []
        self.logged: dict[int, Mapping[str, float]] = {}
        self.clock = Clock()
        self.stop_at = self.flawed_at = self.unsound_gradient_at = 0
        self.frozen_objects = 0
        self.num_workers, self.cores = 0, 1
        self.requested, self.name = False, "SIGUSR1"

    def tell(self, *what: Any) -> None:
        self.told.append(what)

    def told_of(self, *kinds: str) -> list[tuple[Any, ...]]:
        return [what for what in self.told if what[0] in kinds]

    def batches(self, **where: int) -> Iterator[Batch]:  # as the loader
        self.tell("batches", where)
        for number in range(where["num_micro_steps"]):
            self.clock.now += 1
            rows = 10 * number + torch.arange(5)
            yield Batch((torch.zeros(5, 3, 2, 2, dtype=torch.uint8),), rows, rows, rows)

    def trainer(self, *learners: "Noting", step: int = 0, **around: Any) -> Trainer:
        view = SimpleNamespace(
            start=lambda step: self.tell("view", "start", step),
            advance=lambda: self.tell("view", "advance"),
            report=lambda step, metrics, name: self.tell("report", step, name),
            close=lambda: self.tell("view", "close"),
        )
        watchdog = SimpleNamespace(beat=lambda doing: self.tell("beat", doing))
        checkpoints = SimpleNamespace(saved=lambda step: self.tell("all saved", step))
        surroundings = Surroundings(view, self, watchdog, "image {}".format, **around)
        return Trainer(learners or [Noting(self)], checkpoints, self, self.plan, surroundings, step)

    def evaluate(self, step: int) -> None:
        self.tell("evaluate", step)
        self.clock.now += 1000


class Noting:
    """A learner and its engine, task and tracker."""

    def __init__(self, run: Run, name: str = "", skips_on_device: bool = False) -> None:
        self.run, self.name, self.of_name = run, name, name and f" of {name}"
        self.device, self.skips_on_device = torch.device("cpu"), skips_on_device
        self.engine = self.task = self.tracker = self
        self.start_again = "Start again"
        self.micro_steps, self.steps = 0, 0
        self.unsound: list[bool] = []

    @property
    def flaw(self) -> Tensor:
        return torch.tensor(torch.nan if self.steps + 1 == self.run.flawed_at else 0.0)

    def start(self) -> None:
        self.run.tell("start")

    def learn(self, batch: Batch, progress: Progress, logs: bool) -> None:
        self.run.tell("learn", progress.step, progress.total_steps, logs)
        self.run.clock.now += 1
        self.run.frozen_objects = gc.get_freeze_count()
        self.run.requested = self.run.requested or progress.step + 1 == self.run.stop_at

    def squared_gradient_norm(self) -> Tensor:
        return torch.tensor(torch.inf if self.steps + 1 == self.run.unsound_gradient_at else 4.0)

    def prepare_update(self, unsound: Tensor, squared_norm: Tensor) -> None:
        self.unsound.append(bool(unsound))

    def step(self) -> None:
        self.micro_steps += 1
        self.steps = self.micro_steps // self.run.plan.grad_accum_steps
        self.run.tell("step")

    def check_update(self, step: int, looks: bool) -> None:
        self.run.tell("check", step, looks)

    def after_step(self, progress: Progress) -> None:
        self.run.tell("after step", progress.step, progress.total_steps)

    def figures(self) -> dict[str, float]:
        return {"train/loss": 0.5}

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        self.run.logged[step] = metrics

    def log_artifact(self, path: Path) -> None:
        self.run.tell("artifact", path)

    def save(self, step: int) -> None:
        self.run.tell("save", step)
        self.run.clock.now += 1000


class Profile:
    """Of the second step."""

    folder = Path("profile")

    def __init__(self, run: Run) -> None:
        self.run = run

    def before(self, step: int) -> None:
        self.run.tell("before", step)

    def after(self, step: int) -> bool:
        self.run.tell("after", step)
        return step == 2

    def close(self, step: int) -> None:
        self.run.tell("profile closed", step)


def test_a_run_from_its_start_to_its_end() -> None:
    run = Run(total_steps=2, grad_accum_steps=2)
    assert run.trainer().fit() is Outcome.FINISHED
    assert run.told == [
        ("start",),
        ("view", "start", 0),
        ("batches", {"start_image": 0, "num_micro_steps": 4, "grad_accum_steps": 2}),
        *[("learn", 0, 2, True), ("step",)] * 2,
        ("check", 1, True),
        ("after step", 1, 2),
        ("report", 1, ""),
        ("view", "advance"),
        ("beat", "step 1"),
        *[("learn", 1, 2, True), ("step",)] * 2,
        ("check", 2, True),
        ("after step", 2, 2),
        ("report", 2, ""),
        ("view", "advance"),
        ("beat", "step 2"),
        ("beat", "saving step 2"),
        ("save", 2),
        ("all saved", 2),
        ("beat", "step 2"),
        ("view", "close"),
    ]


def test_a_run_that_goes_on_takes_the_images_that_it_has_not_seen() -> None:
    run = Run(total_steps=5, grad_accum_steps=2)
    run.trainer(step=3).fit()
    assert run.told_of("batches") == [
        ("batches", {"start_image": 3 * GLOBAL_BATCH, "num_micro_steps": 4, "grad_accum_steps": 2})
    ]
    assert [step for _, step, *_ in run.told_of("learn")] == [3, 3, 4, 4]


def test_a_run_of_no_steps_saves_the_encoder_as_it_starts() -> None:
    run = Run(total_steps=0)
    assert run.trainer().fit() is Outcome.FINISHED
    assert run.told_of("learn", "save", "all saved") == [("save", 0), ("all saved", 0)]


def test_what_is_neither_logged_nor_saved_nor_judged_is_not_looked_at() -> None:
    run = Run(total_steps=6, save_every_steps=3, eval_every_images=4 * GLOBAL_BATCH)
    run.trainer(evaluate=run.evaluate).fit()
    assert [looks for *_, looks in run.told_of("check")] == [True, False, True, True, False, True]
    assert [logs for *_, logs in run.told_of("learn")] == [True, False, False, False, False, True]


@pytest.mark.parametrize("at", [3, 4])
def test_a_signal_ends_the_run_looked_at_and_saved_and_without_an_evaluation(
    caplog: pytest.LogCaptureFixture, at: int
) -> None:
    caplog.set_level("INFO", "dmt_ds")
    run = Run(total_steps=9, eval_every_images=2 * GLOBAL_BATCH)
    run.stop_at = at
    assert run.trainer(evaluate=run.evaluate).fit() is Outcome.STOPPED
    assert run.told_of("evaluate", "save") == [("evaluate", 2), ("save", at)]
    assert run.told_of("check")[-1] == ("check", at, True)
    assert f"SIGUSR1: saved at step {at} of 9" in caplog.messages


def test_a_run_stops_where_the_recipe_says_and_does_not_go_on_from_there(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "dmt_ds")
    run = Run(total_steps=9, stop_after_step=4)
    assert run.trainer().fit() is Outcome.STOPPED
    assert run.told_of("save") == [("save", 4)] and len(run.told_of("learn")) == 4
    assert "train.stop_after_step=4: saved at step 4 of 9" in caplog.messages
    assert run.trainer(step=4).fit() is Outcome.STOPPED
    assert len(run.told_of("learn")) == 4


def test_an_evaluation_comes_before_the_save_of_its_step_and_the_watchdog_hears_of_its_end() -> None:
    run = Run(total_steps=4, save_every_steps=2, eval_every_images=2 * GLOBAL_BATCH)
    run.trainer(evaluate=run.evaluate).fit()
    first = run.told.index(("evaluate", 2))
    assert run.told[first - 1 : first + 4] == [
        ("beat", "step 2"),
        ("evaluate", 2),
        ("beat", "step 2"),
        ("beat", "saving step 2"),
        ("save", 2),
    ]
    assert run.told_of("evaluate") == [("evaluate", 2)]  # the one at the end is not the loop's


def test_evaluations_and_saves_are_no_training_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """A micro-batch is waited for, for a second, and learned in one: both of each step."""
    run = Run(total_steps=6, log_every_steps=1, grad_accum_steps=2, save_every_steps=3, eval_every_images=8)
    monkeypatch.setattr(meters.time, "perf_counter", run.clock)
    looked: list[Mapping[str, float]] = []
    trainer = run.trainer(evaluate=run.evaluate)
    trainer._data_wait.look = looked.append
    trainer.fit()
    assert list(run.logged) == [1, 2, 3, 4, 5, 6]
    for step, metrics in run.logged.items():
        assert metrics["perf/images_per_second"] == GLOBAL_BATCH / 4 and metrics["perf/data_wait_share"] == 0.5
        assert metrics["train/images_seen"] == GLOBAL_BATCH * step
        assert (metrics["train/loss"], metrics["perf/ranks"]) == (0.5, 1.0) and metrics["perf/memory_gib"] > 0
    assert [metrics["perf/data_wait_share"] for metrics in looked] == [0.5] * 6


@pytest.mark.parametrize("stopped_at", [0, 2])
def test_a_profile_is_told_of_each_step_logged_once_it_is_made_and_always_closed(stopped_at: int) -> None:
    run = Run(total_steps=3)
    run.flawed_at = 3 if stopped_at else 0
    trainer = run.trainer(profile=Profile(run))
    if stopped_at:
        with pytest.raises(DivergenceError):
            trainer.fit()
    else:
        trainer.fit()
    wanted = [("before", 1), ("after", 1), ("before", 2), ("after", 2), ("artifact", Path("profile")), ("before", 3)]
    ended = [("profile closed", 2)] if stopped_at else [("after", 3), ("profile closed", 3)]
    assert run.told_of("before", "after", "artifact", "profile closed") == wanted + ended
    assert run.told_of("view")[-1] == ("view", "close")


def test_pythons_collector_leaves_what_is_there_alone_while_the_loop_runs() -> None:
    gc.unfreeze()
    run = Run()
    run.trainer().fit()
    assert run.frozen_objects > 0 == gc.get_freeze_count()


@pytest.mark.parametrize("rank", [0, 1])
def test_an_unsound_loss_of_one_of_two_learners_is_told_with_its_images(
    monkeypatch: pytest.MonkeyPatch, rank: int
) -> None:
    run = Run(total_steps=9)
    learners = Noting(run, "small"), Noting(run, "base")
    monkeypatch.setattr(Noting, "flaw", property(lambda self: torch.tensor(torch.nan if self is learners[1] else 0.0)))
    monkeypatch.setattr(dist, "rank", lambda: rank)
    with pytest.raises(DivergenceError if rank == 0 else PeerFailedError) as caught:
        run.trainer(*learners).fit()
    assert str(caught.value).startswith(
        "step 1: the loss of base is not finite on rank 0; this update was not made. "
        "Images of its batch: rank 0: image 0, image 1, image 2, image 3, .... Start again, with a lower"
    )
    assert run.told_of("step") == []
    assert [learner.unsound for learner in learners] == [[True], [True]]


@pytest.mark.parametrize(
    ("skips_on_device", "made"), [((True, True), 3), ((True, False), 2), ((False, False), 2)], ids=str
)
@pytest.mark.parametrize("unsound", ["loss", "gradient"])
def test_flags_are_read_a_step_later_where_every_engine_skips_by_itself(
    skips_on_device: tuple[bool, bool], made: int, unsound: str
) -> None:
    run = Run(total_steps=9)
    run.flawed_at, run.unsound_gradient_at = (3, 0) if unsound == "loss" else (0, 3)
    learners = [Noting(run, skips_on_device=skips) for skips in skips_on_device]
    with pytest.raises(DivergenceError, match=rf"^step 3: the {unsound} is not finite"):
        run.trainer(*learners).fit()
    assert [learner.steps for learner in learners] == [made] * 2


def test_where_flags_are_read_later_a_stop_reads_those_that_are_left_before_it_saves() -> None:
    run = Run(total_steps=9)
    run.stop_at, run.flawed_at = 3, 4  # the step in which the others hear of the signal
    with pytest.raises(DivergenceError, match=r"^step 4: the loss is not finite"):
        run.trainer(Noting(run, skips_on_device=True)).fit()
    assert run.told_of("save") == []
