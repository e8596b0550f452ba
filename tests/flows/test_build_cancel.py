"""Ending a flow early, from outside: nothing keeps running, and the run says Cancelled."""

import os
import re
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path

import httpx
import pytest

from flows.build import build

ROOT = Path(__file__).parents[2]
STEPS = {"a": {"do": "hang"}, "b": {"reads": "a"}}


def wait_for_pids(project) -> str:
    """The process ids of the stage and its child, once they hang."""
    pids = project.folder / "calls/pids"
    deadline = time.monotonic() + 120
    while not pids.exists():
        assert time.monotonic() < deadline
        time.sleep(0.1)
    return pids.read_text()


def test_cancel_in_the_page_ends_the_stages_and_their_children(server, project, are_alive):
    project.write(step=STEPS)
    seen: list[int] = []

    def cancel() -> None:
        seen.extend(are_alive(wait_for_pids(project)))
        body = {"flow_runs": {"state": {"type": {"any_": ["RUNNING"]}}}}
        (run,) = httpx.post(f"{server}/flow_runs/filter", json=body, timeout=30).json()
        wanted = {"state": {"type": "CANCELLING"}, "force": False}
        httpx.post(f"{server}/flow_runs/{run['id']}/set_state", json=wanted, timeout=30)

    user = threading.Thread(target=cancel)
    user.start()
    state = build(return_state=True)
    user.join()
    assert len(seen) == 2
    assert are_alive(wait_for_pids(project)) == []
    run_id = str(state.state_details.flow_run_id)
    run = httpx.get(f"{server}/flow_runs/{run_id}", timeout=30).json()
    assert run["state_type"] == "CANCELLED"
    body = {"task_runs": {"flow_run_id": {"any_": [run_id]}}}
    tasks = httpx.post(f"{server}/task_runs/filter", json=body, timeout=30).json()
    assert {t["name"]: t["state_name"] for t in tasks} == {"step@a": "Cancelled"}


def test_ctrl_c_ends_stages_and_the_flows_own_server_which_knows_how_it_ended(
    project, are_alive, tmp_path
):
    project.write(step=STEPS)
    home = tmp_path / "home"
    home.mkdir()
    process = subprocess.Popen(
        [sys.executable, "-m", "flows.build"], text=True, start_new_session=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PREFECT_HOME": str(home)},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        # A test run in the background may ignore Ctrl-C, and would hand that on.
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    try:
        pids = wait_for_pids(project)
        assert len(are_alive(pids)) == 2
    finally:
        os.killpg(process.pid, signal.SIGINT)
        said, _ = process.communicate(timeout=120)
    assert process.returncode == 130, said
    assert "Cancelled: KeyboardInterrupt; 2 stages: 1 Cancelled, 1 not run" in said
    assert are_alive(pids) == []
    page = re.search(r"watch it: (http://127.0.0.1:\d+)", said)[1]
    with pytest.raises(httpx.ConnectError):
        httpx.get(page)
    with sqlite3.connect(home / "prefect.db") as db:
        assert db.execute("SELECT state_name FROM flow_run").fetchall() == [("Cancelled",)]
        assert dict(db.execute("SELECT name, state_name FROM task_run")) == {"step@a": "Cancelled"}
