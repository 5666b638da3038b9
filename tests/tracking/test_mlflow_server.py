"""The server that `slurm/mlflow_server.sh` starts: whom it listens to, whom it answers, what it tells."""

import base64
import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest

from tests.processes import free_port
from tests.tracking.recorded import Recorder
from tests.tracking.stores import wait_until

SCRIPT = Path(__file__).parents[2] / "slurm" / "mlflow_server.sh"

pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
needs_auth = pytest.mark.skipif(importlib.util.find_spec("flask_wtf") is None, reason="mlflow[auth] is not installed")


def environment(port: int, **settings: str) -> dict[str, str]:
    """Without what the user may have set."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW_", "SLURM_"))}
    return {**kept, "DMT_DS_PYTHON": sys.executable, "DMT_DS_SITE": "/nothing", "PORT": str(port), **settings}


def refusal(folder: Path, **settings: str) -> str:
    """What the script says, where it must not start anything."""
    command = ["bash", str(SCRIPT), str(folder / "mlflow.db")]
    done = subprocess.run(
        command, env=environment(free_port(), **settings), capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    return done.stderr


@contextmanager
def serving(folder: Path, **settings: str) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """The script's process and port, once the server answers; a server that stays behind is an error."""
    port = free_port()
    with (folder / "log").open("wb") as log:
        command = ["bash", str(SCRIPT), str(folder / "mlflow.db")]
        process = subprocess.Popen(
            command, env=environment(port, **settings), stdout=log, stderr=log, start_new_session=True
        )
    try:
        wait_until(lambda: process.poll() is not None or listens("127.0.0.1", port), 120)
        assert process.poll() is None, (folder / "log").read_text()
        yield process, port
        process.terminate()
        process.wait(30)
        wait_until(lambda: not listens("127.0.0.1", port))
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def listens(host: str, port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(5)
        return probe.connect_ex((host, port)) == 0


def own_addresses() -> list[str]:
    """Where other machines reach this one."""
    words = subprocess.run(["hostname", "-I"], capture_output=True, text=True, check=False).stdout.split()
    return [word for word in words if "." in word]


def answer(port: int, password: str | None = None, host: str = "127.0.0.1", **headers: str) -> int:
    """HTTP status of a search for experiments, as the page asks for it."""
    request = Request(
        f"http://127.0.0.1:{port}/ajax-api/2.0/mlflow/experiments/search",
        data=b'{"max_results": 5}',
        headers={"Content-Type": "application/json", "Host": f"{host}:{port}", **headers},
    )
    if password is not None:
        request.add_header("Authorization", "Basic " + base64.b64encode(f"admin:{password}".encode()).decode())
    try:
        with urlopen(request, timeout=30) as response:
            return int(response.status)
    except HTTPError as error:
        return error.code


def words_of_processes(session: int) -> list[str]:
    """Command lines of a session's processes, which everyone on the machine can read."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has ended
            if os.getsid(int(folder.name)) == session:
                found.append((folder / "cmdline").read_text())
    return found


def test_by_default_only_this_machine_can_reach_it(tmp_path: Path) -> None:
    with serving(tmp_path) as (_, port):
        assert answer(port) == 200
        assert answer(port, host="elsewhere.example") == 403
        assert not any(listens(address, port) for address in own_addresses())
        assert f"ssh -N -L {port}:127.0.0.1:{port} " in (tmp_path / "log").read_text()
        assert "network file system" not in (tmp_path / "log").read_text()


def test_it_tells_the_address_that_opens_the_runs_of_each_experiment(empty_database: Path, tmp_path: Path) -> None:
    folder = tmp_path / "50% # of all"
    folder.mkdir()
    shutil.copyfile(empty_database, folder / "mlflow.db")
    for name in ("first", "my runs"):
        Recorder.of_experiment(f"sqlite:///{folder / 'mlflow.db'}", name).add("a", {})
    with serving(folder) as (_, port):
        lines = [line.partition(": ")[2] for line in (folder / "log").read_text().splitlines()]
    page = f"http://localhost:{port}/#/experiments"
    told = [line for line in lines if line.startswith("runs of ")]
    assert told == [
        f"runs of my runs: {page}/2?workflowType=machine_learning",
        f"runs of first: {page}/1?workflowType=machine_learning",
    ]


def test_a_port_that_is_taken_is_told_before_anything_is_made(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        assert f"port {port} is taken" in refusal(tmp_path, PORT=port)
    assert list(tmp_path.iterdir()) == []


@needs_auth
@pytest.mark.parametrize("setting", ["OPEN", "AUTH"])
def test_it_does_not_open_without_a_password(tmp_path: Path, setting: str) -> None:
    assert "no password: MAKE_PASSWORD=1 makes one" in refusal(tmp_path, **{setting: "1"})
    assert "must have at least 12 characters" in refusal(tmp_path, **{setting: "1"}, MLFLOW_AUTH_ADMIN_PASSWORD="admin")
    (tmp_path / "mlflow_server.secrets").write_text("MLFLOW_AUTH_ADMIN_PASSWORD=correct horse battery staple\n")
    (tmp_path / "mlflow_server.secrets").chmod(0o640)
    assert "others can read it; chmod 600" in refusal(tmp_path, **{setting: "1"})


@needs_auth
def test_opened_to_others_it_asks_for_the_password_and_tells_it_nobody(tmp_path: Path) -> None:
    with serving(tmp_path, OPEN="1", MAKE_PASSWORD="1") as (process, port):
        secrets = (tmp_path / "mlflow_server.secrets").read_text()
        first, second = (line.split("=", 1)[1] for line in secrets.splitlines())
        assert len(first) >= 32 and first != second
        assert [answer(port), answer(port, "wrong password"), answer(port, first)] == [401, 401, 200]
        name = socket.gethostname()
        assert answer(port, first, host=name, Origin=f"http://{name}:{port}") == 200
        assert answer(port, first, host="elsewhere.example") == 403
        assert answer(port, first, Origin="http://elsewhere.example") == 403
        assert all(listens(address, port) for address in own_addresses())
        told = [(tmp_path / "log").read_text(), *words_of_processes(process.pid)]
        assert len(told) >= 3
        assert not any(secret in text for secret in (first, second) for text in told)
    for name in ("mlflow_server.secrets", "mlflow_auth.db", "mlflow_auth.ini"):
        assert (tmp_path / name).stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    "store",
    [
        "postgresql://me:hunter2secret@db/runs",
        "mysql+pymysql://me:hunter2/se?c@ret@db/runs",
        "postgresql://db/runs?user=me&password=hunter2secret",
    ],
)
def test_a_databases_password_reaches_the_server_and_nobody_else(tmp_path: Path, store: str) -> None:
    python = tmp_path / "python"  # MLflow's part is played: there is no database
    told = f'printf "%s\\n" "$MLFLOW_BACKEND_STORE_URI" >{tmp_path}/uri; printf "%s\\n" "$*" >{tmp_path}/words'
    python.write_text(f'#!/bin/bash\nif [[ $2 == mlflow ]]; then {told}; exit; fi\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    known = environment(free_port(), DMT_DS_PYTHON=str(python))
    done = subprocess.run(["bash", SCRIPT, store], env=known, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert (tmp_path / "uri").read_text() == f"{store}\n"
    said = done.stdout + done.stderr + (tmp_path / "words").read_text()
    assert not [part for part in ("hunter2", "ret@", "secret") if part in said], said
    assert "db/runs" in done.stdout.splitlines()[0]
