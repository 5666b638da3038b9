"""A model's computation as one file, ONNX or torch.export, and what such a file answers; knows no ViT library."""

import importlib.util
import json
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dmt_ds.errors import ExportError
from dmt_ds.models.portable import Answer, PortableModel

ONNX_FILE = "model.onnx"
TORCH_EXPORT_FILE = "model.pt2"
INPUT = "images"
_EXTRA = ("onnx", "onnxscript", "onnxruntime")
_PROTOBUF_BYTES = 1900 * 2**20
"""Weights beyond this lie beside the ONNX file: its format ends at 2 GiB."""


def write_onnx(model: PortableModel, folder: Path) -> None:
    """`model.onnx`: float32 `images` [batch, 3, H, W], normalised -> `tokens` or `logits`, for any batch.

    Raises:
        ExportError: a package for it is missing.
    """
    check_onnx_packages()
    graph, weight_bytes = model.graph(), sum(p.numel() * p.element_size() for p in model.vit.parameters())
    with _quiet():
        program: Any = torch.onnx.export(
            graph,
            (model.sample(2),),
            input_names=[INPUT],
            output_names=[model.output],
            dynamic_shapes={INPUT: {0: "batch"}},
            dynamo=True,
            verbose=False,
        )
    _forget_this_machine(program.model)
    program.model.metadata_props.update(_metadata(model))
    program.save(folder / ONNX_FILE, external_data=weight_bytes > _PROTOBUF_BYTES)


def read_onnx(folder: Path) -> Answer:
    """What onnxruntime makes of the file.

    Raises:
        ExportError: a package for it is missing.
    """
    check_onnx_packages()
    import onnxruntime

    session = onnxruntime.InferenceSession(str(folder / ONNX_FILE), providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(None, {INPUT: images.numpy()})[0])


def write_torch_export(model: PortableModel, folder: Path) -> None:
    """`model.pt2`, for `torch.export.load`: the same input and output as `write_onnx`'s."""
    batch = torch.export.Dim("batch")
    with _quiet():
        program = torch.export.export(model.graph(), (model.sample(2),), dynamic_shapes={INPUT: {0: batch}})
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # file names of this machine
    torch.export.save(program, folder / TORCH_EXPORT_FILE, extra_files={"model.json": json.dumps(_metadata(model))})


def read_torch_export(folder: Path) -> Answer:
    """What torch makes of the file."""
    module = torch.export.load(folder / TORCH_EXPORT_FILE).module()

    @torch.no_grad()
    def answer(images: Tensor) -> Tensor:
        answer: Tensor = module(images)
        return answer

    return answer


def check_onnx_packages() -> None:
    """Whether ONNX files can be written and run here.

    Raises:
        ExportError: names the packages that are missing, and how to get them.
    """
    missing = [name for name in _EXTRA if importlib.util.find_spec(name) is None]
    if missing:
        raise ExportError(f"--format onnx needs {', '.join(missing)}: pip install 'dmt_ds[export]'")


def _metadata(model: PortableModel) -> Mapping[str, str]:
    """What a program that has the file alone must know; plain text by key."""
    preprocessing = model.preprocessing
    told: dict[str, Any] = {
        "mean": preprocessing.mean,
        "std": preprocessing.std,
        "image_size": preprocessing.image_size,
        "short_side": preprocessing.short_side,
        "interpolation": preprocessing.interpolation,
        "class_names": model.class_names,
        "licence": model.config["pretrained_cfg"].get("license"),
    }
    return {key: value if isinstance(value, str) else json.dumps(value) for key, value in told.items() if value}


def _forget_this_machine(onnx_model: Any) -> None:
    """The exporter keeps a stack trace of each node, with file names of this machine."""
    for node in onnx_model.graph.all_nodes():
        node.metadata_props.clear()


@contextmanager
def _quiet() -> Iterator[None]:
    """Exporters tell much that no one who exports can change."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            for logger in loggers:
                logger.setLevel(logging.ERROR)
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
