"""A folder is the old one or the new one, whatever happens on the way."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from dmt_ds.models.whole_folder import whole_folder


def write(folder: Path, text: str) -> None:
    with whole_folder(folder) as partial:
        (partial / "part").mkdir()
        (partial / "part" / "file").write_text(text)


def found_in(parent: Path) -> dict[str, str]:
    return {str(path.relative_to(parent)): path.read_text() for path in parent.rglob("*") if path.is_file()}


def test_the_new_one_takes_the_place_of_the_old_one_and_leaves_nothing_else(tmp_path: Path) -> None:
    write(tmp_path / "deep" / "model", "old")
    write(tmp_path / "deep" / "model", "new")
    assert found_in(tmp_path) == {"deep/model/part/file": "new"}
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["model"]


def test_an_error_while_it_is_filled_keeps_the_old_one(tmp_path: Path) -> None:
    write(tmp_path / "model", "old")
    with pytest.raises(UnicodeEncodeError):
        write(tmp_path / "model", "no letter: \ud800")
    assert found_in(tmp_path) == {"model/part/file": "old"}


def test_a_failure_at_the_rename_keeps_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "model", "old")
    rename = os.rename

    def fail_for_the_new_one(source: Path, target: Path) -> None:
        if source.name == ".model.partial":
            raise OSError("the server is away")
        rename(source, target)

    monkeypatch.setattr(os, "rename", fail_for_the_new_one)
    with pytest.raises(OSError, match="away"):
        write(tmp_path / "model", "new")
    assert found_in(tmp_path) == {"model/part/file": "old"}


@pytest.mark.parametrize("renames", [0, 1])
def test_a_kill_at_any_rename_loses_neither_the_old_one_nor_the_next_try(tmp_path: Path, renames: int) -> None:
    program = f"""
import os, signal, sys
from pathlib import Path
from dmt_ds.models.whole_folder import whole_folder
left, rename = [{renames}], os.rename
def killed(source, target):
    if not left[0]:
        os.kill(os.getpid(), signal.SIGKILL)
    left[0] -= 1
    rename(source, target)
os.rename = killed
with whole_folder(Path(sys.argv[1])) as partial:
    (partial / "file").write_text("new")
"""
    write(tmp_path / "model", "old")
    ended = subprocess.run([sys.executable, "-c", program, str(tmp_path / "model")])
    assert ended.returncode == -signal.SIGKILL
    assert "old" in found_in(tmp_path).values()
    write(tmp_path / "model", "newer")
    assert found_in(tmp_path)["model/part/file"] == "newer"
