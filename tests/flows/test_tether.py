"""What a killed flow leaves behind: nothing."""

import os
import signal
import subprocess
import sys
import time

import pytest

from flows import tether

STARTS = f"""
import os, subprocess, sys
child = subprocess.Popen(
    [sys.executable, {tether.__file__!r}, str(os.getpid()), "sleep", "60"], start_new_session=True
)
print(child.pid, flush=True)
child.wait()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's parent-death signal is Linux's")
def test_a_tethered_command_ends_when_its_parent_is_killed() -> None:
    argv = [sys.executable, "-c", STARTS]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as parent:
        child = int(parent.stdout.readline())
        while b"sleep" not in _command(child):  # until it has become the command
            time.sleep(0.02)
        parent.send_signal(signal.SIGKILL)
        parent.wait()
        deadline = time.monotonic() + 20
        while _command(child) and time.monotonic() < deadline:
            time.sleep(0.02)
    assert not _command(child)


def test_a_command_whose_parent_is_gone_already_is_not_started() -> None:
    argv = [sys.executable, tether.__file__, str(os.getpid() + 1), "echo", "started"]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")


def _command(pid: int) -> bytes:
    """Of a process that is alive; a zombie has none."""
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as f:
            return f.read()
    except FileNotFoundError:
        return b""
