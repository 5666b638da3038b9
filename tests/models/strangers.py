"""Loads exported models as a stranger does: with plain timm, transformers, onnxruntime and torch, run as a script.

    python strangers.py FOLDER OUT

Each folder in FOLDER holds `images.pt`, a list of batches, and one model in folders named after their forms. OUT gets
name of the folder -> form -> answers.
"""

import sys
from pathlib import Path

import torch


def of_torch_export(folder, images):
    model = torch.export.load(folder / "model.pt2").module()
    answers = [model(batch) for batch in images]
    assert not {"timm", "transformers"} & set(sys.modules)
    return answers


def of_onnx(folder, images):
    import onnxruntime

    session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    assert "timm" not in sys.modules
    return [torch.from_numpy(session.run(None, {"images": batch.numpy()})[0]) for batch in images]


def of_timm(folder, images):
    import timm

    model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    return [model(batch) if model.num_classes else model.forward_features(batch) for batch in images]


def of_transformers(folder, images):
    from transformers import AutoConfig, AutoModel, AutoModelForImageClassification

    if "Classification" in AutoConfig.from_pretrained(folder).architectures[0]:
        classifier = AutoModelForImageClassification.from_pretrained(folder).eval()
        return [classifier(batch).logits for batch in images]
    model = AutoModel.from_pretrained(folder).eval()
    return [model(batch).last_hidden_state for batch in images]


FORMS = {"torch_export": of_torch_export, "onnx": of_onnx, "timm": of_timm, "transformers": of_transformers}

if __name__ == "__main__":
    root, out = map(Path, sys.argv[1:])
    found = {}
    with torch.no_grad():
        for form, answers_of in FORMS.items():  # first those that need no library of models
            for model in sorted(path.parent for path in root.glob(f"*/{form}")):
                images = torch.load(model / "images.pt")
                found.setdefault(model.name, {})[form] = answers_of(model / form, images)
    assert not any(name.split(".")[0] in ("dmt_ds", "deepspeed") for name in sys.modules)
    torch.save(found, out)
