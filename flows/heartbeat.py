"""Whether the process of a flow run still lives, and who is told when it ended badly.

A running retraining holds a lock on ``.quarry/retrain/runs/<flow run>``. The kernel gives the lock
back when the process dies, however it dies, so a killed run is told from a slow one without a
clock. ``sweep`` looks for runs that the server believes to be Running and whose lock is free, and
sets them to Crashed, with what they had started. (A run that stands still, SIGSTOP say, lives.)

``tell`` is the flow's hook: it raises the event ``quarry.retrain.<state>`` and runs
``retrain.deploy.hook``, an argv list without a shell, with ``QUARRY_RUN``, ``QUARRY_STATE`` and
``QUARRY_MESSAGE`` in its environment.
"""

import contextlib
import fcntl
import logging
import os
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import (
    FlowFilter,
    FlowFilterName,
    FlowRunFilter,
    FlowRunFilterParentFlowRunId,
    FlowRunFilterState,
    FlowRunFilterStateType,
    TaskRunFilter,
    TaskRunFilterFlowRunId,
    TaskRunFilterState,
    TaskRunFilterStateType,
)
from prefect.client.schemas.objects import StateType
from prefect.events import emit_event
from prefect.states import Crashed

from flows.policy import read_policy
from stages.errors import QuarryError

log = logging.getLogger(__name__)

RUNS = Path(".quarry/retrain/runs")
FLOW = "retrain"


@contextlib.contextmanager
def beating(root: Path, run: str) -> Iterator[None]:
    """The flow run counts as alive for as long as the block lasts in this process."""
    path = root / RUNS / run
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f".{run}")
    with fresh.open("w") as f:
        fcntl.flock(f, fcntl.LOCK_EX)
        f.write(f"{os.getpid()}\n")
        f.flush()
        fresh.rename(path)  # there is never one without its lock
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def is_dead(root: Path, run: str) -> bool:
    """Whether the run began in this checkout and its process is gone without having ended it."""
    try:
        with (root / RUNS / run).open() as f:
            fcntl.flock(f, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except (FileNotFoundError, BlockingIOError):
        return False
    return True


def sweep(root: Path, client: SyncPrefectClient) -> list[str]:
    """Set the dead runs that the server takes for running to Crashed; their ids."""
    left = [path.name for path in (root / RUNS).glob("[!.]*") if is_dead(root, path.name)]
    running = FlowRunFilterState(type=FlowRunFilterStateType(any_=[StateType.RUNNING]))
    found = client.read_flow_runs(
        flow_filter=FlowFilter(name=FlowFilterName(any_=[FLOW])),
        flow_run_filter=FlowRunFilter(state=running),
    )
    dead = [run for run in found if str(run.id) in left]
    for run in dead:
        children = client.read_flow_runs(
            flow_run_filter=FlowRunFilter(
                state=running, parent_flow_run_id=FlowRunFilterParentFlowRunId(any_=[run.id])
            )
        )
        state = Crashed(message="its process is gone: it was killed, or the machine went down")
        for each in (*children, run):
            _crash_tasks(client, each.id, state)
            client.set_flow_run_state(each.id, state, force=True)
        report(str(run.name), state.name or "Crashed", state.message or "")
    for name in left:  # also of those whose worker told the server itself
        (root / RUNS / name).unlink(missing_ok=True)
    return [str(run.id) for run in dead]


def _crash_tasks(client: SyncPrefectClient, run: Any, state: Any) -> None:
    running = TaskRunFilterState(type=TaskRunFilterStateType(any_=[StateType.RUNNING]))
    of_run = TaskRunFilter(state=running, flow_run_id=TaskRunFilterFlowRunId(any_=[run]))
    for task in client.read_task_runs(task_run_filter=of_run):
        client.set_task_run_state(task.id, state, force=True)


def tell(flow: Any, flow_run: Any, state: Any) -> None:
    """Prefect's hook for a run that failed, crashed or was cancelled."""
    report(str(flow_run.name), state.name, state.message or "")


def report(run: str, state: str, message: str) -> None:
    """Raise the event and run the hook; neither's failure is the run's."""
    emit_event(
        event=f"quarry.retrain.{state.lower()}",
        resource={"prefect.resource.id": f"quarry.retrain.{run}"},
        payload={"run": run, "state": state, "message": message},
    )
    try:
        policy = read_policy().deploy
    except QuarryError as e:
        log.warning("no hook was run: %s", e)
        return
    if policy.hook:
        values = {"QUARRY_RUN": run, "QUARRY_STATE": state, "QUARRY_MESSAGE": message}
        run_hook(policy.hook, values, seconds=policy.hook_seconds)


def run_hook(argv: Sequence[str], values: dict[str, str], *, seconds: float) -> int | None:
    """The hook's exit status; None if it could not be started or took too long."""
    try:
        done = subprocess.run(
            list(argv), env={**os.environ, **values}, stdin=subprocess.DEVNULL,
            capture_output=True, text=True, timeout=seconds,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as e:
        log.warning("hook %s: %s", argv[0], e)
        return None
    if done.returncode:
        log.warning("hook %s: exit status %d: %s", argv[0], done.returncode, done.stderr[-500:])
    return done.returncode
