"""An index that fetches clusters ahead: how a request uses it, and what its timeline shows.

``stages.serve.prefetch`` keeps a part of an index in fast memory and fetches clusters into it
while the model writes. A request is told to it at its beginning and its end, the strategy's hints
go to ``prefetch``, and what was copied meanwhile is told to the client beside the other events.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from stages.serve.http.bodies import Emit
from stages.types import Query, Retriever


class Ahead(Retriever, Protocol):
    """``stages.serve.prefetch.engine.PrefetchEngine``, as far as it is used here."""

    def prefetch(self, query: Query) -> None:
        """Start fetching what this guess of a query will need; never blocks, never raises."""
        ...

    def begin(self) -> None:
        """A request begins."""
        ...

    def end_request(self) -> None:
        """A request has ended."""
        ...

    def timeline(self, since: float) -> list[dict[str, Any]]:
        """Copies and searches that ended after ``since``, in seconds of ``perf_counter``."""
        ...

    def stats(self) -> dict[str, float]:
        """Counts since it was opened."""
        ...

    def close(self) -> None:
        """End its threads, free its memory."""
        ...


class Memory(NamedTuple):
    """The fast memory of every index that is fetched ahead."""

    hot_bytes: int = 256 * 2**20
    budget: int = 64 * 2**20  # bytes that one window may copy
    throttle: tuple[float, float] | None = None  # of the disk, to see it: (bytes/s, seconds)

    def open(self, index: Path, encoder: Path | None) -> Ahead:
        """The engine over an index of kind ``clustered``."""
        from stages.serve.prefetch.engine import open_engine

        return open_engine(index, encoder, **self._asdict())


class Copies:
    """Tells a client what was copied since the last time, in milliseconds of its request."""

    def __init__(self, engine: Ahead, start: float, emit: Emit) -> None:
        self._engine, self._start, self._emit = engine, start, emit
        self._told = start

    def tell(self) -> None:
        """Copies as ``copy`` events; of searches, as ``clusters``, how many were there already."""
        for event in self._engine.timeline(self._told):
            self._told = max(self._told, event["end"])
            own = {k: v for k, v in event.items() if k not in {"kind", "start", "end"}}
            times = {f"{k}_ms": self._ms(event[k]) for k in ("start", "end")}
            self._emit("copy" if event["kind"] == "copy" else "clusters", times | own)

    def _ms(self, at: float) -> float:
        return round(1000 * max(0.0, at - self._start), 3)


@contextlib.contextmanager
def told(engine: Ahead) -> Iterator[None]:
    """The engine knows that a request is open for the length of the block."""
    engine.begin()
    try:
        yield
    finally:
        engine.end_request()
