"""The connections to a remote model's server, which can all be broken off at once.

A request that waits for its server is told of its end when the server sends something, or at the
client's time-out, minutes later. A service that shuts down cannot wait for that: it cuts.
"""

import contextlib
import socket
import threading
from typing import Any
from weakref import WeakSet

import httpx

from stages.errors import QuarryError


class Upstream:
    """All connections of an HTTP client from now on, by its ``trace`` extension."""

    def __init__(self, client: httpx.Client) -> None:
        self._streams: WeakSet[Any] = WeakSet()
        self._lock, self._is_cut = threading.Lock(), False
        hooks = client.event_hooks
        client.event_hooks = {**hooks, "request": [*hooks["request"], self._watch]}

    def cut(self) -> None:
        """Who waits for an answer has an error now, and nobody asks again."""
        with self._lock:
            self._is_cut = True
            streams = list(self._streams)
        for stream in streams:
            with contextlib.suppress(OSError):  # closed already; else the reader wakes up
                stream.get_extra_info("socket").shutdown(socket.SHUT_RDWR)

    def _watch(self, request: httpx.Request) -> None:
        if self._is_cut:
            raise QuarryError("the service is shutting down.")
        request.extensions = {**request.extensions, "trace": self._note}

    def _note(self, event: str, info: dict[str, Any]) -> None:
        if event not in ("connection.connect_tcp.complete", "connection.start_tls.complete"):
            return
        with self._lock:
            self._streams.add(info["return_value"])
            is_cut = self._is_cut
        if is_cut:  # it came about while the others were cut
            raise QuarryError("the service is shutting down.")
