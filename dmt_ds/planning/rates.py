"""How fast a GPU, its links and a loader are taken to be: assumed from data sheets, or measured by `dmt-ds bench`."""

import itertools
import json
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path

from dmt_ds.errors import ConfigError
from dmt_ds.planning.gpus import Gpu

TEACHER_UTILISATION = {192: 0.25, 384: 0.40, 768: 0.51, 1024: 0.56}
STUDENT_UTILISATION = {192: 0.11, 384: 0.22, 768: 0.33, 1024: 0.39}
"""Width -> share of the dense rate, forward or forward and backward, compiled. Of teachers 768 wide and of students up
to that: whole steps on one H200, 256 images (ViT-B: 128), what the host made it wait included. Others are guesses."""
LINK_UTILISATION = 0.75
"""Share of a link's data-sheet rate that collectives of many megabytes reach."""
LOADER_SECONDS = 2.5e-3
"""Seconds per image on one core: decode a 500 x 375 JPEG, crop, resize, hand over; 1.5e-3 on a fast, idle core."""


@dataclass(frozen=True)
class Rates:
    """What times are made of.

    Attributes:
        teacher_flops: operations a second in the teachers' forward.
        student_flops: operations a second in the student's forward and backward.
        memory_bytes: of the GPU's memory, a second.
        link_bytes: between GPUs of a node, one way, a second.
        network_bytes: that a node sends, a second.
        loader_seconds: of one core, an image.
        sources: rate -> where it is from.
    """

    teacher_flops: float
    student_flops: float
    memory_bytes: float
    link_bytes: float
    network_bytes: float
    loader_seconds: float
    sources: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Calibration:
    """What `dmt-ds bench` measured; None where it could not.

    Attributes:
        device: where.
        date: ISO.
        micro_batch_size: images at once.
        gather_bytes: received a second in an all-gather; needs several ranks.
    """

    device: str
    date: str
    micro_batch_size: int
    teacher_flops: float | None
    student_flops: float | None
    loader_seconds: float | None
    gather_bytes: float | None

    def write(self, path: Path) -> None:
        """Write it as JSON."""
        path.write_text(json.dumps(asdict(self), indent=1) + "\n")

    @classmethod
    def read(cls, path: Path) -> "Calibration":
        """Read what `write` wrote.

        Raises:
            ConfigError: it is not such a file.
        """
        remedy = f"`dmt-ds bench -o {path}` makes one"
        try:
            told = json.loads(path.read_text())
        except (OSError, ValueError) as error:
            raise ConfigError(f"--calibration {path}: not a file of `dmt-ds bench`: {error}; {remedy}") from None
        if problem := _problem(told):
            raise ConfigError(f"--calibration {path}: not a file of `dmt-ds bench`: {problem}; {remedy}")
        return cls(**told)


def _problem(told: object) -> str | None:
    """What keeps a JSON value from being a calibration; None where nothing does."""
    if not isinstance(told, dict):
        return "it must be an object, {...}"
    kinds = {key.name: key.type for key in fields(Calibration)}
    for keys, what in (([key for key in kinds if key not in told], "missing"), ([*told.keys() - kinds], "not known")):
        if keys:
            return f"{', '.join(keys)} {'is' if len(keys) == 1 else 'are'} {what}"
    wrong = [f"{key}={json.dumps(told[key])}" for key, kind in kinds.items() if not isinstance(told[key], kind | int)]
    if wrong:
        return f"{', '.join(wrong)} can't be"
    low = [
        f"{key}={json.dumps(value)}" for key, value in told.items() if not isinstance(value, str | None) and value <= 0
    ]
    return f"{', '.join(low)} must be above 0" if low else None


def assumed(gpu: Gpu, teacher_width: int, student_width: int, network_gbit: float) -> Rates:
    """Rates by data sheets and the shares above.

    Args:
        network_gbit: that a node sends, in 10^9 bits a second.
    """
    dense = 1e12 * gpu.bf16_tflops
    teacher, student = at_width(TEACHER_UTILISATION, teacher_width), at_width(STUDENT_UTILISATION, student_width)
    return Rates(
        teacher_flops=teacher * dense,
        student_flops=student * dense,
        memory_bytes=1e12 * gpu.memory_tbps,
        link_bytes=LINK_UTILISATION * 1e9 * gpu.link_gbps,
        network_bytes=LINK_UTILISATION * 1e9 * network_gbit / 8,
        loader_seconds=LOADER_SECONDS,
        sources={
            "teachers": f"assumed: {100 * teacher:.0f} % of {gpu.bf16_tflops:g} TFLOP/s (data sheet, dense bf16), as "
            "whole copies reach it with 256 images at once (for a ViT-B: 128); fewer at once reach less",
            "student": f"assumed: {100 * student:.0f} % of {gpu.bf16_tflops:g} TFLOP/s",
            "links": f"assumed: {100 * LINK_UTILISATION:.0f} % of {gpu.link_gbps:g} GB/s within a node, of "
            f"{network_gbit:g} Gbit/s per node between nodes",
            "loader": f"assumed: {1000 * LOADER_SECONDS:g} ms of one core per image",
        },
    )


def calibrated(rates: Rates, found: Calibration) -> Rates:
    """Measured rates in place of assumed ones, where there are some."""
    words = f"measured on {found.device}, {found.date}"
    measured = {
        "teacher_flops": ("teachers", found.teacher_flops),
        "student_flops": ("student", found.student_flops),
        "loader_seconds": ("loader", found.loader_seconds),
        "link_bytes": ("links", found.gather_bytes),
    }
    for name, (source, value) in measured.items():
        if value is not None:
            amount = f"{1000 * value:.3g} ms per image" if source == "loader" else f"{value:.3g}/s"
            alone = ", forward and backward alone" if source == "student" else ""
            rates = replace(rates, **{name: value}, sources={**rates.sources, source: f"{words}: {amount}{alone}"})
    return rates


def at_width(table: dict[int, float], width: int) -> float:
    """A share for a width: straight lines between the table's entries, flat outside of them."""
    widths = sorted(table)
    if width <= widths[0]:
        return table[widths[0]]
    for low, high in itertools.pairwise(widths):
        if width <= high:
            return table[low] + (table[high] - table[low]) * (width - low) / (high - low)
    return table[widths[-1]]
