"""How long two revisions take for the same questions, asked of both in turn.

Each revision is served by its own code from its own checkout on a loopback port. A machine that is
busy for a while is busy for both: question by question one is asked right after the other, and who
is asked first changes each time.
"""

import contextlib
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import numpy as np

from flows.gate import Latency
from flows.process import end_group
from stages.errors import QuarryError

START_SECONDS = 300
ANSWER_SECONDS = 120
STOP_SECONDS = 15
WARM_UP = 2  # questions that do not count
K = 100
OPENING = "it is being opened"  # the service's word for: wait


class Call(NamedTuple):
    """What is asked of a system for each question."""

    entry: str  # of serve
    index: str | None  # set: it is searched; else the entry answers


def calls_of(system: str, catalogue: dict[str, dict[str, dict[str, Any]]]) -> list[Call]:
    """The calls that make up a system: its own, or those of all runs that are fused.

    ``catalogue`` is params.yaml. What fusing itself takes (microseconds) is left out.

    Raises:
        QuarryError: no entry of serve or fuse has that name.
    """
    serve, fuse = catalogue.get("serve", {}), catalogue.get("fuse", {})
    names = [system] if system in serve else fuse.get(system, {}).get("runs", [])
    if not names or any(name not in serve for name in names):
        raise QuarryError(f"retrain.gate.primary: '{system}' is no entry of serve or fuse.")
    return [
        Call(name, serve[name]["index"] if serve[name].get("strategy") == "search" else None)
        for name in names
    ]


def measure(
    promoted: Path, candidate: Path, calls: Sequence[Call], questions: Sequence[str]
) -> Latency:
    """Seconds per question of both, (questions,) each.

    Raises:
        QuarryError: one of the two does not serve, or does not answer.
    """
    entries = list(dict.fromkeys(call.entry for call in calls))
    with _serving(promoted, entries) as old, _serving(candidate, entries) as new:
        clients = {"promoted": old, "candidate": new}
        ask = {who: partial(_ask, client, calls) for who, client in clients.items()}
        return in_turn(ask, questions)


def in_turn(ask: Mapping[str, Callable[[str], object]], questions: Sequence[str]) -> Latency:
    """Seconds per question of the two callables, A B B A A B ..., after a warm-up of both."""
    seconds: dict[str, list[float]] = {who: [] for who in ask}
    warm = [questions[no % len(questions)] for no in range(WARM_UP)]
    order = list(ask)
    for no, question in enumerate([*warm, *questions]):
        for who in order:
            start = time.perf_counter()
            ask[who](question)
            if no >= WARM_UP:
                seconds[who].append(time.perf_counter() - start)
        order.reverse()
    return Latency(np.array(seconds["promoted"]), np.array(seconds["candidate"]))


def _ask(client: httpx.Client, calls: Sequence[Call], question: str) -> None:
    for call in calls:
        if call.index:
            reply = client.post("/search", json={"query": question, "k": K, "index": call.index})
        else:
            body = {"question": question, "entry": call.entry, "stream": False}
            reply = client.post("/answer", json=body)
        if reply.status_code != 200:
            raise QuarryError(f"{call.entry} answered {reply.status_code}: {reply.text[:500]}")


@contextlib.contextmanager
def _serving(folder: Path, entries: Sequence[str]) -> Iterator[httpx.Client]:
    """A client of the service of a checkout, for the length of the block."""
    argv = [sys.executable, "-m", "stages.serve", "http", "--port", "0"]
    argv += [option for entry in entries for option in ("--entry", entry)]
    env = {**os.environ, "PYTHONPATH": str(folder), "PYTHONUNBUFFERED": "1"}
    with contextlib.ExitStack() as stack:
        process = subprocess.Popen(
            argv, cwd=folder, env=env, text=True, start_new_session=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        stack.callback(process.stdout.close)
        stack.callback(end_group, process, STOP_SECONDS)
        said = process.stdout.readline()
        match = re.search(r"http://[\d.:]+", said)
        if not match:
            raise QuarryError(f"the service of {folder} did not start: python -m stages.serve http")
        client = stack.enter_context(httpx.Client(base_url=match[0], timeout=ANSWER_SECONDS))
        _wait_until_open(client, process, folder)
        yield client


def _wait_until_open(client: httpx.Client, process: subprocess.Popen[str], folder: Path) -> None:
    """Return when every entry is open.

    Raises:
        QuarryError: one cannot be opened, or it takes too long.
    """
    deadline = time.monotonic() + START_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        with contextlib.suppress(httpx.TransportError):
            waiting = client.get("/readyz").json()["not_open"]
            if not waiting:
                return
            if reasons := [why for why in waiting.values() if why != OPENING]:
                raise QuarryError(f"{folder} cannot be served: {'; '.join(reasons)}")
        time.sleep(0.2)
    raise QuarryError(f"the service of {folder} was not ready after {START_SECONDS} s, or ended.")
