"""`dmt-ds predict`: a classifier's labels, an encoder's features, or what denser models say, of a person's images."""

import json
import logging
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor

from dmt_ds.commands.image_progress import ImageProgress
from dmt_ds.commands.model_source import find_model, find_own_form
from dmt_ds.commands.output_files import written_whole
from dmt_ds.commands.predictions import predict_masks, predict_objects
from dmt_ds.commands.predictions.predict_images import check_any, leave_out, read_image
from dmt_ds.config.schema import Interpolation
from dmt_ds.data.augment import normalize
from dmt_ds.data.files import find_images
from dmt_ds.data.views import center_crop
from dmt_ds.errors import ConfigError, ExportError
from dmt_ds.models.backbone_folder import CONFIG_FILE
from dmt_ds.models.classifier_folder import CLASSES_FILE
from dmt_ds.models.encoders import load_encoder
from dmt_ds.models.portable import Preprocessing, read_portable
from dmt_ds.run_files import DETECTOR_FOLDER, SEGMENTER_FOLDER
from dmt_ds.tracking.object_pictures import SHOWN_FROM

logger = logging.getLogger(__name__)

PREDICTIONS_FILE, SHEET_FILE, FEATURES_FILE = "predictions.json", "contact_sheet.png", "features.npz"
TOP_K, BATCH_SIZE = 5, 64
MAX_PICTURED = 48
"""Images on the contact sheet."""
_DECODERS = 4


class _Model(NamedTuple):
    """What is asked, and how its images are prepared."""

    answer: Callable[[Tensor], Tensor]
    """Uint8 images [B, 3, H, W] -> scores [B, C], or tokens [B, 1+N, D]."""
    class_names: tuple[str, ...]
    image_size: int
    interpolation: Interpolation


class _Answered(NamedTuple):
    """One batch: the names of the images that could be read, their pixels, and the model's answer to them."""

    names: list[str]
    images: Tensor
    answer: Tensor


class Options(NamedTuple):
    """What a person may ask for; None takes the default, where the model has it."""

    top_k: int | None = None
    """Classes to tell of an image, of a classifier."""
    batch_size: int | None = None
    """Images at once, of a classifier and an encoder: a denser model has one at a time, as sizes differ."""
    score_threshold: float | None = None
    """Lowest score of an object in a detector's pictures."""

    def check_used(self, kind: str, *used: str) -> None:
        """Nothing is asked for that the model has not.

        Raises:
            ConfigError: something is.
        """
        for name, value in self._asdict().items():
            if value is not None and name not in used:
                raise ConfigError(f"--{name.replace('_', '-')}: not used for {kind}; leave it out")


def run(source: str, paths: Sequence[str], out: Path, options: Options, device: torch.device) -> list[Path]:
    """Answer for every image that can be read; those that can't are named in the log and, of labels, in the file.

    Args:
        source: run, checkpoint, exported folder in timm's form; of encoders also whatever a teacher's `source` may be.
            Of a run with a segmenter or a detector it is that model that is asked, which writes its own files.
        paths: files, and folders of any depth.
        out: folder for what is written: `predictions.json` and `contact_sheet.png`, or `features.npz`.

    Returns:
        What was written.

    Raises:
        ConfigError: an option is not for this model.
        DataError: a path does not exist, or no image can be read.
        ExportError: there is no such model, or `out` has predictions already.
        WeightsError: the model can't be loaded.
    """
    files = find_images(paths)
    names: tuple[str, ...]
    if (segmenter := find_own_form(source, SEGMENTER_FOLDER)) is not None:
        options.check_used("a segmenter")
        names = predict_masks.WRITTEN
        with written_whole(out, names) as folder:
            predict_masks.run(segmenter, source, files, folder, device)
    elif (detector := find_own_form(source, DETECTOR_FOLDER)) is not None:
        options.check_used("a detector", "score_threshold")
        names = predict_objects.WRITTEN
        shown_from = SHOWN_FROM if options.score_threshold is None else options.score_threshold
        with written_whole(out, names) as folder:
            predict_objects.run(detector, source, files, folder, device, shown_from)
    else:
        names = _answer(source, files, out, options, device)
    return [out / name for name in names]


def _answer(source: str, files: Sequence[str], out: Path, options: Options, device: torch.device) -> tuple[str, ...]:
    """Labels or features; the names of what was written."""
    model = _open(source, device)
    kind = ("a classifier", "top_k", "batch_size") if model.class_names else ("an encoder", "batch_size")
    options.check_used(*kind)
    unreadable: dict[str, str] = {}
    names = (PREDICTIONS_FILE, SHEET_FILE) if model.class_names else (FEATURES_FILE,)
    with written_whole(out, names) as folder:
        batches = _answers(model, files, options.batch_size or BATCH_SIZE, unreadable)
        if model.class_names:
            contents = _labels(model, batches, options.top_k or TOP_K, unreadable, source)
            check_any(contents["images"], unreadable)
            _draw(contents.pop("pictures"), len(contents["images"]), folder / SHEET_FILE)
            (folder / PREDICTIONS_FILE).write_text(json.dumps(contents, indent=1) + "\n")
        else:
            features = _features(batches)
            check_any(features["names"], unreadable)
            np.savez(folder / FEATURES_FILE, **features)
    return names


def _open(source: str, device: torch.device) -> _Model:
    path = Path(source).expanduser()
    config_file = path / CONFIG_FILE
    foreign = config_file.is_file() and '"model_type"' in config_file.read_text()
    if foreign and "ForImageClassification" in config_file.read_text():
        raise ExportError(
            f"{source}: labels come from the run itself or from a `--format timm` export; name one of them"
        )
    folder = None if foreign or not path.is_dir() else find_model(source).folder
    if folder is not None and (folder / CLASSES_FILE).is_file():
        portable = read_portable(folder)
        portable.vit.to(device)
        how = portable.preprocessing

        def scores(images: Tensor) -> Tensor:
            return portable(normalize(images.to(device), how.mean, how.std))

        return _Model(scores, portable.class_names, how.image_size, _known(how.interpolation))
    encoder = load_encoder(source if folder is None else str(folder)).to(device)

    @torch.no_grad()
    def tokens(images: Tensor) -> Tensor:
        found: Tensor = encoder(images.to(device))
        return found

    how = Preprocessing(encoder.record.shape.image_size)
    if folder is not None:
        how = Preprocessing.of_config(json.loads((folder / CONFIG_FILE).read_text())["pretrained_cfg"])
    return _Model(tokens, (), how.image_size, _known(how.interpolation))


def _known(interpolation: str) -> Interpolation:
    return cast(Interpolation, interpolation if interpolation == "bilinear" else "bicubic")


def _answers(model: _Model, files: Sequence[str], batch_size: int, unreadable: dict[str, str]) -> Iterator[_Answered]:
    """Answers in the order of the files; the next batch is decoded meanwhile."""

    def read(path: str) -> Tensor | str:
        image = read_image(path)
        return image if isinstance(image, str) else center_crop(image, model.image_size, model.interpolation)

    report = ImageProgress(len(files))
    rows = [files[start : start + batch_size] for start in range(0, len(files), batch_size)]
    with ThreadPoolExecutor(_DECODERS) as threads:
        waiting = [threads.submit(read, path) for path in rows[0]]
        for number, row in enumerate(rows):
            decoded = [future.result() for future in waiting]
            waiting = [threads.submit(read, path) for path in (rows[number + 1] if number + 1 < len(rows) else [])]
            good = {path: image for path, image in zip(row, decoded, strict=True) if isinstance(image, Tensor)}
            for path, reason in zip(row, decoded, strict=True):
                if isinstance(reason, str):
                    leave_out(path, reason, unreadable)
            if good:
                images = torch.stack(list(good.values()))
                yield _Answered(list(good), images, model.answer(images).float().cpu())
            report.advance(len(row))
    report.close()


def _labels(
    model: _Model, batches: Iterator[_Answered], top_k: int, unreadable: dict[str, str], source: str
) -> dict[str, Any]:
    """What `predictions.json` holds, and the first images with their answers under `pictures`."""
    images: dict[str, list[dict[str, object]]] = {}
    pictures: list[tuple[Tensor, str, float, str]] = []
    for batch in batches:
        values, classes = batch.answer.softmax(dim=1).topk(min(top_k, len(model.class_names)), dim=1)
        for name, image, row, numbers in zip(batch.names, batch.images, values.tolist(), classes.tolist(), strict=True):
            images[name] = [
                {"label": model.class_names[number], "probability": round(value, 6)}
                for number, value in zip(numbers, row, strict=True)
            ]
            if len(pictures) < MAX_PICTURED:
                pictures.append((image, model.class_names[numbers[0]], row[0], Path(name).name))
    return {"model": source, "images": images, "unreadable": unreadable, "pictures": pictures}


def _features(batches: Iterator[_Answered]) -> dict[str, Any]:
    """Names [n], class tokens and mean patch tokens, [n, D] float32 each."""
    names: list[str] = []
    class_tokens: list[Tensor] = []
    patch_means: list[Tensor] = []
    for batch in batches:
        names += batch.names
        class_tokens.append(batch.answer[:, 0])
        patch_means.append(batch.answer[:, 1:].mean(dim=1))
    told = {"class_token": class_tokens, "patch_mean": patch_means}
    return {"names": np.array(names, dtype=np.str_)} | {
        key: torch.cat(parts).numpy() if parts else np.zeros((0, 0), np.float32) for key, parts in told.items()
    }


def _draw(pictures: Sequence[tuple[Tensor, str, float, str]], num_images: int, path: Path) -> None:
    from dmt_ds.tracking.answer_pictures import draw_sheet

    shown = len(pictures)
    draw_sheet(
        pictures, path, f"{shown} images" if shown == num_images else f"the first {shown} of {num_images} images"
    )
