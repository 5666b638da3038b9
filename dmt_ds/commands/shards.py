"""`dmt-ds shards make`: writes smaller copies of a recipe's images, and says what that does to training."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import PIL
import torch

from dmt_ds.config.schema import DataConfig
from dmt_ds.data.cores import cores_of_rank
from dmt_ds.data.shards import Change, ShardSettings, make_shards, measure_change
from dmt_ds.data.sources import ImageSource, open_source
from dmt_ds.data.splits import Split
from dmt_ds.data.views import CropSpec
from dmt_ds.errors import DataError

RECORD = "shards.json"


def run(
    data: DataConfig,
    folder: Path,
    splits: Sequence[Split],
    settings: ShardSettings,
    num_workers: int | None,
    say: Callable[[str], None],
) -> None:
    """Make what is missing of the shards of these splits in `folder`.

    Args:
        num_workers: processes; None takes one a core.

    Raises:
        DataError: the images can't be read, or the folder holds shards of other images or settings.
    """
    sources = {split: open_source(data, split) for split in splits}
    crop = CropSpec.from_section(data)
    changes = {split: measure_change(source, settings, crop) for split, source in sources.items()}
    folder.mkdir(parents=True, exist_ok=True)
    _claim(folder, settings, {_file_name(split): source for split, source in sources.items()})
    for split, source in sources.items():
        say(_describe(split, source, settings, crop, changes[split]))
        for done, total in make_shards(source, folder, _file_name(split), settings, num_workers or cores_of_rank()):
            say(f"{split}: {done} of {total} shards")
    labels = "" if all(source.class_names for source in sources.values()) else " data.label_column=null"
    say(f"train on them with: data.source=parquet data.path={folder}{labels}")


def _file_name(split: Split) -> str:
    """What a recipe expects by default."""
    return "train" if split == "train" else "validation"


def _claim(folder: Path, settings: ShardSettings, sources: Mapping[str, ImageSource]) -> None:
    """Write down what the shards are made of and by what, or see that those which are there are of the same."""
    how = {**asdict(settings), "torch": torch.__version__, "pillow": PIL.__version__}
    of = {name: {"fingerprint": source.fingerprint, "images": len(source)} for name, source in sources.items()}
    path = folder / RECORD
    if path.exists():
        before = json.loads(path.read_text())
        pairs = [(key, before["how"].get(key), value) for key, value in how.items()]
        pairs += [(f"{name} images", before["of"].get(name, value), value) for name, value in of.items()]
        differences = [f"{what} {old}, not {new}" for what, old, new in pairs if old != new]
        if differences:
            raise DataError(f"{folder} holds shards with {'; '.join(differences)}: choose another folder, or remove it")
        of = {**before["of"], **of}
    elif any(folder.glob("*.parquet")):
        raise DataError(f"{folder} holds parquet files but no {RECORD}: choose another folder")
    path.write_text(json.dumps({"how": how, "of": of}, indent=1) + "\n")


def _describe(split: Split, source: ImageSource, settings: ShardSettings, crop: CropSpec, change: Change) -> str:
    megabytes = change.bytes_an_image * len(source) / 1e6
    size = f"{megabytes:,.0f}" if megabytes >= 10 else f"{megabytes:.2g}"
    before, after = (f"{100 * share:.0f} %" for share in (change.enlarged_before, change.enlarged_after))
    return (
        f"{split}: {len(source)} images, short side at most {settings.short_side}, JPEG quality {settings.quality}: "
        f"about {size} MB. The copies are not the originals: crops of {crop.size} pixels differ by "
        f"{change.mean_difference:.2f} of 255 in the mean, and {after} of them are enlarged"
        + (", as before" if after == before else f" instead of {before}")
    )
