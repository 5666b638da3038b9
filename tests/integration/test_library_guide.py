"""The guide for those who use the package from Python: each of its blocks runs as it stands, beside a real run."""

import contextlib
import io
import re
from pathlib import Path

import pytest

from tests import processes, tiny_run

GUIDE = Path(__file__).parents[2] / "docs" / "library.md"


@pytest.mark.distributed
def test_every_block_of_the_guide_runs(tmp_path: Path, empty_database: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = f"sqlite:///{tmp_path / 'runs' / 'mlflow.db'}"
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "mlflow.db").write_bytes(empty_database.read_bytes())
    recipe = tiny_run.write_recipe(tmp_path, output_dir=str(tmp_path / "runs" / "vit_tiny"))
    tracking = ("tracking.enabled=true", f"tracking.uri={store}", "tracking.experiment=dmt_ds", "train.steps=2")
    processes.run(tiny_run.pretrain(recipe, *tracking), cwd=tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    blocks = re.findall(r"```python\n(.*?)```", GUIDE.read_text(), flags=re.DOTALL)
    names: dict[str, object] = {}
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        for block in blocks:
            exec(block.replace("(2, 3, 224, 224)", "(2, 3, 16, 16)"), names)  # the size of the run's images
    assert len(blocks) == 4
    assert len(names["loss"]) == 2 and names["vit"].embed_dim == 24  # type: ignore[arg-type,attr-defined]
    assert "dmt_ds 24 torch.Size([2, 17, 24])" in printed.getvalue()
