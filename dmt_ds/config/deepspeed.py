"""DeepSpeed's JSON files: found, checked, and their "auto" filled from the recipe; imports no DeepSpeed.

A JSON owns ZeRO, precision, offload and communication. What the recipe owns (batch, clipping) and what a teacher's
width decides (how much is gathered ahead) is "auto" there; a literal that disagrees is an error naming both sides.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from dmt_ds.config.batch import BatchPlan
from dmt_ds.config.shipped import Shipped
from dmt_ds.errors import ConfigError

DsConfig = dict[str, Any]
"""What a DeepSpeed JSON says."""

_PACKAGE = Path(__file__).parents[1]
_FOLDERS = (_PACKAGE / "ds_configs", _PACKAGE.parent / "ds_configs")  # of an installed wheel; of a checkout
_JSONS = Shipped("DeepSpeed JSON", "Shipped", _FOLDERS, ".json")

_OWNED_BY_CODE = {
    "optimizer": "AdamW comes from the recipe's section optim; take it out",
    "scheduler": "warm-up and cosine come from the recipe's section optim; take it out",
    "fp16": "needs loss scaling, which is not supported; use bf16, or neither for float32",
    "amp": "needs apex, which is not supported; use bf16, or neither for float32",
}
_SECTIONS = {
    "zero_optimization": '{"stage": 2}',
    "bf16": '{"enabled": true}',
    "fp16": '{"enabled": false}',
    "data_types": '{"grad_accum_dtype": "fp32"}',
    "checkpoint": '{"tag_validation": "Fail"}',
}
_OLD_NAMES = {
    "cpu_offload": 'is an old name; write "offload_optimizer": {"device": "cpu"}',
    "cpu_offload_param": 'is an old name; write "offload_param": {"device": "cpu"}',
}
_REFUSED_FOR_TEACHERS = {
    **_OLD_NAMES,
    "zero_hpz_partition_size": "fails in an engine without optimizer; shard within a node by teachers.shard_over=node",
    "zero_quantized_weights": "changes teachers' tokens; take it out",
    "zero_quantized_nontrainable_weights": "changes teachers' tokens; take it out",
}


def find_ds_config(name_or_path: str | Path) -> Path:
    """File of a DeepSpeed JSON: a bare name is a shipped one, else a file here; anything with a slash is a path.

    Raises:
        ConfigError: there is no such file; the shipped ones are listed.
    """
    return _JSONS.find(name_or_path)


def resolve_student(path: Path, plan: BatchPlan, clip_grad_norm: float) -> DsConfig:
    """The student engine's configuration, with the recipe's batch and clipping in place of "auto" or of nothing.

    Raises:
        ConfigError: no JSON, a key that belongs to the recipe's code, a literal that disagrees with the recipe, or an
            "auto" that nothing fills; all findings at once.
    """
    config = read_ds_config(path)
    recipe: dict[str, tuple[float, str]] = {
        "train_batch_size": (plan.global_batch_size, "train.global_batch_size"),
        "train_micro_batch_size_per_gpu": (plan.micro_batch_size, "train.micro_batch_size"),
        "gradient_accumulation_steps": (
            plan.grad_accum_steps,
            f"{plan.global_batch_size} / ({plan.micro_batch_size} x {plan.world_size} ranks)",
        ),
        "gradient_clipping": (clip_grad_norm, "optim.clip_grad_norm"),
    }
    findings = _forbidden(config, _OWNED_BY_CODE) + list(_untrainable(config))
    for key, (value, owner) in recipe.items():
        literal = config.get(key, "auto")
        if literal not in ("auto", value):
            findings.append(f'{key}={literal} disagrees with the recipe: {owner} gives {value}; write "auto"')
        config[key] = value
    return _finished(path, config, findings)


def resolve_teacher(path: Path, embed_dim: int) -> DsConfig:
    """A teacher engine's configuration, with ZeRO-3's look-ahead made for blocks of this width.

    DeepSpeed's defaults gather any model below 50 million parameters at once, which undoes the sharding. Here one
    block is fetched while another computes: a sixth of a ViT of 12 blocks lies whole at a time.

    Raises:
        ConfigError: no JSON, not ZeRO stage 3, a key that harms a frozen teacher, or an "auto" that nothing fills.
    """
    config = read_ds_config(path)
    zero = config.get("zero_optimization", {})
    findings = _forbidden(config, _OWNED_BY_CODE) + _forbidden(zero, _REFUSED_FOR_TEACHERS, "zero_optimization.")
    findings += _on_disk(zero)
    if zero.get("stage") != 3:
        findings.append(f"zero_optimization.stage={zero.get('stage', 0)}: teachers are sharded with stage 3; write 3")
    if zero.get("memory_efficient_linear", True) is not False:
        findings.append(
            "zero_optimization.memory_efficient_linear: must be false: it replaces F.linear in the whole process"
        )
    block = 12 * embed_dim**2 + 13 * embed_dim  # parameters of a ViT block: attention 4 d^2, MLP 8 d^2, biases, norms
    ahead = {
        "stage3_prefetch_bucket_size": block,
        "stage3_max_live_parameters": 2 * block,
        "stage3_max_reuse_distance": 2 * block,
    }
    filled = {key: ahead[key] if zero.get(key, "auto") == "auto" else zero[key] for key in ahead}
    return _finished(path, {**config, "zero_optimization": {**zero, **filled}}, findings)


def precision(ds_config: DsConfig) -> Literal["bf16", "fp32"]:
    """Number format of an engine's weights and tokens."""
    section = ds_config.get("bf16", {})
    return "bf16" if isinstance(section, dict) and section.get("enabled", False) else "fp32"


def zero_stage(ds_config: DsConfig) -> int:
    """0 (nothing is cut) to 3 (weights are)."""
    return int(ds_config.get("zero_optimization", {}).get("stage", 0))


def named_ds_config(name_or_path: str | Path) -> DsConfig:
    """What the DeepSpeed JSON of that name says, as it is written.

    Raises:
        ConfigError: there is no such file, or `read_ds_config` refuses it.
    """
    return read_ds_config(find_ds_config(name_or_path))


def read_ds_config(path: Path) -> DsConfig:
    """A DeepSpeed JSON as it is written, but that `bfloat16`, the older name, becomes `bf16`.

    Raises:
        ConfigError: it is no JSON object, or a key stands twice in it.
    """
    try:
        config = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_without_twins)
    except json.JSONDecodeError as error:
        raise ConfigError(f"{path}:{error.lineno}:{error.colno}: not valid JSON: {error.msg}") from None
    except _Twins as error:
        raise ConfigError(f"{path}: key '{error}' is given twice; keep one") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: can't be read: {error}") from None
    if not isinstance(config, dict):
        raise ConfigError(f"{path}: must be a JSON object, {{...}}, not {type(config).__name__}")
    if "bfloat16" in config:
        config.setdefault("bf16", config.pop("bfloat16"))
    if findings := list(_misshapen(config)):
        raise ConfigError("\n".join(f"{path}: {finding}" for finding in findings))
    return config


def _misshapen(config: DsConfig) -> Iterator[str]:
    """Values that can't be looked into, where this package does."""
    for key, example in _SECTIONS.items():
        if not isinstance(config.get(key, {}), dict):
            yield f"{key}={json.dumps(config[key])}: must be an object such as {example}"
    zero, half = config.get("zero_optimization", {}), config.get("bf16", {})
    stage = zero.get("stage", 0) if isinstance(zero, dict) else 0
    if type(stage) is not int or stage not in range(4):
        yield f"zero_optimization.stage={json.dumps(stage)}: must be 0, 1, 2 or 3"
    enabled = half.get("enabled", False) if isinstance(half, dict) else False
    if not isinstance(enabled, bool):
        yield f"bf16.enabled={json.dumps(enabled)}: must be true or false"
    for key in ("offload_optimizer", "offload_param"):
        if isinstance(zero, dict) and not isinstance(zero.get(key) or {}, dict):
            yield f'zero_optimization.{key}={json.dumps(zero[key])}: must be an object such as {{"device": "cpu"}}'


class _Twins(Exception):
    """A key stands twice in one object; plain `json` keeps the last without a word."""


def _without_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    keys = [key for key, _ in pairs]
    for key in keys:
        if keys.count(key) > 1:
            raise _Twins(key)
    return dict(pairs)


def _forbidden(section: dict[str, Any], remedies: dict[str, str], prefix: str = "") -> list[str]:
    return [f"{prefix}{key}: {remedies[key]}" for key in section if key in remedies and _is_on(section[key])]


def _untrainable(config: DsConfig) -> Iterator[str]:
    """What DeepSpeed would refuse a student for, or do without float32 masters, with an optimizer of torch's."""
    zero = config.get("zero_optimization", {})
    yield from _forbidden(zero, _OLD_NAMES, "zero_optimization.")
    yield from _on_disk(zero)
    if zero_stage(config) == 0 and precision(config) == "bf16":
        yield (
            "zero_optimization.stage=0: has no float32 masters in bf16; write 1, 2 or 3, or take bf16 out for float32"
        )
    offloads = _offload_device(zero, "offload_optimizer") != "none"
    if offloads and config.get("zero_force_ds_cpu_optimizer", True) is not False:
        yield (
            "zero_optimization.offload_optimizer: DeepSpeed needs its own compiled AdamW there; add "
            '"zero_force_ds_cpu_optimizer": false at the top to use torch\'s on the CPU, or take it out'
        )


def _on_disk(zero: dict[str, Any]) -> list[str]:
    return [
        f'zero_optimization.{key}.device="nvme": needs an op that DeepSpeed compiles, which is not supported; use "cpu"'
        for key in ("offload_optimizer", "offload_param")
        if _offload_device(zero, key) == "nvme"
    ]


def _offload_device(zero: dict[str, Any], key: str) -> str:
    return str((zero.get(key) or {}).get("device", "none"))


def _is_on(value: object) -> bool:
    """Whether a key's value does anything: a group of 1 and a section with `enabled: false` don't."""
    if isinstance(value, dict):
        return value.get("enabled", True) is not False
    if isinstance(value, bool):
        return value
    return value is not None and value not in (0, 1)


def _finished(path: Path, config: DsConfig, findings: list[str]) -> DsConfig:
    findings = findings + [f'{key}="auto": nothing fills it; write a value' for key in _autos(config)]
    if findings:
        raise ConfigError("\n".join(f"{path}: {finding}" for finding in findings))
    return config


def _autos(config: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in config.items():
        if isinstance(value, dict):
            yield from _autos(value, f"{prefix}{key}.")
        elif value == "auto":
            yield f"{prefix}{key}"
