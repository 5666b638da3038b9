"""A model's card: what it is, what it comes from, how it was judged, how to load it; says nothing that is not known."""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import yaml

from dmt_ds import __version__
from dmt_ds.commands.training.run_record import RunRecord, distils
from dmt_ds.models.backbone_folder import is_non_commercial
from dmt_ds.models.portable import PortableModel

_HUB_LICENCES = ("apache-2.0", "mit", "cc-by-4.0", "cc-by-sa-4.0", "cc-by-nc-4.0", "cc-by-nc-sa-4.0", "cc0-1.0")
_LIBRARIES = {"timm": "timm", "transformers": "transformers", "onnx": "onnx", "torch_export": "pytorch"}
_PAPER = "[DMT](https://arxiv.org/abs/2312.11938)"
PAPER_TOP1 = {"vit_tiny": 75.0, "vit_small": 82.2, "vit_base": 83.7}
"""ImageNet-1K top-1 after fine-tuning, in percent, that the paper's Table 1 reports for its students."""
_READOUTS = {
    "knn": "k-NN on the class token",
    "knn_patch": "k-NN on the mean patch token",
    "linear": "linear probe on the class token",
    "linear_patch": "linear probe on the mean patch token",
    "": "its own classes",
}
_LOAD = {
    "timm": """import timm
model = timm.create_model("local-dir:FOLDER", pretrained=True).eval()
{answer}""",
    "transformers": """from transformers import AutoImageProcessor, {auto}
processor, model = AutoImageProcessor.from_pretrained("FOLDER"), {auto}.from_pretrained("FOLDER"{pooler})
{answer}""",
    "onnx": """import onnxruntime
session = onnxruntime.InferenceSession("FOLDER/model.onnx")
({output},) = session.run(None, {{"images": images}})  # float32 array [batch, 3, {size}, {size}] -> {shape}""",
    "torch_export": """import torch
model = torch.export.load("FOLDER/model.pt2").module()
{output} = model(images)  # float32 [batch, 3, {size}, {size}] -> {shape}""",
}
_ANSWERS = {
    ("timm", "tokens"): "tokens = model.forward_features(images)  # {shape}",
    ("timm", "logits"): "logits = model(images)  # {shape}",
    ("transformers", "tokens"): 'tokens = model(**processor(picture, return_tensors="pt")).last_hidden_state',
    ("transformers", "logits"): 'logits = model(**processor(picture, return_tensors="pt")).logits',
}


def model_card(model: PortableModel, form: str, record: RunRecord, difference: float) -> str:
    """The README.md of an exported folder.

    Args:
        form: in which it was written.
        record: what its run says.
        difference: largest one between the written model's answer and the trainer's.
    """
    parts = [
        f"---\n{yaml.safe_dump(_front_matter(model, form, record), sort_keys=False)}---",
        f"# {_text(record.name)}",
        _what_it_is(model, record),
        _licence(model, record),
        "## Load it",
        _how_to_load(model, form),
        "## What it comes from",
        _origins(record),
        _recipe(record),
        "## Scores",
        _scores(record),
        _paper_says(model, record),
        f"Written by dmt_ds {__version__}, form `{form}`: read back by the library that it is for, it answers as the "
        f"trainer's own model does, {'exactly' if difference == 0 else f'to {difference:.1e}'}.",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _front_matter(model: PortableModel, form: str, record: RunRecord) -> dict[str, Any]:
    licence = model.config["pretrained_cfg"].get("license")
    told: dict[str, Any] = {"license": "unknown"}
    if licence in _HUB_LICENCES:
        told = {"license": licence}
    elif licence:
        told = {"license": "other", "license_name": licence}
    kind = "image-classification" if model.class_names else "image-feature-extraction"
    tags = ["vision-transformer", *(["distillation"] if distils(record) else []), "dmt_ds"]
    return {**told, "library_name": _LIBRARIES[form], "pipeline_tag": kind, "tags": tags}


def _what_it_is(model: PortableModel, record: RunRecord) -> str:
    shape, task = model.shape, record.provenance.get("task")
    kind = f"classifier of {len(model.class_names)} classes" if model.class_names else "encoder"
    sizes = f"{shape.depth} blocks, {shape.embed_dim} wide, {shape.num_heads} heads"
    patches = f"patches of {shape.patch_size} pixels, images of {shape.image_size} x {shape.image_size}"
    made = {
        "dmt": f"distilled from {_count(len(_taught(record)), 'teacher')} by the method of {_PAPER}",
        "tinymim": f"distilled from {_count(len(_taught(record)), 'teacher')} by TinyMIM's method",
    }.get(str(task), f"made by task `{_text(str(task))}`" if task else "of unknown origin")
    steps = record.provenance.get("step")
    length = f", {steps} steps, {record.provenance.get('images_seen', 0):,} images seen" if steps is not None else ""
    return f"A vision transformer ({sizes}; {patches}): {kind}, {made}{length}."


def _taught(record: RunRecord) -> list[str]:
    return [name for name in record.teachers if name != "init_from"]


def _licence(model: PortableModel, record: RunRecord) -> str:
    licences = {name: teacher.get("licence") for name, teacher in record.teachers.items()}
    bound = [name for name, licence in licences.items() if is_non_commercial(licence)]
    own = model.config["pretrained_cfg"].get("license")
    if bound:
        who = ", ".join(f"{_text(name)} ({_text(str(licences[name]))})" for name in bound)
        return f"**Not for commercial use.** It derives from non-commercial weights: {who}."
    if own:
        return f"Licence, inherited from what it derives from: {_text(own)}."
    unknown = [_text(name) for name, licence in licences.items() if not licence]
    reason = (
        f"not stated for {', '.join(unknown)} (teachers.models.NAME.licence of the run)"
        if unknown
        else "no other weights restrict it, and its maker has not stated one"
    )
    return f"Licence: not known; {reason}."


def _how_to_load(model: PortableModel, form: str) -> str:
    preprocessing, shape, size = model.preprocessing, model.shape, model.preprocessing.image_size
    numbers = (
        f"[batch, {len(model.class_names)}]" if model.class_names else f"[batch, {shape.num_tokens}, {shape.embed_dim}]"
    )
    values = {
        "output": model.output,
        "size": size,
        "shape": numbers,
        "auto": "AutoModelForImageClassification" if model.class_names else "AutoModel",
        "pooler": "" if model.class_names else ", add_pooling_layer=False",
    }
    answer = _ANSWERS.get((form, model.output), "").format(**values)
    lines = [_fenced(_LOAD[form].format(**values, answer=answer), "python")]
    cut = (
        f"its short side scaled to {preprocessing.short_side} pixels ({preprocessing.interpolation}) and the middle "
        f"{size} x {size} cut out"
    )
    whole = f"scaled to {size} x {size} ({preprocessing.interpolation})"
    lines.append(
        f"A picture is {cut if preprocessing.short_side > size else whole}; pixels in 0..1, minus "
        f"{list(preprocessing.mean)}, divided by {list(preprocessing.std)}."
    )
    if model.class_names:
        lines.append("`classes.json` has the names of the classes, in the order of the scores.")
    else:
        lines.append("Tokens are those after the final LayerNorm: first the class token, then the patches, row by row.")
    return "\n\n".join(lines)


def _origins(record: RunRecord) -> str:
    if not record.teachers:
        return "No other weights." if record.provenance else "Unknown: there was no run's record next to the weights."
    return _table(["weights", "source", "licence", "sha256"], list(_rows_of(record.teachers, "")))


def _rows_of(teachers: Mapping[str, dict[str, Any]], of: str) -> Iterator[list[str]]:
    """A row for each teacher, and behind it those that it was made from itself."""
    for name, teacher in teachers.items():
        called = f"{_text(name)} (weights it started from)" if name == "init_from" else _text(name)
        yield [
            called + of,
            _text(str(teacher.get("source", "not noted"))),
            _text(str(teacher.get("licence") or "not known")),
            f"`{str(teacher.get('sha256'))[:16]}`" if teacher.get("sha256") else "",
        ]
        yield from _rows_of(teacher.get("teachers", {}), f", behind {_text(name)}{of}")


def _recipe(record: RunRecord) -> str:
    if record.config is None:
        return ""
    versions = ", ".join(f"{name} {value}" for name, value in record.environment.items())
    told = yaml.safe_dump(record.settings(), sort_keys=False, default_flow_style=None, width=100)
    lines = [f"Images: {_text(str(record.data_name))}. Settings{f' ({versions})' if versions else ''}:"]
    return "\n\n".join([*lines, _fenced(told, "yaml")])


def _scores(record: RunRecord) -> str:
    if not record.scores:
        return "None was measured with these weights."
    rows = [[_text(_readout(name)), f"{100 * value:.2f}"] for name, value in record.scores.items()]
    where = f"Measured with these very weights, on the validation images of {_text(str(record.data_name))}:"
    return "\n\n".join([where, _table(["readout", "percent"], rows)])


def _readout(metric: str) -> str:
    name, _, kind = metric.removeprefix("eval/").rpartition("_")
    return f"{_READOUTS[name]}, {kind.replace('top', 'top-')}" if name in _READOUTS and "top" in kind else metric


def _paper_says(model: PortableModel, record: RunRecord) -> str:
    """The paper's figure beside a student of its shape, so that nobody takes one for the other."""
    student = None if record.config is None else record.config.student
    if student is None or record.config is None or record.config.task != "dmt" or student.arch not in PAPER_TOP1:
        return ""
    if (student.embed_dim, student.depth, student.patch_size, model.shape.image_size) != (None, None, 16, 224):
        return ""
    return (
        f"The paper reports {PAPER_TOP1[student.arch]} % ImageNet-1K top-1, after fine-tuning, for its own student of "
        "this shape, with its own teachers. That figure is not this model's."
    )


def _count(number: int, what: str) -> str:
    return f"{number} {what}" + ("" if number == 1 else "s")


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _text(text: str) -> str:
    """A name as plain text in a line of Markdown, whatever is in it."""
    one_line = "".join(character if character.isprintable() else " " for character in text)
    return re.sub(r"([\\`*_{}\[\]<>|#$])", r"\\\1", one_line)


def _fenced(text: str, language: str) -> str:
    """A block of code that no line of it can end."""
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall(r"`+", text)), default=0))
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"
