"""Ending a flow early, from outside: nothing keeps running, and the run says Cancelled."""

import os
import re
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import httpx

ROOT = Path(__file__).parents[2]
STEPS = {"a": {"do": "hang"}, "b": {"reads": "a"}}


def start(**env: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "flows.build"], text=True, start_new_session=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), **env},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def wait_until_hanging(process: subprocess.Popen[str], project) -> str:
    """The process ids of the stage and its child."""
    pids = project.folder / "calls/pids"
    deadline = time.monotonic() + 120
    while not pids.exists():
        assert process.poll() is None, process.stdout.read()
        assert time.monotonic() < deadline
        time.sleep(0.1)
    return pids.read_text()


def test_cancel_in_the_page_ends_the_stages_and_their_children(server, project, are_alive):
    project.write(step=STEPS)
    process = start(PREFECT_API_URL=server)
    try:
        pids = wait_until_hanging(process, project)
        assert len(are_alive(pids)) == 2
        body = {"flow_runs": {"state": {"type": {"any_": ["RUNNING"]}}}}
        (run,) = httpx.post(f"{server}/flow_runs/filter", json=body, timeout=30).json()
        cancel = {"state": {"type": "CANCELLING"}, "force": False}
        httpx.post(f"{server}/flow_runs/{run['id']}/set_state", json=cancel, timeout=30)
        said, _ = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130, said
    assert are_alive(pids) == []
    run = httpx.get(f"{server}/flow_runs/{run['id']}", timeout=30).json()
    assert run["state_type"] == "CANCELLED"
    body = {"task_runs": {"flow_run_id": {"any_": [run["id"]]}}}
    tasks = httpx.post(f"{server}/task_runs/filter", json=body, timeout=30).json()
    assert {t["name"]: t["state_name"] for t in tasks} == {"step@a": "Cancelled"}


def test_ctrl_c_ends_stages_and_the_flows_own_server_which_knows_how_it_ended(
    project, are_alive, tmp_path
):
    project.write(step=STEPS)
    (tmp_path / "home").mkdir()
    process = start(PREFECT_HOME=str(tmp_path / "home"))
    try:
        pids = wait_until_hanging(process, project)
        os.killpg(process.pid, signal.SIGINT)
        said, _ = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130, said
    assert are_alive(pids) == []
    api = re.search(r"watch it: (http://127.0.0.1:\d+)", said)[1]
    try:
        raise AssertionError(f"the server still answers: {httpx.get(f'{api}/api/health')}")
    except httpx.ConnectError:
        pass
    with sqlite3.connect(tmp_path / "home/prefect.db") as db:
        assert db.execute("SELECT state_name FROM flow_run").fetchall() == [("Cancelled",)]
        assert dict(db.execute("SELECT name, state_name FROM task_run")) == {"step@a": "Cancelled"}
