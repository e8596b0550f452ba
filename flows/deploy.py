"""Retraining on a schedule: server, work pool, schedules and sweep, until Ctrl-C.

``make deploy`` starts what a team leaves running: the Prefect server with its page (unless
``PREFECT_API_URL`` names one), a process work pool with one worker, the deployment ``retrain`` with
the schedules of ``retrain.deploy.cron``, the deployment ``build``, whose form on the page takes
targets and overrides, and the sweep for killed runs (heartbeat.py). Schedules and values are read
again at every start; nothing else is kept here.

The server's database is SQLite below ``.quarry/prefect``. One setting makes it PostgreSQL:
``PREFECT_SERVER_DATABASE_CONNECTION_URL=postgresql+asyncpg://user:password@host/prefect``.
"""

import argparse
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import httpx
from prefect import get_client
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import WorkPoolCreate, WorkPoolUpdate
from prefect.client.schemas.objects import ConcurrencyLimitConfig, ConcurrencyLimitStrategy
from prefect.client.schemas.schedules import CronSchedule
from prefect.deployments.runner import RunnerDeployment
from prefect.exceptions import ObjectNotFound
from prefect.flows import EntrypointType
from prefect.settings import PREFECT_API_URL, get_current_settings, temporary_settings

from flows import dvc, heartbeat, tether, ui
from flows.policy import DeployPolicy, read_policy
from flows.process import end_group
from stages.errors import QuarryError

POOL, NAME, FORM = "quarry", "retrain", "build"
STOP_SECONDS = 20  # a running flow ends its stages' processes


def make_pool(client: SyncPrefectClient, at_once: int) -> None:
    """The work pool, for processes on this machine, ``at_once`` flow runs at a time."""
    try:
        client.read_work_pool(POOL)
    except ObjectNotFound:
        client.create_work_pool(WorkPoolCreate(name=POOL, type="process"))
    client.update_work_pool(POOL, WorkPoolUpdate(concurrency_limit=at_once))


def make_deployment(root: Path, policy: DeployPolicy) -> RunnerDeployment:
    """The deployment with its schedules; of two runs at once the second is cancelled as a whole.

    The lock of worktree.py stands behind that: it holds where a server's does not.
    """
    from flows.retrain import retrain

    crons = [CronSchedule(cron=line, timezone=policy.timezone) for line in policy.cron]
    return RunnerDeployment.from_flow(
        retrain, NAME, schedules=crons, work_pool_name=POOL,
        description="Refresh the sources, retrain what they reach, promote what the gate accepts.",
        concurrency_limit=ConcurrencyLimitConfig(
            limit=1, collision_strategy=ConcurrencyLimitStrategy.CANCEL_NEW
        ),
        job_variables={"working_dir": str(root), "env": environment(root)},
        entrypoint_type=EntrypointType.MODULE_PATH,
    )  # fmt: skip


def make_form(root: Path) -> RunnerDeployment:
    """The deployment ``build``, started by hand: targets and overrides are a form on the page.

    Runs wait for one another.
    """
    from flows.build import build

    return RunnerDeployment.from_flow(
        build, FORM, work_pool_name=POOL, description=build.description, concurrency_limit=1,
        job_variables={"working_dir": str(root), "env": environment(root)},
        entrypoint_type=EntrypointType.MODULE_PATH,
    )  # fmt: skip


def environment(root: Path) -> dict[str, str]:
    """What a flow's process needs: this project's modules, this python, nothing from a network."""
    names = ("HF_HUB_OFFLINE", "TOKENIZERS_PARALLELISM", "DO_NOT_TRACK", "DVC_NO_ANALYTICS",
             "QUARRY_RECORDS", "QUARRY_RECORDS_BYTES", "PREFECT_HOME")  # fmt: skip
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    kept = {name: os.environ[name] for name in names if name in os.environ}
    return {"PYTHONPATH": str(root), "PATH": path, **kept}


def deploy(root: Path, policy: DeployPolicy) -> tuple[str, str]:
    """Put pool, deployments and schedules on the server; the ids of ``retrain`` and ``build``."""
    with get_client(sync_client=True) as client:
        make_pool(client, policy.at_once)
    return str(make_deployment(root, policy).apply()), str(make_form(root).apply())


@contextlib.contextmanager
def working(api_url: str) -> Iterator[subprocess.Popen[bytes]]:
    """A worker of the pool for the length of the block, in a process group of its own."""
    argv = [sys.executable, tether.__file__, str(os.getpid()), sys.executable, "-m", "prefect"]
    argv += ["worker", "start", "--pool", POOL, "--type", "process"]
    env = {**os.environ, "PREFECT_API_URL": api_url}
    process = subprocess.Popen(argv, env=env, stdin=subprocess.DEVNULL, start_new_session=True)
    try:
        yield process
    finally:
        end_group(process, STOP_SECONDS)


def watch(root: Path, worker: subprocess.Popen[bytes], seconds: float) -> None:
    """Sweep for killed runs until the worker ends.

    Raises:
        QuarryError: the worker ended.
    """
    with get_client(sync_client=True) as client:
        while worker.poll() is None:
            try:
                for run in heartbeat.sweep(root, client):
                    print(f"flow run {run} was killed: set to Crashed", flush=True)
            except httpx.HTTPError as e:  # a busy server is asked again
                print(f"the server did not answer: {e}", file=sys.stderr)
            with contextlib.suppress(subprocess.TimeoutExpired):
                worker.wait(seconds)
    raise QuarryError(f"the worker ended with exit status {worker.returncode}; make deploy again.")


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status 2 with a message if it could not start or its worker ended."""
    p = argparse.ArgumentParser(prog="python -m flows.deploy", description=__doc__.split("\n")[0])
    p.add_argument("--port", type=int, default=4200, help="of the page")
    args = p.parse_args(argv)
    root = Path.cwd()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        policy = read_policy().deploy
        for entry in dvc.verify(repair=True):
            print(f"damaged, removed: {entry.entry} (of {entry.output})")
        with contextlib.ExitStack() as stack:
            url = get_current_settings().api.url or ui.running()
            if url is None:
                print("starting the Prefect server ...", flush=True)
                url = stack.enter_context(ui.serving(args.port))
                stack.enter_context(ui.announced(url))
            stack.enter_context(temporary_settings({PREFECT_API_URL: url}))
            deploy(root, policy)
            worker = stack.enter_context(working(url))
            print(f"retrain: {', '.join(policy.cron) or 'by hand'} ({policy.timezone})")
            print(f"watch it: {url.removesuffix('/api')}  (Ctrl-C ends it)", flush=True)
            watch(root, worker, policy.sweep_seconds)
    except QuarryError as e:
        print(f"quarry: {e}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 0
    return 0


if __name__ == "__main__":
    sys.exit(main())
