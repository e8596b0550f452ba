"""The server's database is PostgreSQL by one setting: a real one, for the length of a test."""

import asyncio
import os
import pwd
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import asyncpg
import pytest
from prefect import flow
from prefect.logging.handlers import APILogHandler
from prefect.settings import PREFECT_API_URL, PREFECT_HOME, temporary_settings

from flows import ui

FOUND = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"))
BINARY = str(FOUND[-1]) if FOUND else shutil.which("postgres")

pytestmark = pytest.mark.skipif(
    BINARY is None, reason="no PostgreSQL here: apt-get install postgresql"
)


def owner() -> str | None:
    """Who may run it: it refuses root, for whom its package makes a user."""
    if os.getuid():
        return None
    try:
        return pwd.getpwnam("postgres").pw_name
    except KeyError:
        pytest.skip("PostgreSQL does not run as root, and there is no user postgres")


@pytest.fixture
def database(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of an empty database on loopback."""
    user, port = owner(), ui.free_port()
    folder = Path("/tmp") / f"quarry-postgres-{os.getpid()}"  # sockets have short paths
    folder.mkdir(mode=0o700)
    try:
        if user:
            shutil.chown(folder, user)
        initdb = str(Path(BINARY).with_name("initdb"))
        made = [initdb, "-D", str(folder / "data"), "-U", "quarry", "-A", "trust", "-N"]
        subprocess.run(made, check=True, capture_output=True, user=user, cwd=folder)
        argv = [BINARY, "-D", str(folder / "data"), "-k", str(folder), "-h", "127.0.0.1", "-F"]
        with subprocess.Popen(
            [*argv, "-p", str(port)], user=user, cwd=folder, stderr=subprocess.DEVNULL
        ) as process:
            try:
                deadline = time.monotonic() + 60
                while not (folder / f".s.PGSQL.{port}").exists():
                    assert process.poll() is None and time.monotonic() < deadline
                    time.sleep(0.05)
                yield f"quarry@127.0.0.1:{port}/postgres"
            finally:
                process.terminate()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@flow(name="hello")
def hello() -> int:
    return 2


def test_flow_runs_are_rows_of_the_database_that_the_setting_names(
    database, tmp_path, monkeypatch
) -> None:
    url = f"postgresql+asyncpg://{database}"
    monkeypatch.setenv("PREFECT_SERVER_DATABASE_CONNECTION_URL", url)
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path))
    with (
        temporary_settings({PREFECT_HOME: tmp_path}),
        ui.serving(pages=False) as api,
        temporary_settings({PREFECT_API_URL: api}),
    ):
        assert hello(return_state=True).is_completed()
        APILogHandler().flush()

    async def runs() -> list[tuple[str, str]]:
        connection = await asyncpg.connect(f"postgresql://{database}")
        rows = await connection.fetch(
            "select f.name, r.state_name from flow_run r join flow f on f.id = r.flow_id"
        )
        await connection.close()
        return [tuple(row) for row in rows]

    assert asyncio.run(runs()) == [("hello", "Completed")]
    assert not (tmp_path / "prefect.db").exists(), "and nothing lies in SQLite"
