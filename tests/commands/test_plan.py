"""`dmt-ds plan` and `bench`: figures that follow from each other, assumptions said, no torch."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from dmt_ds.cli import main
from dmt_ds.commands import bench
from dmt_ds.config.schema import StudentConfig
from dmt_ds.config.teachers import TeachersConfig
from dmt_ds.errors import ConfigError
from dmt_ds.models.backbone_folder import vit_without_weights
from dmt_ds.models.vit import build_vit, shape_of
from dmt_ds.models.weights import write_safetensors
from dmt_ds.planning.layout import student_size, teacher_sizes
from dmt_ds.planning.rates import Calibration
from dmt_ds.planning.vit_cost import VitSize
from tests import processes, tiny_run


def plan(*arguments: str) -> dict[str, Any]:
    done = CliRunner().invoke(main, ["plan", *arguments, "--json"])
    assert done.exit_code == 0, done.output
    return json.loads(done.output)


def test_figures_follow_from_each_other() -> None:
    made = plan("-c", "vit_tiny", "--nodes", "2", "--gpus-per-node", "8", "--gpu", "h200")
    stored = dict(made["memory_bytes"])
    total, of = stored.pop("total"), stored.pop("of")
    assert sum(stored.values()) == pytest.approx(total) and made["fits"] and total < of
    assert made["micro_batch_size"] * made["grad_accum_steps"] * 16 == 4096
    assert made["images_per_second"] == pytest.approx(4096 / made["step_seconds"]["total"])
    assert made["run"]["steps"] == pytest.approx(300 * 1_281_167 / 4096, abs=1)
    assert made["hours"] == pytest.approx(made["run"]["steps"] * made["step_seconds"]["total"] / 3600)
    assert made["gpu_hours"] == pytest.approx(16 * made["hours"])
    # Three ViT-B forward, by timm's table of multiply-adds.
    assert made["flops_per_image"]["teachers"] == pytest.approx(3 * 2 * 17.58e9, rel=2e-3)


def test_cut_teachers_take_a_share_of_the_memory_and_send_what_whole_ones_do_not() -> None:
    cut = plan("-c", "vit_base", "--gpus-per-node", "8")
    whole = plan("-c", "vit_base", "teachers.sharding=replicate", "--gpus-per-node", "8")
    assert cut["memory_bytes"]["teachers' weights"] * 8 == whole["memory_bytes"]["teachers' weights"]
    assert whole["step_bytes_sent"]["teachers"] == 0
    copies = whole["memory_bytes"]["teachers' weights"]
    assert cut["step_bytes_sent"]["teachers"] == pytest.approx(cut["grad_accum_steps"] * copies * 7 / 8)


LARGE = ("teachers.models.huge.source=vit_huge", "teachers.models.giant.source=vit_giant", "--gpu", "rtx3090")


@pytest.mark.parametrize(
    ("machines", "choice", "reason"),
    [
        (("--gpus-per-node", "8", "--gpu", "h200"), "replicate", "memory is no reason to shard"),
        (("--gpus-per-node", "1", *LARGE), "replicate", "there is only one rank"),
        (("--gpus-per-node", "8", *LARGE), "zero3", "hides behind the arithmetic"),
        (
            ("--gpus-per-node", "8", *LARGE, "train.micro_batch_size=1", "train.global_batch_size=8"),
            "replicate",
            "does not hide",
        ),
    ],
)
def test_auto_is_planned_as_a_run_decides_it_and_says_why(machines: tuple[str, ...], choice: str, reason: str) -> None:
    auto, chosen = (plan("-c", "vit_base", *machines, f"teachers.sharding={way}") for way in ("auto", choice))
    (line,) = (line for line in auto["assumptions"] if line.startswith("teachers.sharding"))
    assert line.startswith(f"teachers.sharding auto -> {choice}: whole copies take ") and reason in line
    assert "planned rates" in line or reason == "there is only one rank"
    auto["assumptions"].remove(line)
    assert auto == chosen


def test_a_fused_loss_takes_less_memory_and_time_than_a_written_one() -> None:
    fused, written = (plan("-c", "vit_tiny", f"distill.kernel={kernel}") for kernel in ("auto", "eager"))
    of_loss = "targets and loss"
    assert fused["memory_bytes"][of_loss] < 0.2 * written["memory_bytes"][of_loss]
    assert fused["step_seconds"]["loss"] < 0.1 * written["step_seconds"]["loss"]
    assert "the losses are fused" in fused["assumptions"]
    only_mse = plan("-c", "vit_tiny", "distill.divergence=mse")
    assert "the losses are written out in torch" in only_mse["assumptions"]


def test_the_largest_micro_batch_fits_and_the_next_does_not() -> None:
    made = plan("-c", "vit_base", "--gpus-per-node", "4", "--gpu", "rtx3090", "train.micro_batch_size=16")
    largest = made["largest_micro_batch_size"]
    assert 16 <= largest < 1024 and 1024 % largest == 0
    assert plan("-c", "vit_base", "--gpus-per-node", "4", "--gpu", "rtx3090", f"train.micro_batch_size={largest}")[
        "fits"
    ]
    larger = plan("-c", "vit_base", "--gpus-per-node", "4", "--gpu", "rtx3090", f"train.micro_batch_size={2 * largest}")
    assert not larger["fits"]


def test_a_family_costs_its_teachers_once_and_each_student() -> None:
    family = plan("-c", "vit_family", "--gpus-per-node", "8")
    alone = [plan("-c", f"vit_{size}", "--gpus-per-node", "8") for size in ("tiny", "small", "base")]
    for part in ("student", "loss", "optimizer"):
        assert family["step_seconds"][part] == pytest.approx(sum(one["step_seconds"][part] for one in alone))
    assert family["step_seconds"]["teachers"] == pytest.approx(alone[0]["step_seconds"]["teachers"])
    assert family["hours"] < sum(one["hours"] for one in alone)
    assert family["parameters"]["trained"] == sum(one["parameters"]["trained"] for one in alone)
    stored = family["memory_bytes"]
    assert stored["AdamW's moments"] == pytest.approx(sum(one["memory_bytes"]["AdamW's moments"] for one in alone))
    assert stored["student's activations"] == max(one["memory_bytes"]["student's activations"] for one in alone)
    students = [line.split(":")[0] for line in family["assumptions"] if line.startswith("student")]
    assert students == ["student vit_tiny", "student vit_small", "student vit_base"]


def test_more_nodes_make_it_faster_but_not_cheaper() -> None:
    one, four = (plan("-c", "vit_small", "--nodes", n, "--gpus-per-node", "8") for n in ("1", "4"))
    assert four["hours"] < one["hours"] and four["gpu_hours"] >= one["gpu_hours"]


def test_a_ring_leaves_each_node_through_its_network_once() -> None:
    settings = ("-c", "vit_base", "teachers.sharding=replicate", "--gpus-per-node", "8", "--gpu", "a100")
    links = {"1": 0.75 * 300e9, "2": 0.75 * 50e9}  # bytes a second: NVLink, then 400 Gbit/s of network
    for nodes, link in links.items():
        made = plan(*settings, "--nodes", nodes)
        sent = made["step_bytes_sent"]
        assert made["step_seconds"]["communication"] == pytest.approx((sent["gradient"] + sent["weights"]) / link)


def test_the_text_says_that_it_is_a_model_and_what_it_assumes() -> None:
    text = CliRunner().invoke(main, ["plan", "-c", "vit_tiny", "--gpus-per-node", "8"]).output
    assert text.startswith("A model made of formulas, not a measurement.")
    assert "assumed: 51 % of 989 TFLOP/s" in text and "GPU-hours" in text and "CPU cores per node" in text
    assert "teacher ibot is a ViT-B/16: neither its source nor `arch` tells" in text


ARCHES = (
    "vit_tiny",
    "vit_small",
    "vit_base",
    "vit_medium_patch16_gap_256",
    "deit_small_patch16_224",
    "deit3_base_patch16_224",
)


@pytest.mark.parametrize("arch", ARCHES)
def test_a_student_is_planned_as_it_is_built(arch: str) -> None:
    section = StudentConfig(arch=arch)
    shape = shape_of(vit_without_weights(section, 224))
    size = student_size(section, 224)
    assert (size.embed_dim, size.depth) == (shape.embed_dim, shape.depth)
    unknown = StudentConfig(arch="vit_so150m_patch16_reg4_gap_256", embed_dim=896, depth=18)
    assert student_size(unknown, 224) == VitSize(896, 18, 16, 224)


def test_a_teacher_is_known_by_its_files_name_not_by_the_folders_on_the_way() -> None:
    source = "/data/vit_large_models/patch8/mae_pretrain_vit_base.pth"
    section = TeachersConfig.model_validate({"models": {"a": {"source": source}}})
    assert teacher_sizes(section, 16, 224) == ({"a": VitSize(768, 12, 16, 224)}, [])


def test_a_teacher_in_timms_layout_is_as_large_as_the_file_says(tmp_path: Path) -> None:
    path = tmp_path / "mine.safetensors"
    vit = build_vit(StudentConfig(arch="vit_tiny", embed_dim=64, depth=5, num_heads=2, patch_size=8), 48)
    write_safetensors(path, vit.state_dict())
    section = TeachersConfig.model_validate({"models": {"a": {"source": str(path)}}})
    assert teacher_sizes(section, 16, 224) == ({"a": VitSize(64, 5, 8, 224)}, [])
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n"
    for other in (path.read_bytes()[:100], pointer, b"", b"\2" + bytes(7) + b"[]", b"\2" + bytes(7) + b"{}"):
        path.write_bytes(other)
        assert teacher_sizes(section, 16, 224) == ({"a": VitSize(768, 12, 16, 224)}, ["a"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--gpu", "tpu"], "--gpu tpu: not in the table; known: b200, h200"),
        (["--gpus-per-node", "7"], "not divisible by"),
        (["-c", "mae"], "knows the cost of distillation only"),
        (["student.arch=vit_so150m_patch16_reg4_gap_256"], "student.arch=vit_so150m_patch16_reg4_gap_256: how wide"),
        (
            ["student.arch=vit_base_patch16_plus_240", "student.depth=12"],
            "student.embed_dim=WIDTH student.depth=BLOCKS",
        ),
        (["--calibration", "missing.json"], "--calibration missing.json: not a file of `dmt-ds bench`"),
    ],
)
def test_what_cannot_be_planned_is_said_in_a_line(arguments: list[str], message: str) -> None:
    done = CliRunner().invoke(main, ["plan", "-c", "vit_tiny", *arguments])
    assert done.exit_code == 2 and message in done.output


WHOLE = {"device": "CPU", "date": "2026-01-01", "micro_batch_size": 8, "teacher_flops": 1e12, "student_flops": None}
WHOLE |= {"loader_seconds": 1, "gather_bytes": None}


@pytest.mark.parametrize(
    ("told", "problem"),
    [
        ({}, "device, date, micro_batch_size, teacher_flops, student_flops, loader_seconds, gather_bytes are missing"),
        ([1], "it must be an object, {...}"),
        ({**WHOLE, "cats": 3}, "cats is not known"),
        ({**WHOLE, "teacher_flops": 0, "loader_seconds": -1}, "teacher_flops=0, loader_seconds=-1 must be above 0"),
        ({**WHOLE, "teacher_flops": "fast", "device": None}, 'device=null, teacher_flops="fast" can\'t be'),
    ],
)
def test_a_calibration_that_bench_did_not_write_says_what_is_wrong_with_it(tmp_path, told, problem) -> None:
    file = tmp_path / "cal.json"
    file.write_text(json.dumps(WHOLE))
    Calibration.read(file)
    file.write_text(json.dumps(told))
    with pytest.raises(ConfigError) as caught:
        Calibration.read(file)
    remedy = f"`dmt-ds bench -o {file}` makes one"
    assert str(caught.value) == f"--calibration {file}: not a file of `dmt-ds bench`: {problem}; {remedy}"


def test_rates_of_another_device_are_told_above_the_times(tmp_path) -> None:
    (file := tmp_path / "cal.json").write_text(json.dumps(WHOLE))
    lines = CliRunner().invoke(main, ["plan", "-c", "vit_tiny", "--calibration", str(file)]).output.splitlines()
    assert lines[2] == "Speeds are those of CPU: times hold for as many of these."
    assert "Speeds" not in CliRunner().invoke(main, ["plan", "-c", "vit_tiny"]).output


def test_where_the_global_batch_ends_before_the_memory_it_is_said() -> None:
    ample = CliRunner().invoke(main, ["plan", "-c", "vit_small", "--nodes", "4", "--gpus-per-node", "8"]).output
    assert "accumulation; 128 x 1, the whole global batch, fits" in ample and "the largest" not in ample
    assert "accumulation; the largest that fits is " in CliRunner().invoke(main, ["plan", "-c", "vit_small"]).output


def test_planning_imports_no_torch() -> None:
    program = "import sys; from dmt_ds.cli import main; main(['plan', '-c', 'vit_tiny'], standalone_mode=False); "
    program += "sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)


def test_bench_says_that_it_cannot_write_before_it_measures_and_makes_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: list[object] = []
    monkeypatch.setattr(bench, "run", lambda config: measured.append(config) or Calibration(**WHOLE))
    (tmp_path / "file").write_text("no folder")
    bad = CliRunner().invoke(main, ["bench", "-c", "vit_tiny", "-o", str(tmp_path / "file" / "cal.json")])
    assert bad.exit_code == 2 and not measured
    assert bad.stderr.startswith(f"dmt-ds: error: -o {tmp_path}/file/cal.json: can't be written there (")
    good = CliRunner().invoke(main, ["bench", "-c", "vit_tiny", "-o", str(tmp_path / "results" / "cal.json")])
    assert good.exit_code == 0 and Calibration.read(tmp_path / "results" / "cal.json").teacher_flops == 1e12


@pytest.mark.distributed
def test_bench_measures_what_plan_then_takes(tmp_path) -> None:
    recipe = tiny_run.write_recipe(tmp_path)
    file = tmp_path / "calibration.json"
    done = processes.run(["-m", "dmt_ds", "bench", "-c", str(recipe), "-o", str(file)], processes=2)
    found = json.loads(file.read_text())
    assert all(found[rate] > 0 for rate in ("teacher_flops", "student_flops", "loader_seconds", "gather_bytes"))
    assert "TFLOP/s" in done.stdout and "GB/s" in done.stdout

    made = plan("-c", str(recipe), "--calibration", str(file))
    images = made["run"]["global_batch_size"]
    assert made["step_seconds"]["teachers"] == pytest.approx(
        images * made["flops_per_image"]["teachers"] / found["teacher_flops"]
    )
    assert made["loader_cores_per_node"] == pytest.approx(made["images_per_second"] * found["loader_seconds"])
    assert any(line.startswith("teachers: measured on CPU") for line in made["assumptions"])
    # The tiny teachers say their size themselves: two ViTs of width 48.
    assert made["parameters"]["teachers"] < 200_000
