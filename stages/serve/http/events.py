"""Answers that come in pieces: server-sent events, or the same pieces put together at the end.

The client is watched while the answer is made: when it goes, or stops reading, the question is
cancelled.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Any

from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from stages.serve.http.bodies import Emit
from stages.serve.http.guard import Gate
from stages.serve.http.problems import Problem, dumps

STALLED = 30.0  # seconds without room for an event, after which the client is given up
QUIET = 15.0  # seconds without an event after which a comment keeps the connection awake

Job = Callable[[Emit], Awaitable[None]]  # tells its events; raises Problem


class Answer:
    """ASGI: run a job within a gate, and send what it tells."""

    def __init__(self, job: Job, gate: Gate, *, stream: bool) -> None:
        self._job, self._gate, self._stream = job, gate, stream

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        send_all = self._send_stream if self._stream else self._send_whole
        gone = asyncio.create_task(_gone(receive))
        sending = asyncio.create_task(send_all(scope, receive, _in_time(send)))
        try:
            await asyncio.wait({gone, sending}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (gone, sending):
                task.cancel()
            await asyncio.wait({gone, sending})
        for task in (gone, sending):
            with contextlib.suppress(asyncio.CancelledError, OSError):
                task.result()

    async def _send_whole(self, scope: Scope, receive: Receive, send: Send) -> None:
        told: list[tuple[str, dict[str, Any]]] = []
        try:
            with self._gate.enter():
                await self._job(lambda name, members: told.append((name, members)))
            response = Response(dumps(_gathered(told)), media_type="application/json")
        except Problem as problem:
            response = problem.response()
        await response(scope, receive, send)

    async def _send_stream(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            with self._gate.enter():
                await self._send_events(scope, receive, send)
        except Problem as problem:  # before the first event
            await problem.response()(scope, receive, send)

    async def _send_events(self, scope: Scope, receive: Receive, send: Send) -> None:
        events: asyncio.Queue[tuple[str, dict[str, Any]] | None] = asyncio.Queue()
        job = asyncio.create_task(self._job(lambda *event: events.put_nowait(event)))
        job.add_done_callback(lambda _: events.put_nowait(None))
        begun = False
        try:
            while (event := await _next(events)) is not None:
                if not begun:
                    begun = True
                    await send({
                        "type": "http.response.start", "status": 200,
                        "headers": [(b"content-type", b"text/event-stream; charset=utf-8")],
                    })  # fmt: skip
                await send({"type": "http.response.body", "body": event, "more_body": True})
            try:
                await job
            except Problem as problem:
                if not begun:
                    raise
                last = write_event("error", problem.body())
                await send({"type": "http.response.body", "body": last, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            job.cancel()
            with contextlib.suppress(asyncio.CancelledError, Problem):
                await job


async def _next(events: asyncio.Queue[Any]) -> bytes | None:
    """The next event as bytes, a comment if none comes for a while; None at the end.

    Not by ``wait_for``: Python 3.11's forgets that it was cancelled when an event comes at once.
    """
    try:
        async with asyncio.timeout(QUIET):
            event = await events.get()
    except TimeoutError:
        return b": still here\n\n"
    return None if event is None else write_event(*event)


def write_event(name: str, members: dict[str, Any]) -> bytes:
    """One event: its name, and its members as JSON on one line."""
    return b"event: " + name.encode() + b"\ndata: " + dumps(members) + b"\n\n"


def _gathered(told: list[tuple[str, dict[str, Any]]]) -> dict[str, Any]:
    """All events of an answer as one object."""
    whole: dict[str, Any] = {"evidence": [], "steps": [], "hints": [], "copies": [], "clusters": []}
    lists = {"step": "steps", "hint": "hints", "copy": "copies"}
    lists |= {"evidence": "evidence", "clusters": "clusters"}
    for name, members in told:
        if name in lists:
            whole[lists[name]].append(members)
        elif name == "timings":
            whole["timings"] = members
        elif name in {"start", "done"}:
            whole |= members
    return whole


def _in_time(send: Send) -> Send:
    """``send`` that raises TimeoutError when the client reads nothing for a while."""

    async def send_on(message: Message) -> None:
        async with asyncio.timeout(STALLED):
            await send(message)

    return send_on


async def _gone(receive: Receive) -> None:
    """Returns when the client has gone."""
    while (await receive())["type"] != "http.disconnect":
        pass
