"""What all benchmarks share: rounds that alternate, peak memory, and figures that are kept; knows no model.

A round takes every side once, one after the other, so that whatever else the machine does meets all alike. A side is
faster only where the ranges of its ratios leave 1 out; the table says so. Nothing is asserted about time.
"""

import argparse
import contextlib
import datetime
import fcntl
import gc
import json
import os
import platform
import re
import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple

import torch

from dmt_ds.config.tracking import TrackingConfig
from dmt_ds.engine import dist
from dmt_ds.tracking.mlflow_tracker import open_tracker

RESULTS = Path(__file__).parent / "results"
Act = Callable[[], object]


class Spread(NamedTuple):
    """Of one figure over all rounds."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        return cls(statistics.median(values), min(values), max(values))

    def text(self, scale: float = 1.0, digits: int = 2) -> str:
        return f"{self.median * scale:.{digits}f} ({self.low * scale:.{digits}f} to {self.high * scale:.{digits}f})"


def parser(doc: str | None, *, rounds: int, steps: int) -> argparse.ArgumentParser:
    """The options that every benchmark has."""
    made = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--rounds", type=int, default=rounds)
    made.add_argument("--steps", type=int, default=steps, help="steps of a side in a round")
    made.add_argument("--threads", type=int, default=1, help="of torch, on a CPU")
    made.add_argument("--out", type=Path, default=RESULTS, help="folder of the JSON and Markdown files")
    made.add_argument("--no-mlflow", action="store_true", help="write files only")
    return made


def start(options: argparse.Namespace) -> torch.device:
    """Settings of torch that hold for all sides; the device that there is."""
    torch.set_num_threads(options.threads)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@contextlib.contextmanager
def turn() -> Iterator[None]:
    """Within it nobody else is timed on this device: programs that start together build and compile side by side.

    TURN, where it is set, is FOLDER/NAME: a program waits there until `FOLDER/NAMES.ready` are as many as the number in
    `FOLDER/expected`, then for its turn. `gpu_check.sh` makes the folder, and answers for programs that ended early.
    """
    place = os.environ.get("TURN")
    if place is None:
        yield
        return
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
    Path(f"{place}.ready").touch()
    folder = Path(place).parent
    while len(list(folder.glob("*.ready"))) < int((folder / "expected").read_text()):
        time.sleep(0.2)
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def alternate(
    sides: Mapping[str, Act],
    rounds: int,
    steps: int,
    device: torch.device,
    *,
    of_device: bool = False,
    before: Mapping[str, Act] | None = None,
) -> dict[str, list[float]]:
    """Side -> seconds a step, one entry a round.

    On a CPU they are CPU seconds of this process, which other programs on the machine disturb less; on CUDA, wall
    seconds until the device is done.

    Args:
        of_device: on CUDA, seconds of the device's own, as in `device_seconds`.
        before: side -> what is done before its part of a round, and not timed.
    """
    times: dict[str, list[float]] = {name: [] for name in sides}
    clock = device_seconds if of_device and device.type == "cuda" else seconds
    for act in sides.values():
        act()
    gc.collect()
    gc.freeze()  # or the collector walks through what compilers left, in whoever's turn it is
    for _ in range(rounds):
        for name, act in sides.items():
            if before and name in before:
                before[name]()
            times[name].append(clock(act, steps, device))
    gc.unfreeze()
    return times


def device_seconds(act: Act, steps: int, device: torch.device) -> float:
    """Of a part of a step: the device is held back until the host is ahead of it, as it is in a whole step."""
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    wait_for(device)
    torch.cuda._sleep(10**8)  # cycles: some 50 ms
    begin.record()
    for _ in range(steps):
        act()
    end.record()
    wait_for(device)
    return begin.elapsed_time(end) / 1e3 / steps


def seconds(act: Act, steps: int, device: torch.device) -> float:
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    wait_for(device)
    begin = clock()
    for _ in range(steps):
        act()
    wait_for(device)
    return (clock() - begin) / steps


def seconds_of_slowest(act: Act, device: torch.device) -> float:
    """Wall seconds of one act that all ranks do, from a barrier to the end of the slowest rank; all ranks call."""
    dist.barrier()
    begin = time.perf_counter()
    act()
    wait_for(device)
    return max(dist.gather_objects(time.perf_counter() - begin))


def host_seconds(act: Act, device: torch.device) -> float:
    """Until the last launch of an act is queued on an idle device (or what it may queue, some thousand, is queued)."""
    wait_for(device)
    begin = time.perf_counter()
    act()
    return time.perf_counter() - begin


def kernel_seconds(act: Act, device: torch.device, steps: int = 3) -> dict[str, float]:
    """Kernel -> the device's seconds in one of some acts in a row, the longest first; empty on a CPU."""
    if device.type == "cpu":
        return {}
    wait_for(device)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        for _ in range(steps):
            act()
        wait_for(device)
    found: dict[str, float] = {}
    for event in profile.profiler.kineto_results.events():  # type: ignore[union-attr]
        if event.device_type() == torch.autograd.DeviceType.CUDA:
            found[event.name()] = found.get(event.name(), 0.0) + event.duration_ns() / 1e9 / steps
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def waits(act: Act, device: torch.device) -> int:
    """How often the host waits for the device in an act that has run before, as CUDA's sync debug mode sees it."""
    if device.type == "cpu":
        return 0
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        act()
        torch.cuda.set_sync_debug_mode("default")
    return sum("synchronizing" in str(warning.message) for warning in seen)


def first_call(act: Act, device: torch.device) -> float:
    """Wall seconds of a call that may compile."""
    begin = time.perf_counter()
    act()
    wait_for(device)
    return time.perf_counter() - begin


def peak_bytes(act: Act, device: torch.device) -> int:
    """Most bytes of tensors that lived at once beyond those that were there before, as torch's allocator counts.

    For an act that has run before: what it makes once and keeps would be counted.
    """
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        act()
        return torch.cuda.max_memory_allocated(device) - before
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        act()
    recorded = profile.profiler.kineto_results.events()  # type: ignore[union-attr]
    changes = sorted((e.start_ns(), e.nbytes()) for e in recorded if e.name() == "[memory]")
    alive = most = 0
    for _, change in changes:
        alive += change
        most = max(most, alive)
    return most


def dense_rate(device: torch.device, *, bf16: bool) -> float:
    """FLOP/s of a large matrix product here, the median of several."""
    size = 8192 if device.type == "cuda" else 1536
    a = torch.randn(size, size, device=device, dtype=torch.bfloat16 if bf16 else torch.float32)
    seconds(lambda: a @ a, 3, device)
    return 2 * size**3 / Spread.of([seconds(lambda: a @ a, 5, device) for _ in range(5)]).median


def ratios(base: Sequence[float], other: Sequence[float]) -> Spread:
    """How many times faster the other is than the base, round by round."""
    return Spread.of([b / o for b, o in zip(base, other, strict=True)])


def verdict(ratio: Spread) -> str:
    """Whether the ranges allow a claim."""
    return "faster" if ratio.low > 1 else "slower" if ratio.high < 1 else "no difference seen"


@dataclass
class Report:
    """One table with all that is needed to make it again."""

    name: str
    """Of the files: `loss_cpu`."""
    title: str
    setting: dict[str, object]
    rows: list[dict[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    raw: dict[str, object] = field(default_factory=dict)
    """Every round's figures."""
    metrics: dict[str, float] = field(default_factory=dict)
    """For MLflow."""

    def markdown(self) -> str:
        columns = list(self.rows[0])
        lines = [f"## {self.title}", "", f"{machine_text()}.", f"{_setting_text(self.setting)}.", ""]
        lines += [_row(columns), _row(["---"] * len(columns)), *(_row([row[c] for c in columns]) for row in self.rows)]
        return "\n".join([*lines, "", *(f"- {note}" for note in self.notes)]).rstrip() + "\n"

    def publish(self, options: argparse.Namespace) -> None:
        """Print it, write both files, and keep them in MLflow, in experiment `benchmarks`."""
        print(self.markdown())
        options.out.mkdir(parents=True, exist_ok=True)
        files = [options.out / f"{self.name}.{ending}" for ending in ("json", "md")]
        content = {"machine": machine(), **{key: value for key, value in vars(self).items() if key != "name"}}
        files[0].write_text(json.dumps(content, indent=1, default=str) + "\n")
        files[1].write_text(self.markdown())
        if not options.no_mlflow:
            self._track(files)

    def _track(self, files: Sequence[Path]) -> None:
        section = TrackingConfig(experiment="benchmarks", system_metrics_seconds=0)
        stamp = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
        tracker = open_tracker(section, Path("runs/benchmarks") / f"{self.name}-{stamp}", self.name, None, True)
        tracker.log_params({**self.setting, "machine": machine()})
        tracker.log_metrics(self.metrics, 0)
        for file in files:
            tracker.log_artifact(file)
        tracker.finish("FINISHED")


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _setting_text(setting: Mapping[str, object]) -> str:
    return ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in setting.items())


def machine() -> dict[str, str]:
    """Kind of device and versions; no name of the machine."""
    found = {"date": datetime.date.today().isoformat(), "device": _device_name()}
    for package in ("torch", "deepspeed", "timm", "triton"):
        with contextlib.suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def machine_text() -> str:
    found = machine()
    return f"{found.pop('date')}, {found.pop('device')}; {', '.join(f'{k} {v}' for k, v in found.items())}"


def _device_name() -> str:
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    cpuinfo = Path("/proc/cpuinfo")
    model = re.search(r"^model name\s*:\s*(.*)$", cpuinfo.read_text(), re.M) if cpuinfo.is_file() else None
    kind = model[1] if model else platform.processor()
    return f"{kind}, {torch.get_num_threads()} thread{'s' if torch.get_num_threads() > 1 else ''}"


def device_slug(device: torch.device) -> str:
    """`cpu`, or the card's name in file names."""
    if device.type == "cpu":
        return "cpu"
    return re.sub(r"[^a-z0-9]+", "_", torch.cuda.get_device_name(device).lower().removeprefix("nvidia ")).strip("_")
