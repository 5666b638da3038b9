"""Settings of a run's folder: whoever names several folders is told which one can't be read."""

import re
from pathlib import Path

import pytest

from dmt_ds.commands.run_folder import add_to_run
from dmt_ds.commands.training.finetune import name_of
from dmt_ds.errors import ConfigError


@pytest.mark.parametrize("text", ["optim: {", "optim: {wieght: 1}"], ids=["damaged", "unknown key"])
def test_settings_that_can_not_be_read_are_named_with_their_folder(text: str, tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(text)
    for read in (lambda: add_to_run(tmp_path, {"eval/knn_top1": 0.5}, step=1), lambda: name_of(str(tmp_path))):
        with pytest.raises(ConfigError, match=f"^{re.escape(str(file))}:"):
            read()
