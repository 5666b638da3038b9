"""A few steps of a run looked at closely: a torch profiler's trace, and a table of where their time went."""

import json
import logging
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from dmt_ds.errors import ConfigError
from dmt_ds.tracking.spans import SpanClock

logger = logging.getLogger(__name__)

TRACE_FILE = "trace.json.gz"
TABLE_FILE = "steps.json"
_COLLECTIVES, _KERNELS = ("gloo:", "nccl:"), ("ncclDevKernel", "ncclKernel")  # how backends name their work in a trace


class StepProfile:
    """Profiles the given updates once; logs a warning and records nothing if the run resumes past or ends before them.

    The table covers updates alone; a save or an evaluation between two of them is only in the trace.

    Args:
        steps: the first and the last of them, from 1.
        total_steps: of the run.
        done: updates in the checkpoint that this process resumes from.
        folder: gets `trace.json.gz` (open it in https://ui.perfetto.dev) and `steps.json`.

    Raises:
        ConfigError: the run ends before.
    """

    def __init__(
        self, steps: tuple[int, int], total_steps: int, folder: Path, device: torch.device, done: int = 0
    ) -> None:
        self.folder = folder
        self._first, self._last = steps
        if self._last > total_steps:
            raise ConfigError(
                f"train.profile_steps [{self._first}, {self._last}] ends after the run's last step {total_steps}: "
                f"set train.profile_steps=[{min(self._first, total_steps)},{total_steps}]"
            )
        if self._first <= done < total_steps:
            last = min(total_steps, done + 1 + self._last - self._first)
            logger.warning(
                f"train.profile_steps [{self._first}, {self._last}] is skipped: the run resumes after step "
                f"{done}; set train.profile_steps=[{done + 1},{last}]"
            )
        self._device = device
        self._clock = SpanClock(device)
        activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if device.type == "cuda" else [])
        self._profiler = profile(activities=activities)
        self._recording = False
        self._update = ExitStack()  # holds the clock within an update

    def before(self, step: int) -> None:
        """Call before update number `step`."""
        if step == self._first:
            self._profiler.start()
            self._recording = True
        if self._recording:
            self._update.enter_context(self._clock.listening())

    def after(self, step: int) -> bool:
        """Call after update number `step`; whether the files have just been written."""
        self._update.close()
        if step != self._last or not self._recording:
            return False
        self._end()
        self.folder.mkdir(parents=True, exist_ok=True)
        self._profiler.export_chrome_trace(str(self.folder / TRACE_FILE))
        table = self._table()
        (self.folder / TABLE_FILE).write_text(json.dumps(table, indent=1))
        logger.info("%s", render(table))
        return True

    def close(self, done: int) -> None:
        """Call when the process makes no more updates, after `done` of them; a recording that has begun is dropped."""
        if not self._recording:
            return
        self._end()
        logger.warning(
            f"train.profile_steps [{self._first}, {self._last}] is not written: training ended after step {done}; "
            "the next start says which steps can be profiled"
        )

    def _end(self) -> None:
        self._update.close()  # where an error ended the update
        self._profiler.stop()
        self._recording = False

    def _table(self) -> dict[str, Any]:
        num_steps = self._last - self._first + 1
        parts = {name: seconds / num_steps for name, seconds in self._clock.seconds().items()}
        return {
            "steps": [self._first, self._last],
            "clock": "device" if self._device.type == "cuda" else "wall",
            "seconds_per_step": sum(parts.values()),
            "parts": parts,
            "communication_seconds": self._communication() / num_steps,
        }

    def _communication(self) -> float:
        """Seconds in which a collective of this rank was under way; it lies within the parts, and may overlap work.

        That of a save or an evaluation between two updates counts too: a trace does not say what a kernel was for.
        """
        on_device = self._device.type == "cuda"
        total = 0.0
        for event in self._profiler.events() or []:  # type: ignore[no-untyped-call]
            # On a GPU the kernels alone: the host's event, and its mark on the device, span the same time once more.
            if event.name.startswith(_KERNELS if on_device else _COLLECTIVES):
                total += event.time_range.elapsed_us()
        return total / 1e6


def render(table: dict[str, Any]) -> str:
    """Lines for people, from what `steps.json` holds."""
    whole = table["seconds_per_step"]
    first, last = table["steps"]
    lines = [f"steps {first} to {last}: {1000 * whole:.1f} ms per step ({table['clock']} time)"]
    lines += [
        f"  {name:<16} {1000 * part:9.1f} ms {100 * part / whole:5.1f} %" for name, part in table["parts"].items()
    ]
    communication = table["communication_seconds"]
    lines.append(f"  of which communication {1000 * communication:.1f} ms ({100 * communication / whole:.1f} %)")
    return "\n".join(lines)
