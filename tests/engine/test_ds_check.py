"""What DeepSpeed itself refuses in a JSON is told with file, key and remedy, before an engine is built."""

from pathlib import Path

import pytest

from dmt_ds.config.batch import plan_batch
from dmt_ds.config.deepspeed import find_ds_config, resolve_student, resolve_teacher
from dmt_ds.engine.deepspeed.ds_check import check_ds_config
from dmt_ds.errors import ConfigError

SHIPPED = sorted(path.stem for path in (Path(__file__).parents[2] / "ds_configs").glob("*.json"))
BATCH = {"train_batch_size": 64, "train_micro_batch_size_per_gpu": 4, "gradient_accumulation_steps": 2}


def complaints(config: dict[str, object]) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        check_ds_config(Path("own.json"), {**BATCH, **config})
    return str(caught.value).splitlines()


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_files_are_taken_whatever_the_number_of_ranks(name: str) -> None:
    path = find_ds_config(name)
    is_student = name.startswith("student")
    check_ds_config(path, resolve_student(path, plan_batch(64, 4, 8), 1.0) if is_student else resolve_teacher(path, 96))


def test_unknown_keys_and_impossible_values_are_told_together() -> None:
    zero = {"stag": 1, "reduce_bucket_size": -1, "offload_param": {"device": "gpu"}}
    assert complaints({"zero_optimization": zero}) == [
        "own.json: zero_optimization.reduce_bucket_size=-1: must be > 0",
        "own.json: zero_optimization.offload_param.device=gpu: input should be 'none', 'cpu' or 'nvme'",
        "own.json: zero_optimization.stag: unknown key. Did you mean 'stage'?",
    ]
    assert complaints({"bf16": {"enabeld": True}}) == ["own.json: bf16.enabeld: unknown key. Did you mean 'enabled'?"]


@pytest.mark.parametrize("config", [{"communication_data_type": "fp13"}, {"timers": 3}, {"nebula": {}}])
def test_anything_else_that_it_refuses_is_one_line_with_the_file(config: dict[str, object]) -> None:
    (line,) = complaints(config)
    assert line.startswith("own.json: DeepSpeed refuses it: ")
