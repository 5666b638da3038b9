"""Frozen encoders from any source, each with its own normalisation; knows no sharding, no fusion, no student."""

import dataclasses
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dmt_ds.config.section import IMAGENET_MEAN, IMAGENET_STD, Triple
from dmt_ds.config.teachers import TeacherConfig
from dmt_ds.errors import WeightsError
from dmt_ds.models.backbone_folder import CONFIG_FILE, family_members, load_backbone, spdx_id
from dmt_ds.models.blueprint import build_from, heads_are_guessed
from dmt_ds.models.hf_vit import read_file, read_hf
from dmt_ds.models.patch_grid import check_image_size, move_to_image_size
from dmt_ds.models.vit import VitShape, pretrained, shape_of, tokens_of
from dmt_ds.models.weights import Weights, hash_of_tensors, triple
from dmt_ds.run_files import BACKBONE_FOLDER, CHECKPOINTS_FOLDER, LATEST_FILE

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class EncoderRecord:
    """What a run remembers of an encoder that it does not train: a teacher, what it starts from, what is judged.

    Attributes:
        source: as the recipe has it.
        layout: `mae`, `moco_v3`, ..., `timm`, `hf`, or `dmt_ds` for a run's encoder.
        shape: of the ViT.
        mean: of the pixels in 0..1 that it expects.
        std: the same.
        licence: SPDX id of the weights; None where nobody said.
        sha256: of the weights file (of all tensors, for timm's tags); None where the weights are of no file.
        dropped: keys of the file that are not the encoder's.
        guessed_heads: whether the number of heads is the usual one for the width, and nobody said it.
    """

    source: str
    layout: str
    shape: VitShape
    mean: Triple
    std: Triple
    licence: str | None = None
    sha256: str | None = None
    dropped: tuple[str, ...] = ()
    guessed_heads: bool = False

    def as_params(self) -> dict[str, Any]:
        """Flat plain values, for the tracker and for JSON."""
        shape = dataclasses.asdict(self.shape)
        own = {key: getattr(self, key) for key in ("source", "layout", "licence", "sha256")}
        return own | shape | {"mean": list(self.mean), "std": list(self.std), "dropped": summary_of(self.dropped)}


class FrozenEncoder(nn.Module):
    """A frozen ViT that takes the shared crop as it is and normalises it itself.

    Args:
        vit: with its weights.
        record: says its normalisation.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, vit: nn.Module, record: EncoderRecord) -> None:
        super().__init__()
        self.vit = vit.requires_grad_(False)
        self.record = record
        self._set_normalisation(torch.device("cpu"))
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] uint8 -> teacher_tokens [B, 1+N, D], class token first, after the final LayerNorm."""
        return tokens_of(self.vit, self.normalised(images))

    def normalised(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] uint8 -> the same normalised, in the weights' type; computed in float32 whatever that is."""
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
            raise TypeError(f"images are {list(images.shape)} {images.dtype}, must be [B, 3, H, W] torch.uint8")
        dtype = next(self.vit.parameters()).dtype
        if torch.compiler.is_compiling():
            return torch.addcmul(self.shift, images, self.scale).to(dtype)
        made = torch.empty_like(images, dtype=dtype)
        with torch.no_grad():  # which `out` asks for; on CUDA it is one kernel, from bytes to the weights' type
            return torch.addcmul(self.shift, images, self.scale, out=made)

    def train(self, mode: bool = True) -> "FrozenEncoder":
        """A frozen encoder is always in evaluation."""
        return super().train(False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "FrozenEncoder":
        """Moves with the weights, but `teacher.to(torch.bfloat16)` leaves the normalisation in float32."""
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self._set_normalisation(self.scale.device)
        return self

    def _set_normalisation(self, device: torch.device) -> None:
        mean, std = torch.tensor((self.record.mean, self.record.std), device=device).view(2, 1, 3, 1, 1)  # float32
        self.register_buffer("scale", 1 / (255 * std), persistent=False)
        self.register_buffer("shift", -mean / std, persistent=False)


@dataclass(frozen=True)
class _Found:
    """What a source gives."""

    vit: nn.Module
    layout: str
    sha256: str
    licence: str | None = None
    dropped: tuple[str, ...] = ()
    mean: Triple | None = None
    std: Triple | None = None
    guessed_heads: bool = False


def load_teacher(name: str, section: TeacherConfig, image_size: int | None = None) -> FrozenEncoder:
    """A frozen teacher, ready for an engine.

    Args:
        name: what the recipe calls it, for error messages.
        image_size: side of the run's images, in pixels; None takes the teacher's own.

    Raises:
        WeightsError: the weights are unavailable or incomplete, or have another patch grid than the images.
        ConfigError: timm does not know the architecture.
    """
    remedy = f"`dmt-ds teachers list` shows where to get weights; or set teachers.models.{name}.source=..."
    return _load(section, image_size, f"teacher '{name}': ", remedy)


def load_encoder(source: str | Path, image_size: int | None = None, who: str = "encoder") -> FrozenEncoder:
    """Any encoder by its source alone, with what the source says of itself.

    Args:
        who: what messages call it, such as the setting that names it.

    Raises:
        WeightsError: as for `load_teacher`; the message begins with `who`.
        ConfigError: timm does not know it.
    """
    remedy = "name a run's folder, a weights file, timm:TAG or hf:ID (`dmt-ds teachers list`)"
    return _load(TeacherConfig(source=str(source)), image_size, f"{who} ", remedy)


def _load(section: TeacherConfig, image_size: int | None, who: str, remedy: str) -> FrozenEncoder:
    """A frozen model; what is wrong is told of `who`, and with the remedy where there is no file."""
    try:
        found = _find(section, remedy)
        if section.resize_positions and image_size is not None:
            move_to_image_size(section.source, found.vit, image_size)
        shape = shape_of(found.vit)
        if image_size is not None:
            check_image_size(section.source, shape, image_size)
    except WeightsError as error:
        raise WeightsError(f"{who}{error}") from error
    record = EncoderRecord(
        source=section.source,
        layout=found.layout,
        shape=shape,
        mean=section.mean or found.mean or IMAGENET_MEAN,
        std=section.std or found.std or IMAGENET_STD,
        licence=section.licence or found.licence,
        sha256=found.sha256,
        dropped=found.dropped,
        guessed_heads=found.guessed_heads,
    )
    return FrozenEncoder(found.vit, record)


def check_same_tokens(teachers: Mapping[str, FrozenEncoder], same_width: bool = True) -> None:
    """Teachers whose tokens are compared or added must agree on their number, and on their width where they are added.

    Raises:
        WeightsError: names two teachers that disagree.
    """
    shapes = {name: teacher.record.shape for name, teacher in teachers.items()}
    for name, shape in shapes.items():
        first, reference = next(iter(shapes.items()))
        if shape.num_tokens != reference.num_tokens:
            raise WeightsError(
                f"teachers '{first}' and '{name}' give {reference.num_tokens} and {shape.num_tokens} tokens "
                f"(images {reference.image_size} and {shape.image_size}, patches {reference.patch_size} and "
                f"{shape.patch_size} pixels): use teachers of one patch grid (teachers.use=[...])"
            )
        if same_width and shape.embed_dim != reference.embed_dim:
            raise WeightsError(
                f"teachers '{first}' and '{name}' are {reference.embed_dim} and {shape.embed_dim} wide and can't be "
                "added: set distill.fusion=concat, or use teachers of one width (teachers.use=[...])"
            )


def summary_of(keys: tuple[str, ...]) -> list[str]:
    """Dropped keys by their first two parts, with counts: `module.predictor.* (8)`."""
    groups: dict[str, int] = {}
    for key in keys:
        parts = key.split(".")
        group = key if len(parts) == 1 else ".".join(parts[:2] if len(parts) > 2 else parts[:1]) + ".*"
        groups[group] = groups.get(group, 0) + 1
    return [f"{group} ({count})" if group.endswith("*") else group for group, count in groups.items()]


def _find(section: TeacherConfig, remedy: str) -> _Found:
    kind, _, rest = section.source.partition(":")
    if kind == "timm":
        return _of_timm(section, rest)
    if kind == "hf":
        return _of_weights(read_hf(rest), section)
    path = Path(section.source).expanduser()
    if path.is_dir():
        return _of_folder(section, path)
    if not path.exists():
        raise WeightsError(f"{path}: no such file; {remedy}")
    return _of_weights(read_file(path, section.checkpoint_key), section)


def _of_timm(section: TeacherConfig, tag: str) -> _Found:
    vit, config = pretrained(tag)
    _check_heads(section, vit)
    return _Found(
        vit=vit,
        layout="timm",
        licence=spdx_id(config.get("license")),
        sha256=hash_of_tensors(vit),
        mean=triple(config.get("mean")),
        std=triple(config.get("std")),
    )


def _of_folder(section: TeacherConfig, path: Path) -> _Found:
    """A run's output folder, a checkpoint of it, an encoder's folder, or a transformers folder."""
    folder = _encoder_folder(path)
    if '"model_type"' in (folder / CONFIG_FILE).read_text():
        return _of_weights(read_hf(str(folder)), section)
    vit, config, sha256 = load_backbone(folder)
    _check_heads(section, vit)
    data = config.get("pretrained_cfg", {})
    return _Found(
        vit=vit,
        layout="dmt_ds" if "dmt_ds" in config else "timm",
        licence=spdx_id(data.get("license")),
        sha256=sha256,
        mean=triple(data.get("mean")),
        std=triple(data.get("std")),
    )


def _encoder_folder(path: Path) -> Path:
    """The encoder's own folder; of a run that has not finished, the one in its newest complete checkpoint."""
    for folder in (path / BACKBONE_FOLDER, path):
        if (folder / CONFIG_FILE).is_file():
            return folder
    latest = path / CHECKPOINTS_FOLDER / LATEST_FILE
    if latest.is_file():
        folder = latest.with_name(latest.read_text().strip()) / BACKBONE_FOLDER
        if (folder / CONFIG_FILE).is_file():
            logger.warning("%s: the run has not finished; using its newest checkpoint: %s", path, folder.parent)
            return folder
    if members := family_members(path):
        raise WeightsError(f"{path}: is a family's folder; name a member: {', '.join(map(str, members))}")
    raise WeightsError(
        f"{path}: no encoder in it, neither {BACKBONE_FOLDER}/{CONFIG_FILE} nor {CONFIG_FILE}, nor one that "
        f"{CHECKPOINTS_FOLDER}/{LATEST_FILE} points to: the run has not saved yet, or it is another folder; "
        "name a run that has saved, or a weights file"
    )


def _of_weights(weights: Weights, section: TeacherConfig) -> _Found:
    vit = build_from(weights, section.arch, section.num_heads)
    return _Found(
        vit=vit,
        layout=weights.layout,
        licence=weights.licence,
        sha256=weights.sha256,
        dropped=weights.dropped,
        mean=weights.mean,
        std=weights.std,
        guessed_heads=heads_are_guessed(weights, section.arch, section.num_heads),
    )


def _check_heads(section: TeacherConfig, vit: nn.Module) -> None:
    heads = shape_of(vit).num_heads
    if section.num_heads not in (None, heads):
        raise WeightsError(
            f"{section.source}: num_heads {section.num_heads} is asked for, the model has {heads}: leave num_heads out"
        )
