"""`dmt-ds teachers`: which teachers there are, what is in a weights file, its conversion to safetensors."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from dmt_ds.errors import WeightsError
from dmt_ds.models.blueprint import blueprint_of, build_from, heads_of, width_of
from dmt_ds.models.encoders import EncoderRecord, load_encoder, summary_of
from dmt_ds.models.hf_vit import read_file, read_hf
from dmt_ds.models.layouts import LICENCES
from dmt_ds.models.vit import VitShape, shape_of
from dmt_ds.models.weights import METADATA_KEY, Weights
from dmt_ds.storage import sha256_of

_NO_LICENCE = "unknown; set licence"


class KnownTeacher(NamedTuple):
    """A row of `dmt-ds teachers list`."""

    name: str
    source: str
    """What to write as `teachers.models.NAME.source`, or the authors' file to fetch."""
    licence: str
    note: str


_MAE, _MOCO, _FAIR = "mae/pretrain/", "moco-v3/", "https://dl.fbaipublicfiles.com/"
KNOWN_TEACHERS = (
    KnownTeacher("MAE", "timm:vit_base_patch16_224.mae", LICENCES["mae"], "1600 epochs (the paper says 300)"),
    KnownTeacher("MAE", f"{_FAIR}{_MAE}mae_pretrain_vit_base.pth", LICENCES["mae"], "the authors' file of the same"),
    KnownTeacher("MAE", "hf:facebook/vit-mae-base", LICENCES["mae"], "the same; its card claims Apache-2.0"),
    KnownTeacher(
        "MoCo v3", f"{_FAIR}{_MOCO}vit-b-300ep/vit-b-300ep.pth.tar", LICENCES["moco_v3"], "not linear-vit-b-300ep"
    ),
    KnownTeacher(
        "MoCo v3", f"{_FAIR}{_MOCO}vit-s-300ep/vit-s-300ep.pth.tar", LICENCES["moco_v3"], "12 heads, not timm's 6"
    ),
    KnownTeacher(
        "iBOT",
        "checkpoint_teacher.pth (github.com/bytedance/ibot, ViT-B/16)",
        LICENCES["ibot"],
        "400 epochs (the paper says 300); block or random masks",
    ),
    KnownTeacher("DINO", "timm:vit_base_patch16_224.dino", LICENCES["dino"], ""),
    KnownTeacher("DINO", "dino_vitbase16_pretrain.pth (github.com/facebookresearch/dino)", LICENCES["dino"], "same"),
    KnownTeacher(
        "DINOv2",
        "timm:vit_base_patch14_dinov2.lvd142m",
        LICENCES["dinov2"],
        "patch 14, 518 pixels; others by resize_positions",
    ),
    KnownTeacher("DeiT", "timm:deit_base_patch16_224.fb_in1k", LICENCES["deit"], "supervised"),
    KnownTeacher("DeiT", "timm:deit_base_distilled_patch16_224.fb_in1k", LICENCES["deit"], "supervised, distilled"),
    KnownTeacher("BEiT", "hf:microsoft/beit-base-patch16-224-pt22k", LICENCES["beit"], "pixels to mean 0.5, std 0.5"),
)


def list_teachers() -> str:
    """A table of teachers that are known to load: where to get them, licence, note."""
    header = KnownTeacher("teacher", "source, or file to fetch", "licence", "note")
    widths = [max(len(row[column]) for row in (header, *KNOWN_TEACHERS)) for column in range(4)]
    lines = [
        "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip()
        for row in (header, *KNOWN_TEACHERS)
    ]
    lines.insert(1, "  ".join("-" * width for width in widths))
    hint = (
        "Use one with teachers.models.NAME.source=SOURCE; a fetched file by its path, your own run by its folder.\n"
        "Look into a file with `dmt-ds teachers inspect FILE`. A student of non-commercial teachers is non-commercial."
    )
    return "\n".join([*lines, "", hint])


def inspect_file(path: str | Path, checkpoint_key: str | None = None) -> str:
    """What a weights file, or another source of an encoder, holds, one `name: value` a line.

    Args:
        path: weights file, `hf:FOLDER_OR_ID`, a folder or `timm:TAG`.
        checkpoint_key: which part of a full checkpoint.

    Raises:
        WeightsError: it holds no whole encoder, or has no parts.
        ConfigError: timm knows no such tag.
    """
    if Path(path).is_dir() or _is_timm(path):
        _refuse_key(path, checkpoint_key)
        return _lines(_rows_of_model(load_encoder(str(path)).record))
    weights = _read(path, checkpoint_key)
    shape = shape_of(build_from(weights, num_heads=_heads_or_one(weights, None), load=False))
    heads = heads_of(weights)
    rows = {
        "source": weights.where,
        "layout": weights.layout + (f" (under '{weights.part}')" if weights.part else ""),
        "licence": weights.licence or _NO_LICENCE,
        "sha256": weights.sha256,
        **_rows_of_shape(shape),
        "heads": f"{heads or 'unknown'}"
        + ("" if heads and weights.num_heads == heads else _how_heads_are_known(weights)),
        "LayerNorm epsilon": weights.norm_eps,
        "mean, std": "ImageNet's, unless set" if weights.mean is None else f"{weights.mean}, {weights.std}",
        "tensors": len(weights.state),
        "dropped": _named(weights.dropped),
    }
    return _lines(rows)


def _rows_of_model(record: EncoderRecord) -> dict[str, object]:
    """The rows of a file, as far as a model that was read whole has them."""
    return {
        "source": record.source,
        "layout": record.layout,
        "licence": record.licence or _NO_LICENCE,
        "sha256": record.sha256 or "unknown",
        **_rows_of_shape(record.shape),
        "mean, std": f"{record.mean}, {record.std}",
        "dropped": _named(record.dropped),
    }


def _rows_of_shape(shape: VitShape) -> dict[str, object]:
    last = shape.last_block_num_heads
    return {
        "width": shape.embed_dim,
        "depth": shape.depth,
        "heads": f"{shape.num_heads}" + ("" if last == shape.num_heads else f" (the last block has {last})"),
        "patch": f"{shape.patch_size} pixels",
        "image": f"{shape.image_size} pixels",
        "tokens": f"{shape.num_tokens} (class token and patches)",
        "tokens left out": shape.num_prefix_tokens - 1,
    }


def _named(dropped: tuple[str, ...]) -> str:
    return ", ".join(summary_of(dropped)) or "nothing"


def _lines(rows: Mapping[str, object]) -> str:
    width = max(map(len, rows))
    return "\n".join(f"{name:<{width}}  {value}" for name, value in rows.items())


def convert(path: str | Path, out: str | Path, checkpoint_key: str | None = None, num_heads: int | None = None) -> str:
    """Writes the encoder alone as safetensors in timm's names; what tensors don't tell goes into the header.

    Args:
        path: weights file, or `hf:FOLDER_OR_ID`.
        out: new file, ending in `.safetensors`.
        checkpoint_key: which part of a full checkpoint.
        num_heads: kept in the header, so that nobody has to say it again.

    Returns:
        One line that says what was written.

    Raises:
        WeightsError: the file holds no whole encoder, or `out` is there already or can't be written.
    """
    from safetensors.torch import save_file

    out = Path(out)
    if out.suffix != ".safetensors":
        raise WeightsError(f"{out}: the name of the new file must end in .safetensors")
    if out.exists():
        raise WeightsError(f"{out}: exists already; remove it or choose another name")
    weights = _read(path, checkpoint_key)
    build_from(weights, num_heads=_heads_or_one(weights, num_heads), load=False)
    partial = out.with_name(f".{out.name}.partial")
    header = {"format": "pt", METADATA_KEY: json.dumps(_header(weights, num_heads))}
    try:
        save_file({name: tensor.contiguous() for name, tensor in weights.state.items()}, partial, header)
        os.replace(partial, out)
    except Exception as error:  # safetensors has its own error class for a full or read-only disk
        partial.unlink(missing_ok=True)
        raise WeightsError(f"{out}: can't be written ({error}); check the folder and the disk") from error
    left_out = f", without {', '.join(summary_of(weights.dropped))}" if weights.dropped else ""
    return (
        f"{out}: {len(weights.state)} tensors of {weights.where} ({weights.layout}){left_out}; sha256 {sha256_of(out)}"
    )


def _read(path: str | Path, checkpoint_key: str | None) -> Weights:
    if str(path).startswith("hf:"):
        _refuse_key(path, checkpoint_key)
        return read_hf(str(path)[3:])
    if Path(path).is_dir() or _is_timm(path):
        raise WeightsError(f"{path}: is not a weights file; name one, or hf:FOLDER for a transformers model")
    return read_file(path, checkpoint_key)


def _refuse_key(path: str | Path, checkpoint_key: str | None) -> None:
    if checkpoint_key is not None:
        raise WeightsError(
            f"{path}: is not a weights file, and only those have parts: leave out --key {checkpoint_key}"
        )


def _is_timm(path: str | Path) -> bool:
    return str(path).startswith("timm:")


def _heads_or_one(weights: Weights, num_heads: int | None) -> int:
    """Heads for a check of keys and shapes alone, which they don't change."""
    if "cls_token" not in weights.state:
        blueprint_of(weights)  # says what is missing
    return heads_of(weights, num_heads) or 1


def _how_heads_are_known(weights: Weights) -> str:
    if heads_of(weights) is None:
        return ": a file does not contain them; set num_heads"
    settled = weights.layout in ("beit", "moco_v3") and heads_of(weights) != width_of(weights.state) // 64
    return f" (as {weights.layout} has them)" if settled else " (usual for this width; the file does not tell)"


def _header(weights: Weights, num_heads: int | None) -> dict[str, object]:
    return {
        "layout": weights.layout,
        "licence": weights.licence,
        "num_heads": num_heads or weights.num_heads,
        "norm_eps": weights.norm_eps,
        "mean": weights.mean,
        "std": weights.std,
        "source": Path(weights.where).name,
        "source_sha256": weights.sha256,
        "part": weights.part,
        "dropped": summary_of(weights.dropped),
    }
