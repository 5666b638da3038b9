"""A real run's model leaves: a checkpoint of an unfinished one where it is named, and its own tokens in the end."""

import subprocess
import sys

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file

from dmt_ds.cli import main
from dmt_ds.commands.export import CARD_FILE
from dmt_ds.config.load import config_from_yaml
from dmt_ds.models.vit import build_vit, tokens_of
from tests import processes, tiny_run
from tests.models import strangers

pytestmark = pytest.mark.distributed


def test_a_checkpoint_leaves_where_it_is_named_and_a_finished_run_gives_the_trainers_own_tokens(tmp_path):
    recipe, run = tiny_run.write_recipe(tmp_path, train={"steps": 2}), tmp_path / "run"
    processes.run(tiny_run.pretrain(recipe, "train.stop_after_step=1"), processes=2)
    refused = CliRunner().invoke(main, ["export", str(run), "-f", "timm"])
    checkpoint = f"{run}/checkpoints/step00000001"
    assert refused.exit_code == 2 and refused.stderr.endswith(
        f"checkpoint is of step 1); to take it, name {checkpoint}\n"
    )
    taken = CliRunner().invoke(main, ["export", checkpoint, "-f", "timm", "-o", str(tmp_path / "early")])
    assert taken.exit_code == 0, taken.output
    assert ", 1 steps, 32 images seen." in (tmp_path / "early" / "timm" / CARD_FILE).read_text()

    processes.run(tiny_run.pretrain(recipe), processes=2)
    formats = [word for form in ("timm", "transformers", "torch_export") for word in ("-f", form)]
    exported = CliRunner().invoke(main, ["export", str(run), *formats])
    assert exported.exit_code == 0, exported.output
    config = config_from_yaml((run / "config.yaml").read_text())
    trainers = build_vit(config.student, config.data.image_size).eval()
    trainers.load_state_dict(load_file(run / "backbone" / "model.safetensors"))
    batches = [torch.randn(count, 3, 16, 16) for count in (1, 7)]
    torch.save(batches, run / "export" / "images.pt")
    command = [sys.executable, strangers.__file__, str(run), str(tmp_path / "answers.pt")]
    subprocess.run(command, cwd=tmp_path, env=processes.environment(PYTHONPATH=""), check=True)
    found = torch.load(tmp_path / "answers.pt")["export"]
    assert sorted(found) == ["timm", "torch_export", "transformers"]
    for answers in found.values():
        for batch, answer in zip(batches, answers, strict=True):
            torch.testing.assert_close(answer, tokens_of(trainers, batch).detach(), atol=1e-5, rtol=0)
