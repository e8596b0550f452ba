"""``python -m stages.serve http`` as a process: help, keys, ports, kill -9."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from http_worlds import wait_until

from stages.serve.http.command import listen, parse, read_key

ROOT = Path(__file__).parents[2]


def command(*args: str, **env: str) -> subprocess.Popen[str]:
    argv = [sys.executable, "-m", "stages.serve", "http", *args]
    return subprocess.Popen(
        argv, env={**os.environ, "PYTHONPATH": str(ROOT), **env}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def refused(*args: str, **env: str) -> str:
    """What it says when it does not start."""
    with command(*args, **env) as process:
        said = process.communicate(timeout=60)
    assert process.returncode == 2, said
    return said[1]


def is_ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/readyz", timeout=10).status_code == 200
    except httpx.HTTPError:
        return False


def test_help_teaches_without_loading_what_serves():
    code = (
        "import sys; from stages.serve.http.command import parse\n"
        "try: parse(['--help'])\n"
        "finally: print(sorted({'fastapi', 'torch', 'uvicorn', 'faiss'} & set(sys.modules)))"
    )
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    argv = [sys.executable, "-c", code]
    said = subprocess.run(argv, env=env, capture_output=True, text=True, check=True).stdout
    assert said.endswith("[]\n") and "--api-key-env" in said and "POST /search" in said


def test_another_host_than_loopback_needs_a_key(project):
    assert "is not loopback" in refused("--host", "0.0.0.0", "--port", "0")
    said = refused("--host", "0.0.0.0", "--api-key-env", "QUARRY_NO_SUCH")
    assert "QUARRY_NO_SUCH" in said and "not set" in said
    assert "not set" in refused("--api-key-env", "QUARRY_EMPTY", QUARRY_EMPTY=" ")


def test_an_unknown_entry_and_a_taken_port_are_named(project):
    assert "Did you mean 'find'" in refused("--entry", "fnd")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert "Choose: --port" in refused("--port", str(taken.getsockname()[1]))


def test_after_kill_9_the_same_command_serves_again_and_sigterm_ends_it(project):
    port = "0"
    for end in (signal.SIGKILL, signal.SIGTERM):
        with command("--port", port, "--entry", "read") as process:
            try:
                url = process.stdout.readline().split()[1]
                wait_until(lambda url=url: is_ready(url), "it is ready")
                body = {"question": "Where is Lyon?", "stream": False}
                said = httpx.post(f"{url}/answer", json=body, timeout=60)
                assert said.status_code == 200 and said.json()["docids"]
            finally:
                process.send_signal(end)
            process.communicate(timeout=60)
        port = url.rsplit(":", 1)[1]
    assert process.returncode == 0


def test_a_client_that_takes_nothing_is_disconnected_by_the_system():
    if not hasattr(socket, "TCP_USER_TIMEOUT"):
        pytest.skip("Linux has it")
    with listen("127.0.0.1", 0) as server:
        server.listen()
        with socket.create_connection(server.getsockname()):
            accepted, _ = server.accept()
            with accepted:
                assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 30_000


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("--port", "65536", "0 to 65535"), ("--port", "-1", "0 to 65535"),
        ("--port", "http", "no whole number"),
        ("--answers", "0", "at least 1"), ("--searches", "-3", "at least 1"),
        ("--hot-mib", "nan", "no finite number"), ("--budget-mib", "-1", "less than 0"),
        ("--budget-mib", "most", "no finite number"), ("--codec", "fp8", "invalid choice"),
        ("--tier", "gpu", "invalid choice"), ("--scope", "all", "invalid choice"),
        ("--disk-mib", "inf", "no finite number"), ("--answer-seconds", "0", "more than 0"),
        ("--search-seconds", "nan", "no finite number"),
    ],
)  # fmt: skip
def test_numbers_that_make_no_sense_are_refused(capsys, option, value, said):
    with pytest.raises(SystemExit) as end:
        parse([f"{option}={value}"])
    assert end.value.code == 2
    complaint = capsys.readouterr().err
    assert option in complaint and said in complaint


@pytest.mark.parametrize("host", ["127.0.0.2", "LOCALHOST", "::1"])
def test_loopback_by_any_name_needs_no_key(host):
    assert read_key(host, None) is None
