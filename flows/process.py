"""A command in a process group of its own: its output line by line, and an end that leaves nothing.

Standard error is a terminal, so that the command draws its progress bars.
"""

import contextlib
import errno
import os
import pty
import re
import selectors
import signal
import subprocess
import termios
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from io import FileIO
from typing import IO

GRACE_SECONDS = 10  # from SIGTERM to SIGKILL
TICK_SECONDS = 0.2  # how late a stop may be seen
ROWS, COLUMNS = 24, 100

# A progress bar, or DVC's mark for one to come. Bars below bars end lines to get there.
_BAR = re.compile(r".*\[\d+:\d+(<[^\]]*)?, [^\]]*\]$|!$")
_running: set[subprocess.Popen[bytes]] = set()
_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class Stopped(Exception):
    """The command was stopped before its end."""


def run(
    argv: Sequence[str],
    *,
    env: Mapping[str, str],
    stop: threading.Event | None,
    on_line: Callable[[str], None],
    on_progress: Callable[[str], None],
    grace: float = GRACE_SECONDS,
) -> int:
    """The command's exit status.

    ``on_line`` gets every line of its output as it comes, ``on_progress`` every redraw of a bar; a
    full bar is a line, too. When ``stop`` is set, or an exception leaves this function, the whole
    group gets SIGTERM, and SIGKILL after ``grace`` seconds.

    Raises:
        Stopped: ``stop`` was set.
    """
    terminal, side = pty.openpty()
    with FileIO(terminal) as errors:
        try:
            termios.tcsetwinsize(side, (ROWS, COLUMNS))
            process = subprocess.Popen(
                argv, env=env, start_new_session=True, stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE, stderr=side,
            )  # fmt: skip
        finally:
            os.close(side)
        _running.add(process)
        with process:
            try:
                for stream, text, is_ended in _read(process, errors):
                    if stop is not None and stop.is_set():
                        raise Stopped
                    is_bar = stream is errors and (not is_ended or _BAR.match(text))
                    if is_bar:
                        on_progress(text)
                    if is_ended and (not is_bar or "100%" in text):
                        on_line(text)
            finally:
                end_group(process, grace)
                _running.discard(process)
    return process.returncode


def _read(
    process: subprocess.Popen[bytes], errors: FileIO
) -> Iterator[tuple[IO[bytes] | FileIO, str, bool]]:
    """(stream, text, whether the line has ended) until the process has ended, at least 5 a second.

    Text that has not ended is the latest state of a line that is redrawn: a progress bar.
    """
    rests: dict[IO[bytes] | FileIO, bytes] = {process.stdout: b"", errors: b""}
    with selectors.DefaultSelector() as selector:
        for stream in rests:
            selector.register(stream, selectors.EVENT_READ)
        while True:
            is_gone = process.poll() is not None  # asked first: what it wrote is read to the end
            ready = selector.select(TICK_SECONDS) if selector.get_map() else []
            if not ready:
                if is_gone:
                    break
                if not selector.get_map():
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        process.wait(TICK_SECONDS)
                yield errors, "", False
            for key, _ in ready:
                stream = key.fileobj
                block = _block(stream.fileno())
                if not block:
                    selector.unregister(stream)
                *lines, rest = (rests[stream] + block).split(b"\n")
                for line in lines:
                    yield stream, _shown(line), True
                if rest:
                    yield stream, _shown(rest), False
                rests[stream] = rest[max(0, rest.rstrip(b"\r").rfind(b"\r")) :]
    for stream, rest in rests.items():
        if rest:
            yield stream, _shown(rest), True


def _block(fd: int) -> bytes:
    try:
        return os.read(fd, 65536)
    except OSError as e:
        if e.errno == errno.EIO:  # how a pseudo-terminal says that its other side is closed
            return b""
        raise


def _shown(line: bytes) -> str:
    """What a terminal shows of a line: what was written after the last return to its start."""
    return _ESCAPES.sub("", line.decode("utf-8", errors="replace")).rstrip("\r").split("\r")[-1]


def end_all(grace: float = GRACE_SECONDS) -> None:
    """End the groups of all commands that run now, for a process that is about to end itself."""
    for process in [*_running]:
        end_group(process, grace)


def end_group(process: subprocess.Popen[bytes], grace: float) -> None:
    """End what is left of the process's group: SIGTERM first, SIGKILL after ``grace`` seconds."""
    for sent, seconds in ((signal.SIGTERM, grace), (signal.SIGKILL, 2.0)):
        if not _signal_group(process, sent):
            break
        deadline = time.monotonic() + seconds
        while _signal_group(process, 0) and time.monotonic() < deadline:
            time.sleep(0.05)
    process.wait()


def _signal_group(process: subprocess.Popen[bytes], sent: int) -> bool:
    """False if the group is empty."""
    process.poll()  # reaps it: a zombie still counts as a member
    try:
        os.killpg(process.pid, sent)
    except ProcessLookupError:
        return False
    return True
