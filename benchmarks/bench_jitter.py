"""Jitter and normalisation of a batch on its device: torchvision an image at a time, whole batches, our kernels.

    python benchmarks/bench_jitter.py                  # 16 crops of 224 on a CPU, 256 on a GPU
    python benchmarks/bench_jitter.py --batch 64 --size 112

Once with the paper's jitter (brightness, contrast, saturation 0.4) and once with hue as well. The kernels run on CUDA;
their pixels are held against those of whole batches in torch before any timing. Drawing strengths is timed too.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from unittest import mock

import harness
import torch
from harness import Report, Spread
from torch import Tensor
from torchvision.transforms import v2

from dmt_ds.config.methods import AugmentConfig
from dmt_ds.data import augment
from dmt_ds.data.augment import Augment

LARGEST_DIFFERENCE = 1e-4  # normalised: sums of greys are added up in another order
CASES = {"three": AugmentConfig(), "three and hue": AugmentConfig(hue=0.1)}

Jitter = Callable[[Tensor, Tensor], Tensor]


def without_kernels() -> AbstractContextManager[object]:
    return mock.patch.object(augment, "_has_kernel", return_value=False)


def one_by_one(section: AugmentConfig) -> Jitter:
    """As TinyMIM's loaders do it, here on the device."""
    chain = v2.Compose(
        [
            v2.ToDtype(torch.float32, scale=True),
            v2.ColorJitter(section.brightness, section.contrast, section.saturation, section.hue),
            v2.Normalize(section.mean, section.std),
        ]
    )
    return lambda images, seeds: torch.stack([chain(image) for image in images])


def in_torch(section: AugmentConfig, images: Tensor, seeds: Tensor) -> Tensor:
    with without_kernels():
        return Augment(section)(images, seeds)


def sides_of(section: AugmentConfig, device: torch.device) -> dict[str, Jitter]:
    sides: dict[str, Jitter] = {
        "torchvision, an image at a time": one_by_one(section),
        "torch, the whole batch": partial(in_torch, section),
    }
    return sides | ({"two kernels": Augment(section)} if device.type == "cuda" else {})


def check(sides: dict[str, Jitter], images: Tensor, seeds: Tensor) -> float:
    """Largest difference of the kernels' pixels from torch's; 0 where there are none.

    Raises:
        SystemExit: it is too large to compare times.
    """
    if "two kernels" not in sides:
        return 0.0
    found, wanted = (sides[name](images, seeds) for name in ("two kernels", "torch, the whole batch"))
    difference = (found - wanted).abs().max().item()
    if difference > LARGEST_DIFFERENCE:
        raise SystemExit(f"the kernels' pixels differ by {difference:.1e} from torch's")
    return difference


def add_rows(report: Report, case: str, times: dict[str, list[float]]) -> None:
    base = next(iter(times))
    for name, seconds in times.items():
        ratio = harness.ratios(times[base], seconds)
        report.rows.append(
            {
                "jitter": case,
                "how": name,
                "ms": Spread.of(seconds).text(1e3),
                "times faster than torchvision": "1" if name == base else ratio.text(),
                "seen": "" if name == base else harness.verdict(ratio),
            }
        )
        report.metrics[f"{case}/{name}/ms"] = 1e3 * Spread.of(seconds).median


def main() -> None:
    on_gpu = torch.cuda.is_available()
    parser = harness.parser(__doc__, rounds=9, steps=10 if on_gpu else 1)
    parser.add_argument("--batch", type=int, default=256 if on_gpu else 16)
    parser.add_argument("--size", type=int, default=224)
    options = parser.parse_args()
    device = harness.start(options)
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (options.batch, options.size, options.size, 3), generator=generator)
    images = images.to(torch.uint8).to(device).permute(0, 3, 1, 2)  # colours side by side, as the loader gives it
    seeds = torch.arange(options.batch, device=device)
    setting = {"batch": options.batch, "size": options.size, "rounds": options.rounds, "steps": options.steps}
    report = Report(f"jitter_{harness.device_slug(device)}", "Jitter and normalisation", setting)
    cases = {case: sides_of(section, device) for case, section in CASES.items()}
    differences = {case: check(sides, images, seeds) for case, sides in cases.items()}
    with harness.turn():
        for case, sides in cases.items():
            acts = {name: partial(jitter, images, seeds) for name, jitter in sides.items()}
            times = harness.alternate(acts, options.rounds, options.steps, device)
            add_rows(report, case, times)
            report.raw[case] = {"seconds": times, "largest_difference": differences[case]}
    report.notes.append("Times are CPU seconds on a CPU; on a GPU until the device is done, the host's time included.")
    report.publish(options)


if __name__ == "__main__":
    main()
