"""Checkpoints that were damaged, and one that a stranger has written: what the next start does with them."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from dmt_ds.engine.checkpoints.manifest import hashes_of
from tests import processes, tiny_run
from tests.faults import places
from tests.faults.rounds import turn_a_bit_over

pytestmark = pytest.mark.distributed
OPTIMIZER = "zero_pp_rank_0_mp_rank_00_optim_states.pt"


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a recipe whose run stands at step 4 and has checkpoints of steps 2 and 4."""
    folder = tmp_path_factory.mktemp("saved")
    recipe = tiny_run.write_recipe(folder, train={"save_every_steps": 2})
    processes.run(tiny_run.pretrain(recipe, "train.stop_after_step=4"))
    return folder


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> dict[int, float]:
    folder = tmp_path_factory.mktemp("unbroken")
    processes.run(tiny_run.pretrain(tiny_run.write_recipe(folder)))
    return tiny_run.losses(folder / "run")


@pytest.fixture
def copy(saved: Path, tmp_path: Path) -> Path:
    """The run folder again, to be harmed."""
    return Path(shutil.copytree(saved / "run", tmp_path / "run"))


def start(saved: Path, run: Path, **options: bool) -> tuple[int, str]:
    done = processes.run(tiny_run.pretrain(saved / "recipe.yaml", f"output_dir={run}"), check=False)
    return done.returncode, done.stderr


HARMS: dict[str, Callable[[Path], object]] = {
    "truncated": lambda file: os.truncate(file, file.stat().st_size // 2),
    "a bit turned over": turn_a_bit_over,
    "emptied": lambda file: file.write_bytes(b""),
    "latest points nowhere": lambda file: (file.parents[1] / "latest").write_text("step99999999"),
}


@pytest.mark.parametrize("harm", HARMS)
def test_the_run_goes_on_from_what_is_whole_with_the_losses_of_an_unbroken_one(saved, copy, unbroken, harm):
    HARMS[harm](copy / "checkpoints" / "step00000004" / OPTIMIZER)
    code, said = start(saved, copy)
    assert code == 0
    assert ("step00000004: skipped" in said) == (harm != "latest points nowhere")
    assert f"resuming from {copy}/checkpoints/step0000000{2 if 'skipped' in said else 4}" in said
    assert tiny_run.losses(copy) == unbroken


def test_a_checkpoint_that_can_not_be_read_for_a_while_is_the_one_that_the_run_goes_on_from_later(
    saved, copy, unbroken
):
    manifest = copy / "checkpoints" / "step00000004" / "manifest.json"
    content = manifest.read_bytes()
    places.without_answer(manifest)
    code, said = start(saved, copy)
    (line,) = [line for line in said.splitlines() if line.startswith("dmt-ds: error:")]
    assert code == 75 and f"{manifest}: can't be read (Input/output error)" in line
    manifest.unlink()
    manifest.write_bytes(content)
    code, said = start(saved, copy)
    assert code == 0 and f"resuming from {copy}/checkpoints/step00000004" in said
    assert tiny_run.losses(copy) == unbroken


class Bomb:
    """Makes a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch '{self.mark}'",)


def forge(checkpoint: Path, name: str, mark: Path, zipped: bool) -> None:
    """Put a program into a file of DeepSpeed's, and make the manifest fit it."""
    state = torch.load(checkpoint / name, weights_only=False)
    state["more"] = Bomb(mark)
    torch.save(state, checkpoint / name, _use_new_zipfile_serialization=zipped)
    content = json.loads((checkpoint / "manifest.json").read_text())
    mark_of_file = {"bytes": (checkpoint / name).stat().st_size, "sha256": hashes_of(checkpoint, [name])[name]}
    content["files"][name] = mark_of_file
    (checkpoint / "manifest.json").write_text(json.dumps(content))


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("name", [OPTIMIZER, "mp_rank_00_model_states.pt"])
def test_a_checkpoint_that_would_run_a_program_is_refused_even_with_a_manifest_that_fits(
    saved, copy, tmp_path, name, zipped
):
    forge(copy / "checkpoints" / "step00000004", name, tmp_path / "has run", zipped)
    code, said = start(saved, copy)
    assert code == 2 and not (tmp_path / "has run").exists()
    (line,) = [line for line in said.splitlines() if line.startswith("dmt-ds: error:")]
    assert f"step00000004/{name}: refused" in line
    assert not zipped or line.count("posix.system") == 1


def test_the_program_would_run_where_nothing_holds_it(copy, tmp_path):
    forge(copy / "checkpoints" / "step00000004", OPTIMIZER, tmp_path / "has run", zipped=True)
    torch.load(copy / "checkpoints" / "step00000004" / OPTIMIZER, weights_only=False)
    assert (tmp_path / "has run").exists()
