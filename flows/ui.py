"""The Prefect server on loopback. ``python -m flows.ui`` shows the last runs until Ctrl-C.

``serving`` is the same server for as long as a ``with`` block lasts: a flow that finds no server
brings its own. It runs in a process group of its own, so that a Ctrl-C meant for the flow leaves
it time to record how the flow ended. Runs, logs and artifacts are in SQLite below Prefect's home.
"""

import argparse
import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import httpx
from tqdm import tqdm

from flows import tether
from flows.process import end_group
from stages.errors import QuarryError

HOST = "127.0.0.1"
START_SECONDS = 180  # the first start makes the database; 10 s on two free cores
STOP_SECONDS = 10


def home() -> Path:
    """Prefect's home: ``.quarry/prefect``, unless the environment says otherwise."""
    from prefect.settings import get_current_settings  # only here: 1 s

    return get_current_settings().home


def is_healthy(api_url: str) -> bool:
    """Whether a Prefect server answers there."""
    try:
        return httpx.get(f"{api_url}/health", timeout=5).status_code == 200
    except httpx.HTTPError:
        return False


def is_gone(api_url: str) -> bool:
    """Whether nothing listens there. A server that is busy, or says that it is ill, is not gone."""
    try:
        httpx.get(f"{api_url}/health", timeout=5)
    except httpx.ConnectError:
        return True
    except httpx.HTTPError:
        pass
    return False


def running() -> str | None:
    """The API address of this project's ``python -m flows.ui``, None if it is not running."""
    try:
        url = (home() / "address").read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        return None
    return url if is_healthy(url) else None


@contextlib.contextmanager
def announced(api_url: str) -> Iterator[None]:
    """``running`` gives this address for as long as the block lasts."""
    address = home() / "address"
    address.write_text(api_url, encoding="utf-8")
    try:
        yield
    finally:
        address.unlink(missing_ok=True)


def free_port() -> int:
    """A port of the loopback interface that nothing listens on."""
    with socket.socket() as s:
        s.bind((HOST, 0))
        return s.getsockname()[1]


@contextlib.contextmanager
def serving(port: int | None = None, *, pages: bool = True) -> Iterator[str]:
    """A Prefect server for the length of the block; the address of its API.

    Raises:
        QuarryError: the port is taken, or the server did not start; with the end of its log.
    """
    port = port or free_port()
    with socket.socket() as s:
        s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            s.bind((HOST, port))
        except OSError:
            raise QuarryError(
                f"port {port} is taken. Stop what listens there, or choose: make ui PORT=4201"
            ) from None
    api_url = f"http://{HOST}:{port}/api"
    folder = home()
    folder.mkdir(parents=True, exist_ok=True)
    env = {
        **os.environ,
        "PREFECT_SERVER_UI_API_URL": api_url,  # or the pages look for the API on port 4200
        "PREFECT_SERVER_UI_STATIC_DIRECTORY": str((folder / "pages").absolute()),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
    }
    env.pop("PREFECT_API_URL", None)  # the server's services talk to the server itself
    argv = [sys.executable, tether.__file__, str(os.getpid())]  # it goes when this process goes
    argv += [sys.executable, "-m", "prefect", "server", "start", "--host", HOST]
    argv += ["--port", str(port), "--ui" if pages else "--no-ui"]
    journal = folder / f"server-{port}.log"
    with journal.open("wb") as out:
        process = subprocess.Popen(
            argv, env=env, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True
        )
    try:
        _wait_until_healthy(process, api_url, journal)
        yield api_url
    finally:
        end_group(process, STOP_SECONDS)
        journal.unlink(missing_ok=True)


def _wait_until_healthy(process: subprocess.Popen[bytes], api_url: str, journal: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    form = "starting the Prefect server: {elapsed}"
    with tqdm(bar_format=form, disable=None, leave=False) as clock:
        while not is_healthy(api_url):
            if process.poll() is not None or time.monotonic() > deadline:
                end = "".join(journal.read_text(errors="replace").splitlines(keepends=True)[-15:])
                raise QuarryError(
                    f"the Prefect server on {api_url} did not start. If its database is damaged, "
                    f"move {journal.parent} away. The end of its log:\n{end}"
                )
            clock.refresh()
            time.sleep(0.2)


def main(argv: Sequence[str] | None = None) -> int:
    """Serve until Ctrl-C or SIGTERM."""
    p = argparse.ArgumentParser(prog="python -m flows.ui", description=__doc__.split("\n\n")[0])
    p.add_argument("--port", type=int, default=4200)
    port = p.parse_args(argv).port
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # both end the same way
    print("starting the Prefect server ...", flush=True)
    try:
        with serving(port) as api_url, announced(api_url):
            print(f"Prefect UI: http://{HOST}:{port}  (Ctrl-C ends it)", flush=True)
            while is_healthy(api_url):
                time.sleep(5)
            raise QuarryError("the server has stopped; make ui starts it again.")
    except QuarryError as e:
        print(f"quarry: {e}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 0


if __name__ == "__main__":
    sys.exit(main())
