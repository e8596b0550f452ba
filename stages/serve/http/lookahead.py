"""An index that fetches clusters ahead: how a request uses it, and what its timeline shows.

``stages.serve.prefetch`` keeps a part of an index in fast memory and fetches clusters into it
while the model writes. A request is told to it at its beginning and its end, the strategy's hints
go to ``prefetch``, and what was copied meanwhile is told to the client beside the other events.
Every request has a token: a search closes the window of its own request and no other.

Searches that wait for the index go to it in micro-batches of similar queries, each batch one call
in which a cluster that several of them miss is read once. (Lin et al., TeleRAG, §3.6, groups the
requests of a batch; to group what waits at one moment is ours.)
"""

import contextlib
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from stages.clusters import Floats
from stages.effects import Search
from stages.errors import QuarryError, Refused
from stages.serve import asked
from stages.serve.http.bodies import Emit
from stages.serve.http.searching import Asked
from stages.tools import Tools, cut_batches
from stages.types import Hits, Query, Retriever

log = logging.getLogger(__name__)


class Ahead(Retriever, Protocol):
    """``stages.serve.prefetch.engine.PrefetchEngine``, as far as it is used here."""

    def prefetch(self, query: Query, request: int) -> None:
        """Start fetching what this guess of a query will need; never blocks, never raises."""
        ...

    def begin(self) -> int:
        """A request begins; its token."""
        ...

    def end_request(self, request: int) -> None:
        """A request has ended."""
        ...

    def search_each(
        self, queries: Sequence[Query], k: int, request: Sequence[int]
    ) -> list[Hits | QuarryError]:
        """Hits of queries of several requests; their windows close."""
        ...

    def vectors(self, queries: Sequence[Query]) -> Floats:
        """(q, d) what the queries are searched with."""
        ...

    def timeline(self, since: float, request: int) -> list[dict[str, Any]]:
        """Own copies and searches that ended after ``since``, in seconds of ``perf_counter``."""
        ...

    def forget(self) -> None:
        """Nothing is in memory that an earlier request has brought."""
        ...

    def stats(self) -> dict[str, float]:
        """Counts since it was opened."""
        ...

    def close(self) -> None:
        """End its threads, free its memory."""
        ...


def open_ahead(index: Path, encoder: Path | None, how: asked.Ahead) -> Ahead:
    """The engine over an index of kind ``clustered``, as an entry says."""
    from stages.serve.prefetch.engine import open_engine

    return open_engine(index, encoder, **how.settings())


class Own(NamedTuple):
    """An index that fetches ahead as one request uses it: a ``Retriever`` with its token."""

    engine: Ahead
    token: int

    @property
    def fingerprint(self) -> str:
        """Of the index and its encoder."""
        return self.engine.fingerprint

    def prefetch(self, query: Query) -> None:
        """Start fetching for this guess of a later query of the request."""
        self.engine.prefetch(query, self.token)

    def search(self, queries: Sequence[Query], k: int) -> list[Hits | Refused]:
        """Up to k hits per query; one whose clusters cannot be read is refused."""
        return _refused(self.engine.search_each(queries, k, [self.token] * len(queries)))


@contextlib.contextmanager
def own(engine: Ahead) -> Iterator[Own]:
    """The engine knows that a request is open for the length of the block."""
    token = engine.begin()
    try:
        yield Own(engine, token)
    finally:
        engine.end_request(token)


class Copies:
    """Tells a client what was copied for it since the last time, in milliseconds of its request."""

    def __init__(self, retriever: Own, start: float, emit: Emit) -> None:
        self._own, self._start, self._emit = retriever, start, emit
        self._told = start

    def tell(self) -> None:
        """Copies as ``copy`` events; of searches, as ``clusters``, how many were there already."""
        for event in self._own.engine.timeline(self._told, self._own.token):
            self._told = max(self._told, event["end"])
            own = {k: v for k, v in event.items() if k not in {"kind", "start", "end"}}
            times = {f"{k}_ms": self._ms(event[k]) for k in ("start", "end")}
            self._emit("copy" if event["kind"] == "copy" else "clusters", times | own)

    def _ms(self, at: float) -> float:
        return round(1000 * max(0.0, at - self._start), 3)


# -- searches of several requests as one call ---------------------------------------------------


class Together:
    """``stages.serve.http.searching.Sharing`` of an index that fetches ahead."""

    in_memory = False

    def cut(self, waiting: Sequence[Asked]) -> list[list[Asked]]:
        """Micro-batches: searches of one engine and one form, the similar ones together.

        A search for documents looks again, deeper, where it must, and goes alone.
        """
        batches: list[list[Asked]] = []
        forms: dict[int, list[Asked]] = {}
        for one in waiting:  # an index that was reopened is another engine
            forms.setdefault(id(one.tools.retriever.engine), []).append(one)
        for group in forms.values():
            for keys in cut_batches({str(i): a.effect for i, a in enumerate(group)}, None):
                batches += _similar([group[int(key)] for key in keys])
        return batches

    def tools(self, batch: Sequence[Asked]) -> Tools:
        """One retriever for all, which searches for each under its own token."""
        return Tools(retriever=_Joint([one.tools.retriever for one in batch]))


class _Joint:
    """A ``Retriever`` for one query of each of these requests, in their order."""

    def __init__(self, requests: Sequence[Own]) -> None:
        self._engine = requests[0].engine
        self.fingerprint = self._engine.fingerprint
        self._tokens = [own.token for own in requests]

    def search(self, queries: Sequence[Query], k: int) -> list[Hits | Refused]:
        return _refused(self._engine.search_each(queries, k, self._tokens))


def _similar(alike: list[Asked]) -> list[list[Asked]]:
    first = alike[0].effect
    if len(alike) == 1 or not (isinstance(first, Search) and first.unit == "passage"):
        return [[one] for one in alike]
    from stages.serve.prefetch.schedule import micro_batches

    try:
        vectors = alike[0].tools.retriever.engine.vectors([one.effect.query for one in alike])
    except Exception as error:  # of one of them; alone each has its own error
        log.warning("%d searches are not grouped: %s", len(alike), error)
        return [[one] for one in alike]
    return [[alike[i] for i in group] for group in micro_batches(vectors)]


def _refused(found: list[Hits | QuarryError]) -> list[Hits | Refused]:
    """With a refusal, which is a result, in the place of an error."""
    return [Refused(str(hits)) if isinstance(hits, QuarryError) else hits for hits in found]
