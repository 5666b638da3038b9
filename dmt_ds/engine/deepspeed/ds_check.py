"""DeepSpeed's own word on a resolved JSON, before an engine is built; knows no model and starts nothing."""

from collections.abc import Iterator
from pathlib import Path

from pydantic import BaseModel, ValidationError

from dmt_ds.config.deepspeed import DsConfig
from dmt_ds.config.findings import describe
from dmt_ds.engine.deepspeed.ds_engine import library
from dmt_ds.errors import ConfigError
from dmt_ds.wording import one_line

_SECTIONS = {"DeepSpeedZeroConfig": "zero_optimization", "DeepSpeedBF16Config": "bf16"}
"""Key of the JSON that DeepSpeed reads as a model of this name."""


def check_ds_config(path: Path, config: DsConfig) -> None:
    """Have DeepSpeed read it: keys that it does not know and values that it can't use, section by section.

    Args:
        path: file that it was resolved from, for messages.

    Raises:
        ConfigError: DeepSpeed refuses it; one line a finding of the first section that is wrong.
    """
    # Ranks may not have met yet: the batch of all of them is derived from the others.
    alone = {key: value for key, value in config.items() if key != "train_batch_size"}
    try:
        library().DeepSpeedConfig(alone if "train_micro_batch_size_per_gpu" in alone else config)
    except ValidationError as error:
        raise ConfigError("\n".join(f"{path}: {line}" for line in _lines(error))) from None
    except Exception as error:  # of any kind: it looks into values that it has not checked
        reason = one_line(str(error)) or type(error).__name__
        raise ConfigError(f"{path}: DeepSpeed refuses it: {reason}") from error


def _lines(error: ValidationError) -> Iterator[str]:
    section = _SECTIONS.get(error.title, error.title)
    for line in describe(error, {}, "", _model(error.title)):
        yield f"{section}.{line.removeprefix(': ')}"


def _model(name: str) -> type[BaseModel]:
    models: list[type[BaseModel]] = [*library().runtime.config.DeepSpeedConfigModel.__subclasses__()]
    return next((model for model in models if model.__name__ == name), BaseModel)
