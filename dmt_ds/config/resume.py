"""Which settings a run may change when it goes on from a checkpoint, and why; knows nothing of checkpoint files."""

from collections.abc import Collection, Mapping
from typing import Any

from dmt_ds.config.methods import ClassifyConfig

MAY_CHANGE: dict[str, str] = {
    "name": "a label",
    "output_dir": "a folder may be moved",
    "data.path": "a folder may be moved; the images' fingerprint is compared with the checkpoint's",
    "data.num_workers": "images draw their randomness from their own seed, whoever decodes",
    "data.bad_images": "the remedy after a run that stopped at an unreadable image",
    "teachers.models.*.source": "a file may be moved; its sha256 is compared with the checkpoint's",
    "teachers.models.*.licence": "a label",
    "teachers.sharding": "where the frozen weights lie: cutting them does not change their tokens",
    "teachers.shard_over": "where the frozen weights lie: cutting them does not change their tokens",
    "teachers.compile": "the same mathematics, other kernels",
    "teachers.deepspeed": "sharding, offload and precision of frozen weights: tokens differ by rounding at most",
    "train.deepspeed": "a file may be moved; its precision and ZeRO stage are compared with the checkpoint's",
    "train.micro_batch_size": "accumulation is derived anew, the global batch stays",
    "train.log_every_steps": "only looks at the run",
    "train.save_every_steps": "only looks at the run",
    "train.eval_every_epochs": "only looks at the run",
    "train.keep_checkpoints": "only looks at the run",
    "train.profile_steps": "only looks at the run",
    "train.stop_after_step": "says where to end",
    "train.hang_timeout_seconds": "only looks at the run",
    "train.resume": "says how to start",
    "train.accept_changes": "says how to start",
    "train.deterministic": "the same mathematics, other kernels",
    "distill.kernel": "the same mathematics, other kernels",
    "train.compile": "the same mathematics, other kernels",
    "tracking": "only looks at the run",
    "knn": "only looks at the run",
    "linear": "only looks at the run",
}
"""Key or section -> why it may differ; `*` stands for one name. All else may not: the schedule depends on the length
and on optim, the order of images on seed and data, the student on its shape, the loss on teachers and distill."""


SEEDS_MAY_DIFFER: tuple[str, ...] = (
    *("name", "output_dir", "tracking", "teachers.models.*.licence"),
    *("data.num_workers", "data.bad_images", "train.micro_batch_size", "knn.features", "knn.batch_size"),
    *("teachers.sharding", "teachers.shard_over", "teachers.compile"),
    *("train.compile", "train.deterministic", "distill.kernel"),
    *("train.log_every_steps", "train.save_every_steps", "train.eval_every_epochs", "train.keep_checkpoints"),
    *("train.profile_steps", "train.hang_timeout_seconds"),
    *("train.stop_after_step", "train.resume", "train.accept_changes"),
)
"""Of the above what may differ between runs of one table without a look at what they recorded: no readout's protocol,
which decides their scores, and nothing that names images, weights or precision."""
COMPARED_BY_RECORD = ("data.path", "teachers.models.*.source", "teachers.deepspeed", "train.deepspeed")
"""What names images, weights and precision: a suite compares what is there now with what its runs recorded."""


def as_trained(saved: Mapping[str, Any]) -> Mapping[str, Any]:
    """Nested settings as they were saved, with the values that trained before there was a setting for them."""
    classify = saved.get("classify")
    if saved.get("task") != "classify" or not isinstance(classify, Mapping) or "head_std" in classify:
        return saved
    frozen = classify.get("frozen") in (True, "true")  # a file's values are text yet
    return {**saved, "classify": {**classify, "head_std": 0.01 if frozen else 0.02}}


def differences(
    saved: Mapping[str, Any], now: Mapping[str, Any], ignore: Collection[str] = tuple(MAY_CHANGE)
) -> list[str]:
    """Settings that a resumed run must not change but did, one line each: `optim.base_lr: 0.0001 -> 0.001`.

    Args:
        saved: the checkpoint's settings, flat with dotted keys (`dmt_ds.config.load.flatten`).
        now: the settings of the run that starts.
        ignore: keys, or sections, that may differ; `*` stands for one name.
    """
    saved, now = _with_head_std(saved), _with_head_std(now)
    keys = [*saved, *(key for key in now if key not in saved)]
    return [
        f"{key}: {_show(saved, key)} -> {_show(now, key)}"
        for key in keys
        if _show(saved, key) != _show(now, key) and not any(covers(pattern, key) for pattern in ignore)
    ]


def _with_head_std(settings: Mapping[str, Any]) -> Mapping[str, Any]:
    """Flat settings with the number that null stands for: a recipe may say it today and have left it out before."""
    key = "classify.head_std"
    if settings.get("task") != "classify" or settings.get(key, "not set") is not None:
        return settings
    section = ClassifyConfig(frozen=settings.get("classify.frozen", False))
    return {**settings, key: section.first_head_std(settings.get("student.init_from") is not None)}


def covers(pattern: str, key: str) -> bool:
    """Whether a setting is meant by a key or section of the lists above."""
    wanted, given = pattern.split("."), key.split(".")
    return len(wanted) <= len(given) and all(w in ("*", g) for w, g in zip(wanted, given, strict=False))


def _show(settings: Mapping[str, Any], key: str) -> str:
    if key not in settings:
        return "not set"
    value = settings[key]
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(str(item) for item in value)}]"
    return "null" if value is None else str(value)
