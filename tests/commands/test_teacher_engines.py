"""Teachers are made ready as their place and number format want it."""

import logging
from pathlib import Path

import pytest
import torch

from dmt_ds.commands.training import teacher_engines
from dmt_ds.commands.training.teacher_engines import load_teachers, start_teachers
from dmt_ds.config.teachers import TeacherConfig, TeachersConfig
from dmt_ds.models.packed_linear import PackedLinear, packing_pays
from dmt_ds.models.product_sums import ProductBlock
from dmt_ds.models.relations import RelationEncoder
from tests.models import tiny
from tests.tiny_run import make_teacher

CPU = torch.device("cpu")


def test_a_teacher_whose_heads_are_guessed_is_warned_of_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    torch.save(tiny.vit(embed_dim=64, num_heads=2).state_dict(), tmp_path / "some.pth")
    teacher = {"source": str(tmp_path / "some.pth")}
    section = TeachersConfig.model_validate({"models": {"red": teacher, "blue": teacher | {"num_heads": 2}}})
    caplog.set_level(logging.WARNING)
    load_teachers(section, tiny.IMAGE_SIZE)
    (line,) = caplog.messages
    assert line == (
        "red: num_heads 1 is a guess from the width, 64: the file does not tell; if right, confirm it by "
        "teachers.models.red.num_heads=1, else give the right one"
    )


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_whole_teachers_in_float32_on_a_cpu_are_laid_out_for_the_micro_batch(tmp_path: Path, precision: str) -> None:
    name = "teacher_zero3_inference_fp32" if precision == "fp32" else "teacher_zero3_inference"
    models = {"red": TeacherConfig(source=str(make_teacher(tmp_path / "red", 0)))}
    section = TeachersConfig(models=models, sharding="replicate", deepspeed=name)
    images = torch.randint(0, 256, (3, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    teachers, plain = (load_teachers(section, 16) for _ in range(2))
    ready = start_teachers(teachers, section, CPU, micro_batch_size=3).forwards["red"]
    rows = {layer.rows for layer in teachers["red"].modules() if isinstance(layer, PackedLinear)}
    assert rows == ({3 * 17} if precision == "fp32" and packing_pays(CPU, torch.float32) else set())
    if precision == "fp32":
        torch.testing.assert_close(ready(images), plain["red"](images), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("sharding", ["replicate", "zero3"])
def test_plain_teachers_add_in_their_products_where_that_pays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sharding: str
) -> None:
    """Teachers with more in their blocks, and those that are looked into, keep their own forward, and are compiled."""
    monkeypatch.setattr(teacher_engines, "adding_in_products_pays", lambda device, dtype: True)
    monkeypatch.setattr(teacher_engines, "packing_pays", lambda device, dtype: False)
    monkeypatch.setattr(teacher_engines, "compiles", lambda *_, **__: True)
    compiled = []
    monkeypatch.setattr(torch, "compile", lambda forward, backend: compiled.append(forward.__self__) or forward)
    models = {name: TeacherConfig(source=str(make_teacher(tmp_path / name, 0))) for name in ("red", "blue", "green")}
    section = TeachersConfig(models=models, sharding=sharding, deepspeed="teacher_zero3_inference_fp32")
    images = torch.randint(0, 256, (3, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    teachers, plain = (load_teachers(section, 16) for _ in range(2))
    for made in (teachers, plain):
        made["blue"].vit.blocks[1].ls2 = torch.nn.Tanh()
        made["green"] = RelationEncoder(made["green"])
    ready = start_teachers(teachers, section, CPU, micro_batch_size=3).forwards
    adding = [name for name, teacher in teachers.items() if type(teacher.vit.blocks[0]) is ProductBlock]
    assert adding == ["red"] and compiled == [teachers["blue"], teachers["green"]]
    for name, forward in ready.items():
        torch.testing.assert_close(forward(images), plain[name](images), atol=1e-5, rtol=1e-5)
