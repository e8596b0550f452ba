"""Scratch projects: of tiny stages, and with the real rooms. One real Prefect server for all."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from retrain_worlds import World, write_world

ROOT = Path(__file__).parents[2]

STEP = '''
"""A stage for plumbing: joins what it reads with its text; "do" says how it behaves."""
import os, signal, subprocess, sys, time
from pathlib import Path

import yaml

room, name = sys.argv[1:]
entry = yaml.safe_load(open("params.yaml"))[room][name]
start = time.monotonic()
calls = Path("calls")
calls.mkdir(exist_ok=True)
with open(calls / "log", "a") as log:
    log.write(f"{room}@{name}\\n")
print(f"{name} says hello", flush=True)
do, _, detail = entry.get("do", "").partition(":")
if do == "fail":
    print("\\n".join(f"line {i}" for i in range(50)), file=sys.stderr)
    sys.exit("the reason: " + detail)
if do == "meet":  # ends only if the other one runs at the same time
    Path(calls / name).touch()
    deadline = time.monotonic() + 20
    while not Path(calls / detail).exists():
        if time.monotonic() > deadline:
            sys.exit(f"never met {detail}")
        time.sleep(0.02)
if do == "hang":  # with a child, and deaf to SIGTERM
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    Path(calls / "pids.tmp").write_text(f"{os.getpid()} {child.pid}")
    Path(calls / "pids.tmp").rename(calls / "pids")
    time.sleep(600)
if do == "bars":
    from tqdm import tqdm
    for _ in tqdm(range(4), unit="row", disable=None, mininterval=0):
        time.sleep(0.15)
if do == "nap":
    time.sleep(float(detail))
(calls / f"{room}-{name}.span").write_text(f"{start} {time.monotonic()}")
out = Path("data") / (name if room == "step" else f"{room}/{name}")
out.mkdir(parents=True)
reads = [Path("data") / entry[slot] / "text" for slot in ("reads", "also")]
texts = [path.read_text() for path in reads if path.exists()]
(out / "text").write_text(" ".join([*texts, entry["text"]]).split("#")[0].strip())
'''


class Project:
    """A DVC project whose stages are the entries of ``step`` and ``finetune``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def write(self, **rooms: dict[str, dict[str, Any]]) -> None:
        """params.yaml: what an entry does not say is empty or ``none``."""
        empty = {"reads": "none", "also": "none", "text": "", "do": ""}
        params = {
            room: {name: {**empty, **entry} for name, entry in rooms.get(room, {}).items()}
            for room in ("step", "finetune", "study", "evaluate")
        }
        (self.folder / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))

    def repro(self) -> None:
        """Plain ``dvc repro``."""
        argv = [sys.executable, "-m", "dvc", "repro", "-q"]
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        subprocess.run(argv, cwd=self.folder, env={**os.environ, "PATH": path}, check=True)

    def calls(self) -> list[str]:
        """The stages whose command ran, in order, since the last time that this was asked."""
        log = self.folder / "calls/log"
        ran = log.read_text().split() if log.exists() else []
        log.unlink(missing_ok=True)
        return ran

    def text(self, out: str) -> str:
        return (self.folder / "data" / out / "text").read_text()


def _block(room: str, folder: str = "") -> dict[str, Any]:
    """The block of dvc.yaml for a room of the scratch project."""
    stage = {
        "cmd": f"python step.py {room} ${{key}}",
        "params": [f"{room}.${{key}}"],
        "deps": ["step.py", "data/${item.reads}", "data/${item.also}"],
        "outs": [f"data/{folder}${{key}}"],
    }
    return {"foreach": f"${{{room}}}", "do": stage}


@pytest.fixture(scope="session")
def empty_project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("project")
    argv = [sys.executable, "-m", "dvc", "init", "--no-scm", "-q"]
    subprocess.run(argv, cwd=folder, check=True)
    (folder / ".dvc/config").write_text("[core]\n    no_scm = true\n    analytics = false\n")
    (folder / "step.py").write_text(STEP)
    (folder / "data/none").mkdir(parents=True)
    (folder / "data/none/keep").touch()
    (folder / "studies").mkdir()
    root = {"step": _block("step"), "finetune": _block("finetune", "finetune/")}
    study = {"study": _block("study", "study/")}
    study["study"]["do"]["wdir"] = ".."
    (folder / "dvc.yaml").write_text(yaml.safe_dump({"stages": root}))
    (folder / "studies/dvc.yaml").write_text(
        yaml.safe_dump({"vars": ["../params.yaml"], "stages": study})
    )
    return folder


@pytest.fixture
def project(
    empty_project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Project]:
    """A fresh project, which is the working directory."""
    folder = tmp_path / "project"
    shutil.copytree(empty_project, folder)
    monkeypatch.chdir(folder)
    yield Project(folder)


@pytest.fixture(scope="session")
def first_world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_world(tmp_path_factory.mktemp("world")).folder


@pytest.fixture
def world(first_world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    """A fresh copy, which is the working directory."""
    folder = tmp_path / "world"
    shutil.copytree(first_world, folder, symlinks=True)
    monkeypatch.chdir(folder)
    monkeypatch.delenv("QUARRY_RECORDS", raising=False)
    return World(folder)


@pytest.fixture(scope="session")
def server_process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """(API address, Prefect home) of ``python -m flows.ui``, which must end well on SIGTERM."""
    from prefect.logging.handlers import APILogWorker

    from flows import ui

    home = tmp_path_factory.mktemp("prefect")
    port = ui.free_port()
    env = {**os.environ, "PREFECT_HOME": str(home), "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        [sys.executable, "-m", "flows.ui", "--port", str(port)], cwd=home, env=env, text=True,
        stdout=subprocess.PIPE,
    ) as process:  # fmt: skip
        try:
            said = [process.stdout.readline(), process.stdout.readline()]
            assert f"http://127.0.0.1:{port}" in said[1], said
            yield f"http://127.0.0.1:{port}/api", home
        finally:
            APILogWorker.drain_all(timeout=5)
            process.send_signal(signal.SIGTERM)
    assert process.returncode == 0
    assert not ui.is_healthy(f"http://127.0.0.1:{port}/api")
    assert not (home / "address").exists()


@pytest.fixture
def server(server_process: tuple[str, Path]) -> Iterator[str]:
    """The server's API address; flows in this process go there."""
    from prefect.settings import PREFECT_API_URL, PREFECT_HOME, temporary_settings

    url, home = server_process
    with temporary_settings({PREFECT_API_URL: url, PREFECT_HOME: home}):
        yield url


def alive(pid: int) -> bool:
    """Whether a process runs (a zombie does not)."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


@pytest.fixture
def are_alive() -> Callable[[str], list[int]]:
    """Those of the process ids in a text that still run."""
    return lambda pids: [int(pid) for pid in pids.split() if alive(int(pid))]
