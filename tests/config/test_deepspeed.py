"""DeepSpeed's JSON files are found, checked and filled."""

import json
from pathlib import Path
from typing import Any

import pytest

from dmt_ds.config.batch import BatchPlan, plan_batch
from dmt_ds.config.deepspeed import (
    find_ds_config,
    precision,
    read_ds_config,
    resolve_student,
    resolve_teacher,
    zero_stage,
)
from dmt_ds.errors import ConfigError

SHIPPED = sorted(path.stem for path in (Path(__file__).parents[2] / "ds_configs").glob("*.json"))
STUDENTS = [name for name in SHIPPED if name.startswith("student")]
TEACHERS = [name for name in SHIPPED if name.startswith("teacher")]
PLAN = plan_batch(4096, 128, 8)
ZERO3 = {"stage": 3, "memory_efficient_linear": False}


def written(folder: Path, config: object) -> Path:
    path = folder / "ds.json"
    path.write_text(config if isinstance(config, str) else json.dumps(config))
    return path


def complaints(path: Path, embed_dim: int | None = None, plan: BatchPlan = PLAN, clip: float = 0.0) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        resolve_student(path, plan, clip) if embed_dim is None else resolve_teacher(path, embed_dim)
    return [line.removeprefix(f"{path}: ") for line in str(caught.value).splitlines()]


def autos(config: Any) -> int:
    if isinstance(config, dict):
        return sum(autos(value) for value in config.values())
    return int(config == "auto")


def test_the_shipped_files_are_there() -> None:
    assert {"student_zero2_bf16", "student_zero2_fp32", "student_zero1_bf16", "student_zero3_bf16"} == set(STUDENTS)
    assert {"teacher_zero3_inference", "teacher_zero3_inference_fp32", "teacher_zero3_cpu_offload"} == set(TEACHERS)


@pytest.mark.parametrize("name", STUDENTS)
def test_a_students_batch_and_clipping_come_from_the_recipe(name: str) -> None:
    config = resolve_student(find_ds_config(name), PLAN, 3.0)
    assert config["train_batch_size"] == 4096
    assert config["train_micro_batch_size_per_gpu"] == 128
    assert config["gradient_accumulation_steps"] == 4
    assert config["gradient_clipping"] == 3.0
    assert autos(config) == 0


@pytest.mark.parametrize("name", SHIPPED)
def test_names_of_shipped_files_tell_stage_and_precision(name: str) -> None:
    config = read_ds_config(find_ds_config(name))
    assert f"zero{zero_stage(config)}" in name
    assert precision(config) == ("fp32" if name.endswith("fp32") else "bf16")


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_files_cost_no_hidden_synchronisation_and_leave_torch_alone(name: str) -> None:
    config = read_ds_config(find_ds_config(name))
    assert config["timers"]["throughput"]["enabled"] is False
    if zero_stage(config) == 3:
        assert config["zero_optimization"]["memory_efficient_linear"] is False


@pytest.mark.parametrize("name", TEACHERS)
@pytest.mark.parametrize("embed_dim", [96, 768, 1024])
def test_a_teachers_look_ahead_stays_below_a_quarter_of_its_blocks(name: str, embed_dim: int) -> None:
    zero = resolve_teacher(find_ds_config(name), embed_dim)["zero_optimization"]
    blocks = 12 * (12 * embed_dim**2 + 13 * embed_dim)
    assert 0 < zero["stage3_prefetch_bucket_size"] <= zero["stage3_max_live_parameters"] < blocks / 4
    assert autos(zero) == 0


def test_the_width_formula_counts_a_real_block() -> None:
    timm_vit = pytest.importorskip("timm.models.vision_transformer")
    block = timm_vit.Block(96, 3, qkv_bias=True)
    num_parameters = sum(parameter.numel() for parameter in block.parameters())
    assert num_parameters == 12 * 96**2 + 13 * 96


def test_a_number_written_in_a_teachers_file_is_kept(tmp_path: Path) -> None:
    path = written(tmp_path, {"zero_optimization": {**ZERO3, "stage3_prefetch_bucket_size": 5}})
    assert resolve_teacher(path, 768)["zero_optimization"]["stage3_prefetch_bucket_size"] == 5


def test_batch_keys_that_are_left_out_are_filled_too(tmp_path: Path) -> None:
    assert resolve_student(written(tmp_path, {}), PLAN, 1.0)["gradient_accumulation_steps"] == 4


def test_a_literal_that_agrees_is_accepted(tmp_path: Path) -> None:
    resolve_student(written(tmp_path, {"train_batch_size": 4096, "gradient_clipping": 1}), PLAN, 1.0)


def test_a_literal_that_disagrees_names_both_sides(tmp_path: Path) -> None:
    path = written(tmp_path, {"train_batch_size": 512, "gradient_clipping": 1.0})
    assert complaints(path) == [
        'train_batch_size=512 disagrees with the recipe: train.global_batch_size gives 4096; write "auto"',
        'gradient_clipping=1.0 disagrees with the recipe: optim.clip_grad_norm gives 0.0; write "auto"',
    ]


@pytest.mark.parametrize("key", ["optimizer", "scheduler"])
def test_what_the_code_owns_is_refused_with_the_place_where_it_is_set(tmp_path: Path, key: str) -> None:
    (line,) = complaints(written(tmp_path, {key: {"type": "AdamW"}}))
    assert line.startswith(f"{key}: ")
    assert line.endswith("section optim; take it out")


def test_a_section_that_is_no_object_is_refused_with_an_example_and_all_at_once(tmp_path: Path) -> None:
    assert complaints(written(tmp_path, {"bf16": True, "zero_optimization": 2, "checkpoint": []})) == [
        'zero_optimization=2: must be an object such as {"stage": 2}',
        'bf16=true: must be an object such as {"enabled": true}',
        'checkpoint=[]: must be an object such as {"tag_validation": "Fail"}',
    ]


@pytest.mark.parametrize("stage", [4, -1, "two", None, True, 2.0])
def test_a_stage_that_there_is_not_is_refused(tmp_path: Path, stage: object) -> None:
    path = written(tmp_path, {"zero_optimization": {"stage": stage}})
    assert complaints(path) == [f"zero_optimization.stage={json.dumps(stage)}: must be 0, 1, 2 or 3"]


def test_what_is_neither_on_nor_off_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path, {"bf16": {"enabled": "false"}, "zero_optimization": {"offload_param": True}})
    assert complaints(path) == [
        'bf16.enabled="false": must be true or false',
        'zero_optimization.offload_param=true: must be an object such as {"device": "cpu"}',
    ]


def test_a_student_in_bf16_without_masters_is_refused_and_in_float32_it_is_not(tmp_path: Path) -> None:
    (line,) = complaints(written(tmp_path, {"bf16": {"enabled": True}}))
    assert line.startswith("zero_optimization.stage=0: has no float32 masters in bf16; write 1, 2 or 3")
    resolve_student(written(tmp_path, {}), PLAN, 0.0)


def test_an_offloaded_optimizer_must_be_torchs(tmp_path: Path) -> None:
    zero = {"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu"}}}
    (line,) = complaints(written(tmp_path, zero))
    assert line.startswith("zero_optimization.offload_optimizer: DeepSpeed needs its own compiled AdamW there; add ")
    resolve_student(written(tmp_path, {**zero, "zero_force_ds_cpu_optimizer": False}), PLAN, 0.0)
    resolve_student(
        written(tmp_path, {"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "none"}}}), PLAN, 0.0
    )


@pytest.mark.parametrize("embed_dim", [None, 768])
def test_what_must_be_compiled_and_old_names_are_refused_for_students_and_teachers(
    tmp_path: Path, embed_dim: int | None
) -> None:
    zero = {**ZERO3, "offload_param": {"device": "nvme"}, "cpu_offload_param": True}
    lines = complaints(written(tmp_path, {"zero_optimization": zero}), embed_dim)
    assert lines[0].startswith("zero_optimization.cpu_offload_param: is an old name; write ")
    assert lines[1].startswith('zero_optimization.offload_param.device="nvme": needs an op that DeepSpeed compiles')
    assert len(lines) == 2


def test_half_precision_is_refused_and_switched_off_half_precision_is_not(tmp_path: Path) -> None:
    assert complaints(written(tmp_path, {"fp16": {"enabled": True}}))[0].startswith("fp16: ")
    resolve_student(written(tmp_path, {"fp16": {"enabled": False}}), PLAN, 0.0)


def test_an_auto_that_nothing_fills_is_named(tmp_path: Path) -> None:
    path = written(tmp_path, {"zero_optimization": {"stage": 2, "reduce_bucket_size": "auto"}})
    assert complaints(path) == ['zero_optimization.reduce_bucket_size="auto": nothing fills it; write a value']


def test_a_teacher_must_be_sharded_by_stage_three(tmp_path: Path) -> None:
    path = written(tmp_path, {"zero_optimization": {"stage": 2, "memory_efficient_linear": False}})
    assert complaints(path, 768) == ["zero_optimization.stage=2: teachers are sharded with stage 3; write 3"]


def test_a_teacher_must_not_replace_linear_for_everybody(tmp_path: Path) -> None:
    (line,) = complaints(written(tmp_path, {"zero_optimization": {"stage": 3}}), 768)
    assert line.startswith("zero_optimization.memory_efficient_linear: must be false")


@pytest.mark.parametrize("key", ["zero_hpz_partition_size", "zero_quantized_weights"])
def test_what_breaks_or_changes_teachers_is_refused(tmp_path: Path, key: str) -> None:
    value = 2 if "size" in key else True
    (line,) = complaints(written(tmp_path, {"zero_optimization": {**ZERO3, key: value}}), 768)
    assert line.startswith(f"zero_optimization.{key}: ")


def test_broken_json_is_located_by_line_and_column(tmp_path: Path) -> None:
    path = written(tmp_path, '{\n  "bf16": {"enabled": true},\n  oops\n}')
    with pytest.raises(ConfigError, match=r"ds\.json:3:3: not valid JSON"):
        read_ds_config(path)


def test_the_older_name_of_bf16_means_the_same(tmp_path: Path) -> None:
    path = written(tmp_path, {"bfloat16": {"enabled": True}, "zero_optimization": {"stage": 2}})
    config = resolve_student(path, PLAN, 0.0)
    assert config["bf16"] == {"enabled": True} and "bfloat16" not in config
    assert precision(config) == "bf16"


def test_a_key_that_stands_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="key 'stage' is given twice"):
        read_ds_config(written(tmp_path, '{"zero_optimization": {"stage": 2, "stage": 3}}'))


def test_json_that_is_no_object_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="must be a JSON object"):
        read_ds_config(written(tmp_path, "[1, 2]"))


def test_a_missing_file_lists_the_shipped_ones() -> None:
    with pytest.raises(ConfigError, match=r"'student_zero2_bf61' is not there\. Did you mean 'student_zero2_bf16'\?"):
        find_ds_config("student_zero2_bf61")


def test_a_path_wins_over_names(tmp_path: Path) -> None:
    assert find_ds_config(str(written(tmp_path, {}))) == tmp_path / "ds.json"


def test_an_existing_file_is_taken_whatever_its_ending_and_a_folder_is_told_to_be_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ds.conf").write_text("{}")
    assert find_ds_config("ds.conf") == Path("ds.conf")
    (tmp_path / "folder").mkdir()
    with pytest.raises(ConfigError, match="DeepSpeed JSON 'folder': is a folder; give a file in it"):
        find_ds_config("folder")
