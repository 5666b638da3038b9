"""CPU seconds an image of the loader, beside what people write with torchvision, on the same JPEG files.

    python benchmarks/bench_loader.py                            # pictures of 1/f noise, 500 x 375, made on the spot
    python benchmarks/bench_loader.py /data/photos --workers 8   # any folder with one folder a class

Peers: TinyMIM's loop (ImageFolder, Pillow, bicubic crop and flip, two float32 tensors an image: one normalised, one
jittered and normalised), and torchvision's v2 transforms on uint8, the strongest that torchvision offers. Ours gives
uint8 too; its second figure is for `dmt-ds shards make` copies of the files, short side 256, quality 95. Jitter and
both normalisations, which TinyMIM's workers do, are the device's here: what they would take on a CPU core is a figure
of its own. Counted is the CPU time, user and system, of this process and of all its loader processes, from a batch in
full run to another. Rounds alternate; medians and ranges are printed, and nothing is asserted: machines are noisy.
Files come from the page cache. Pixels are compared with Pillow's crop.
"""

import argparse
import os
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import harness
import numpy as np
import PIL
import psutil
import torch
import torchvision
from harness import Report, Spread
from pictures import make_pictures
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, RandomSampler
from torchvision import transforms
from torchvision.datasets import ImageFolder
from torchvision.io import ImageReadMode, decode_jpeg, read_file
from torchvision.transforms import v2

from dmt_ds.config.methods import AugmentConfig
from dmt_ds.config.schema import DataConfig
from dmt_ds.data.augment import Augment, normalize
from dmt_ds.data.batch_maker import TrainBatchMaker
from dmt_ds.data.folder import FolderSource
from dmt_ds.data.loader import TrainLoader
from dmt_ds.data.sampling import SampleStream
from dmt_ds.data.shards import ShardSettings, make_shards
from dmt_ds.data.sources import ImageSource, open_source
from dmt_ds.data.views import CropSpec, crop_box, crop_numbers, cut

BICUBIC = Image.Resampling.BICUBIC
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
WARM_UP_BATCHES = 8


class TwoViews:
    """TinyMIM's transforms: one crop and flip, then the teacher's tensor and the student's."""

    def __init__(self, size: int) -> None:
        bicubic = transforms.InterpolationMode.BICUBIC
        self.shared = transforms.Compose(
            [
                transforms.RandomResizedCrop(size, scale=(0.2, 1.0), interpolation=bicubic),
                transforms.RandomHorizontalFlip(),
            ]
        )
        self.teacher = transforms.Compose([transforms.ToTensor(), transforms.Normalize(MEAN, STD)])
        self.student = transforms.Compose([transforms.ColorJitter(0.4, 0.4, 0.4), *self.teacher.transforms])

    def __call__(self, image: Image.Image) -> list[Tensor]:
        crop = self.shared(image)
        return [self.teacher(crop), self.student(crop)]


def read_uint8(path: str) -> Tensor:
    return decode_jpeg(read_file(path), mode=ImageReadMode.RGB)


def tinymim_batches(root: Path, options: argparse.Namespace) -> Iterator[list[Tensor]]:
    return torch_batches(ImageFolder(str(root), TwoViews(options.size)), options)


def v2_batches(root: Path, options: argparse.Namespace) -> Iterator[list[Tensor]]:
    crop = v2.RandomResizedCrop(options.size, scale=(0.2, 1.0), interpolation=v2.InterpolationMode.BICUBIC)
    both = v2.Compose([crop, v2.RandomHorizontalFlip()])
    return torch_batches(ImageFolder(str(root), both, loader=read_uint8), options)


def torch_batches(folder: ImageFolder, options: argparse.Namespace) -> Iterator[list[Tensor]]:
    endless = RandomSampler(folder, num_samples=10**9)  # one epoch, so that no round pays for starting processes
    for images, _ in DataLoader(folder, options.batch, sampler=endless, num_workers=options.workers):
        yield images if isinstance(images, list) else [images]


def our_batches(root: Path, options: argparse.Namespace) -> Iterator[list[Tensor]]:
    return uint8_batches(FolderSource(root), options)


def our_shard_batches(_root: Path, options: argparse.Namespace) -> Iterator[list[Tensor]]:
    return uint8_batches(open_source(DataConfig(source="parquet", path=str(options.shards)), "train"), options)


def uint8_batches(source: ImageSource, options: argparse.Namespace) -> Iterator[list[Tensor]]:
    loader = TrainLoader(
        TrainBatchMaker(source, [CropSpec.from_section(DataConfig(image_size=options.size))], 0, "stop"),
        SampleStream(len(source), 0),
        micro_batch_size=options.batch,
        num_workers=options.workers,
    )
    for batch in loader.batches(0, 10**6, 1):
        yield list(batch.crops)


LOADERS: dict[str, Callable[[Path, argparse.Namespace], Iterator[list[Tensor]]]] = {
    "tinymim": tinymim_batches,
    "torchvision_v2_uint8": v2_batches,
    "dmt_ds": our_batches,
    "dmt_ds_shards": our_shard_batches,
}


def cpu_seconds() -> float:
    """Of this process and all below it."""
    me = psutil.Process()
    times = [process.cpu_times() for process in [me, *me.children(recursive=True)]]
    return sum(time.user + time.system for time in times)


def milliseconds_an_image(batches: Iterator[list[Tensor]], options: argparse.Namespace) -> float:
    for _ in islice(batches, WARM_UP_BATCHES):
        pass
    start = cpu_seconds()
    for _ in islice(batches, options.steps):
        pass
    spent = cpu_seconds() - start
    batches.close()  # type: ignore[attr-defined]
    return 1000 * spent / (options.steps * options.batch)


def device_milliseconds(batches: Iterator[list[Tensor]]) -> float:
    """What is left to the device, on one core of the CPU: the teacher's normalisation, the student's jitter and its."""
    augment = Augment(AugmentConfig(brightness=0.4, contrast=0.4, saturation=0.4))
    images = next(batches)[0][:16]  # larger tensors pass glibc's limit of 32 MiB: what is measured is page faults
    batches.close()  # type: ignore[attr-defined]
    start = time.process_time()
    for _ in range(5):
        normalize(images, augment.section.mean, augment.section.std)
        augment(images, torch.arange(len(images)))
    return 1000 * (time.process_time() - start) / (5 * len(images))


def payload_bytes(batches: Iterator[list[Tensor]], options: argparse.Namespace) -> int:
    """What goes to the device for one image."""
    total = sum(images.nbytes for images in next(batches)) // options.batch
    batches.close()  # type: ignore[attr-defined]
    return total


def pixel_errors(source: FolderSource, size: int, count: int) -> dict[str, float]:
    """Differences, of 255, between our crops and Pillow's of the same boxes."""
    spec = CropSpec(size, flip=0.0)
    errors = []
    for index in range(min(count, len(source))):
        with Image.open(source.name(index)) as file:
            image = file.convert("RGB")
        (numbers,) = crop_numbers(torch.tensor([index]), 0)
        top, left, height, width = crop_box(image.height, image.width, spec, numbers)
        theirs = image.crop((left, top, left + width, top + height)).resize((size, size), BICUBIC)
        ours = cut(source.read(index), spec, numbers).permute(1, 2, 0).numpy().astype(int)
        errors.append(np.abs(ours - np.asarray(theirs)))
    return {"mean_of_255": float(np.mean(errors)), "largest_of_255": float(np.max(errors))}


def main() -> None:
    parser = harness.parser(__doc__, rounds=7, steps=10)
    parser.add_argument("folder", type=Path, nargs="?", help="one folder a class in it, JPEG files in these")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    harness.start(options)
    warnings.filterwarnings("ignore", message=".*decod.*deprecated.*")
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["HF_DATASETS_CACHE"] = scratch
        if options.folder is None:
            make_pictures(Path(scratch), 128)
        root = options.folder or Path(scratch) / "train"
        options.shards = Path(scratch) / "shards"
        options.shards.mkdir()
        for _ in make_shards(FolderSource(root), options.shards, "train", ShardSettings(256, 95), num_workers=1):
            pass
        measure(root, options).publish(options)


def measure(root: Path, options: argparse.Namespace) -> Report:
    spent: dict[str, list[float]] = {name: [] for name in LOADERS}
    for _ in range(options.rounds):
        for name, make in LOADERS.items():
            spent[name].append(milliseconds_an_image(make(root, options), options))
    source, kind = FolderSource(root), "photographs" if options.folder else "noise"
    sizes = [Path(source.name(index)).stat().st_size for index in range(len(source))]
    what = f"{len(source)} {kind}, {np.mean(sizes) / 1000:.0f} kB in the mean"
    setting: dict[str, object] = {"files": what, "crop": options.size, "batch": options.batch}
    setting |= {"loader_processes": options.workers, "rounds": options.rounds, "batches_a_round": options.steps}
    report = Report(f"loader_{kind}_cpu", "The loader", setting, raw={"cpu_milliseconds_an_image": spent})
    for name, make in LOADERS.items():
        shares = {
            f"of {base}'s": Spread.of([own / other for own, other in zip(spent[name], spent[base], strict=True)])
            for base in ("tinymim", "torchvision_v2_uint8")
        }
        report.rows.append(
            {
                "loader": name,
                "CPU ms an image": Spread.of(spent[name]).text(),
                **{base: share.text() for base, share in shares.items()},
                "bytes to the device, an image": f"{payload_bytes(make(root, options), options):,}",
            }
        )
    report.metrics = {f"{name}_ms": statistics.median(values) for name, values in spent.items()}
    on_device = [device_milliseconds(our_batches(root, options)) for _ in range(options.rounds)]
    errors = pixel_errors(source, options.size, 128)
    report.raw |= {"jitter_and_normalisation_on_the_cpu_milliseconds": on_device, "pixels_against_pillow": errors}
    report.notes = [
        f"Jitter and both normalisations, which TinyMIM's workers do and ours leave to the device, take "
        f"{Spread.of(on_device).text()} ms an image on one core.",
        f"Pixels against Pillow's bicubic crop, of 255: mean {errors['mean_of_255']:.3f}, "
        f"largest {errors['largest_of_255']:.0f}.",
        f"torchvision {torchvision.__version__}, Pillow {PIL.__version__}.",
    ]
    return report


if __name__ == "__main__":
    main()
