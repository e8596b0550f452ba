"""The lookahead engine: a ``Retriever`` that is told what the next query may look like.

``prefetch(query)`` goes into ``stages.tools.Tools``: every hint of a strategy opens a window, or
joins the one that is open, and returns at once. ``search`` closes the window: copies that were not
begun are left out, and what is not resident by then is read as a miss. Requests that run side by
side have windows of their own if they say which they are, by the token of ``begin``; those that do
not share one. Searches of several requests can be one call, each under its own token. With scope
``probed`` and 32-bit codes a result depends on the query and the index alone; a hint changes when,
never what.

When a prefetch is made is the strategy's: ``gradual`` keeps what earlier rounds of a request
brought and adds; ``all`` first evicts to the cache fraction; ``once`` looks ahead in the first
round of a request only; ``runtime`` copies when the query is known and waits for it, the negative
control; ``none`` never does.

Lin et al., TeleRAG: Efficient Retrieval-Augmented Generation Inference with Lookahead Retrieval,
arXiv:2502.20969, §3.5 and §3.8.
"""

import itertools
import logging
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from stages.clusters import ClusterFile, Floats, Ints, nearest_clusters
from stages.errors import QuarryError, Refused
from stages.serve.prefetch.budget import Trace, fit, needed_bytes
from stages.serve.prefetch.hybrid import SearchStats
from stages.serve.prefetch.prefetcher import Handle
from stages.serve.prefetch.version import Settings, Version, check
from stages.types import Hits, Query

log = logging.getLogger(__name__)

FIT_AFTER = 8  # searches with a window, between two looks at what the best budget is
FIT_TO = 64  # searches, the last ones


class Observed(NamedTuple):
    """A search and the window before it, for the latency model (``budget.py``)."""

    of: str  # the version's fingerprint
    ranked: Ints | None  # (q_in, depth); None: no window
    probed: Floats  # (q_out, d) query vectors
    window_s: float
    copied_bytes: int
    copy_s: float
    stats: SearchStats  # of a call for several requests: own hits and misses, the call's bytes
    start: float
    end: float
    request: int | None = None


def trace_of(seen: Observed, file: ClusterFile) -> Trace:
    """What the latency model wants to know of a search with a window; as from an empty tier."""
    n = int(seen.stats.hits[0] + seen.stats.misses[0]) if len(seen.stats.hits) else 0
    needed = needed_bytes(
        seen.ranked, nearest_clusters(seen.probed, file.centroids, n), file.nbytes
    )
    misses = int(seen.stats.misses.sum())
    measured = (seen.window_s, seen.copied_bytes, seen.copy_s, misses, seen.stats.cold_s)
    return Trace(needed, *measured, seen.stats.hot_s)


Asker = int | None | Sequence[int | None]  # a request's token for all queries, or one for each


def open_engine(index: Path, encoder: Path | None, **settings: Any) -> "PrefetchEngine":
    """An engine over an index of kind clustered.

    ``hot_bytes``: memory for clusters, ``budget``: bytes that one window may copy (None: the best
    one by the latency model of the last searches, and until there is one as much as there is
    memory), ``strategy``, ``cache_fraction``, ``scope``, ``nprobe`` (none: the index's), ``depth``
    of the lookahead, ``codec`` of both tiers (fp16 and int8 where the index has such codes),
    ``tier`` ram or cuda, ``throttle`` of the cold tier: (bytes/s, seconds), ``group_bytes`` that
    become resident together, ``threads`` of faiss.

    Raises:
        QuarryError: another kind of index, another encoder, no memory, or a setting that makes no
            sense.
    """
    return PrefetchEngine(index, encoder, check(Settings(**settings)))


class PrefetchEngine:
    """``stages.types.Retriever`` with lookahead; any number of threads may use it at once."""

    def __init__(self, index: Path, encoder: Path | None, settings: Settings) -> None:
        self.settings, self._encoder_folder = settings, encoder
        self.budget = settings.hot_bytes if settings.budget is None else settings.budget
        self._lock = threading.Lock()
        self._version = Version(index, encoder, settings)
        self._tokens = itertools.count(1)
        self._open: dict[int, _Request] = {}  # by token, in the order they began
        self._shared = _Request()  # of all that give no token
        self._totals = _Totals()
        self.observed: deque[Observed] = deque(maxlen=1024)

    @property
    def fingerprint(self) -> str:
        """Of all that decides a result; changes with ``swap``."""
        return self._version.fingerprint

    @property
    def file(self) -> ClusterFile:
        """The clusters of the index that is served now."""
        return self._version.cold.file

    @property
    def nprobe(self) -> int:
        """Clusters that a query is searched in."""
        return self._version.nprobe

    # -- what a strategy's hints do -------------------------------------------------------

    def prefetch(self, query: Query, request: int | None = None) -> None:
        """Look ahead for a guess of a later query. Returns at once and raises nothing.

        ``request``: the token of the one that guesses; one that is over looks ahead no more.
        """
        strategy = self.settings.strategy
        if strategy in ("runtime", "none"):
            return
        with self._lock:
            version, asking = self._version, self._asking(request)
            if version.retired or asking is None:
                return
            window = asking.window
            if window is not None and window.version is version:
                version.prefetcher.add(window.handle, lambda: version.encode([query]))
                return
            if strategy == "once" and asking.rounds:
                return
            if strategy == "all":
                self._trim(version)
            asking.cancel()
            asking.rounds += 1
            handle = version.prefetcher.start(lambda: version.encode([query]), self.budget)
            if asking is not self._shared:  # that one never ends
                asking.handles.append(handle)
            asking.window = _Window(version, handle, time.perf_counter())
            self._totals.windows += 1

    def begin(self) -> int:
        """A request starts: its rounds are counted from here. Its token, to be given or not."""
        with self._lock:
            token = next(self._tokens)
            self._open[token] = _Request()
            self._totals.requests += 1
            if self._n_unnamed() == 1:
                self._shared.rounds = 0
            return token

    def end_request(self, request: int | None = None) -> None:
        """A request is over, with or without a search: the coldest clusters go.

        Not those that an open window of another request has brought; and none go where this
        request has brought none. Without a token: one of those that never gave theirs.
        """
        with self._lock:
            if request is None:
                request = next((t for t, r in self._open.items() if not r.named), None)
            over = self._open.pop(request, None)
            if over is not None:
                over.cancel()
            if (over is None or not over.named) and not self._n_unnamed():
                self._shared.cancel()
                self._shared.rounds = 0
            brought = over is None or not over.named or over.rounds
            if brought or self.settings.strategy == "runtime":
                self._trim(self._version)

    def _trim(self, version: Version, fraction: float | None = None) -> threading.Event | None:
        """Evict to the cache fraction, or this one, with the lock held; None: it was retired."""
        if version.retired:
            return None
        asking = (self._shared, *self._open.values())
        windows = [a.window for a in asking if a.window and a.window.version is version]
        fraction = self.settings.cache_fraction if fraction is None else fraction
        return version.prefetcher.trim(fraction, keep=[w.handle for w in windows])

    def _asking(self, request: int | None) -> "_Request | None":
        """Whose windows these are; None: that request is over."""
        if request is None:
            return self._shared
        asking = self._open.get(request)
        if asking is not None:
            asking.named = True
        return asking

    def _n_unnamed(self) -> int:
        return sum(not r.named for r in self._open.values())

    def _close_window(self, request: int | None) -> "_Window | None":
        """The window that was open for this request, or for those that give no token.

        Of several such requests it may be another's: it goes on until the next one opens.
        """
        asking = self._asking(request)
        if asking is None or asking.window is None:
            return None
        window = asking.window
        if asking is self._shared and self._n_unnamed() > 1:
            asking.window, asking.behind = None, window
        else:
            asking.cancel()
        return window

    # -- searching ------------------------------------------------------------------------

    def search(self, queries: Sequence[Query], k: int, request: Asker = None) -> list[Hits]:
        """Up to k hits per query, best first; equal scores by docid descending.

        The window of ``request`` closes, or of every request if there is one for each query;
        without a token, the one that was opened without. A cluster that several queries miss is
        read once.

        Raises:
            Refused: a cluster that one of the queries needs cannot be read.
        """
        found = self.search_each(queries, k, request)
        for hits in found:
            if isinstance(hits, QuarryError):
                raise Refused(str(hits)) from hits
        return found

    def search_each(
        self, queries: Sequence[Query], k: int, request: Asker = None
    ) -> list[Hits | QuarryError]:
        """``search``, with an error in place of the hits of the queries that it concerns."""
        if not queries:
            return []
        one = request is None or isinstance(request, int)
        requests = [request] * len(queries) if one else list(request)
        with self._using() as version:
            vectors = version.encode(queries)
            start = time.perf_counter()
            with self._lock:
                windows = {r: self._close_window(r) for r in dict.fromkeys(requests)}
            if self.settings.strategy == "runtime":
                version.prefetcher.start(vectors, self.budget).wait()
                version.hot.finish()
            try:
                found, stats = version.search(vectors, k)
            except QuarryError as error:
                self._totals.add_failed(1)
                if len(queries) == 1:
                    return [error]
                return [
                    hits
                    for query, own in zip(queries, requests, strict=True)
                    for hits in self.search_each([query], k, own)
                ]
            self._totals.add(stats)
            for own, window in windows.items():
                rows = np.array([r == own for r in requests])
                parts = stats._replace(hits=stats.hits[rows], misses=stats.misses[rows])
                # What a call for several took is no figure of one window: no trace.
                self._note(version, window, vectors[rows], parts, start, own, len(windows) == 1)
            if self.settings.budget is None and self._totals.traced >= FIT_AFTER:
                self._totals.traced = 0
                self._fit_budget()
            return found

    def vectors(self, queries: Sequence[Query]) -> Floats:
        """(q, d) the vectors that these queries are searched with; kept for the search."""
        with self._using() as version:
            return version.encode(queries)

    def _note(
        self,
        version: Version,
        window: "_Window | None",
        vectors: Floats,
        stats: SearchStats,
        start: float,
        request: int | None,
        is_trace: bool,
    ) -> None:
        handle = window.handle if window else Handle(0)
        window_s = start - window.opened if window else 0.0
        copy_s = sum(c.end - c.start for c in list(handle.copies))
        self._totals.traced += is_trace and handle.ranked is not None
        self.observed.append(
            Observed(
                version.fingerprint, handle.ranked if is_trace else None, vectors, window_s,
                handle.nbytes, copy_s, stats, start, time.perf_counter(), request,
            )
        )  # fmt: skip

    def forget(self) -> None:
        """As if nothing had been asked: no cluster in memory, no query vector, no page of the file.

        What an open window has brought stays. Waits for a copy that is under way.
        """
        with self._using() as version:
            with self._lock:
                done = self._trim(version, 0.0)
            version.forget()
            if done is not None:
                done.wait()

    # -- versions -------------------------------------------------------------------------

    def swap(self, index: Path) -> None:
        """Serve another index from now on; searches that are running finish on the old one.

        The new one is opened beside the old one, with a hot tier of its own, empty. If it cannot
        be opened the old one stays.

        Raises:
            QuarryError: as ``open_engine``.
        """
        new = Version(index, self._encoder_folder, self.settings)
        with self._lock:
            old, self._version = self._version, new
            self._cancel_all()
        old.retire()
        log.info("serving index %s (%s)", index.name, new.fingerprint)

    def close(self) -> None:
        """Stop; a later search is an error."""
        with self._lock:
            self._cancel_all()
        self._version.retire()

    def _cancel_all(self) -> None:
        for asking in (self._shared, *self._open.values()):
            asking.cancel()

    @contextmanager
    def _using(self) -> Iterator[Version]:
        with self._lock:
            version = self._version
            version.enter()
        try:
            yield version
        finally:
            version.leave()

    # -- what has happened ----------------------------------------------------------------

    def stats(self) -> dict[str, float]:
        """Counts, bytes and seconds: searches since the start, copies since the last ``swap``."""
        totals, version = self._totals, self._version
        hot, copied = version.hot, version.prefetcher.totals
        resident = hot.resident()
        probed = totals.hits + totals.misses
        return {
            "requests": totals.requests, "windows": totals.windows, "searches": totals.searches,
            "queries": totals.queries, "failed": totals.failed,
            "hits": totals.hits, "misses": totals.misses,
            "hit_rate": totals.hits / probed if probed else 0.0,
            "missed_bytes": totals.nbytes, "hot_s": totals.hot_s, "cold_s": totals.cold_s,
            "copied_bytes": copied.nbytes, "copied_clusters": copied.clusters,
            "copy_s": copied.copy_s, "plan_s": copied.plan_s, "copy_errors": copied.errors,
            "evicted": copied.evicted, "clusters": len(resident), "resident": int(resident.sum()),
            "resident_pages": int(hot.pages_of[resident].sum()), "pages": hot.capacity,
            "budget_bytes": self.budget,
        }  # fmt: skip

    def traces(self, most: int = 1024) -> list[Trace]:
        """The last searches that had a window before them, for ``budget.fit``.

        Those of the version that serves now, and as if the hot tier had been empty.
        """
        version = self._version
        seen = [o for o in list(self.observed) if o.ranked is not None]
        seen = [o for o in seen if o.of == version.fingerprint][-most:]
        return [trace_of(o, version.cold.file) for o in seen]

    def _fit_budget(self) -> None:
        """The best budget by the last searches; as it is where they show no rate.

        They show none where nothing was copied, or nothing was missed: then it is enough.
        """
        traces = self.traces(FIT_TO)
        if any(t.copied_bytes for t in traces) and any(t.misses for t in traces):
            self.budget = int(fit(traces).best_budget(self.settings.hot_bytes))

    def timeline(
        self, since: float = 0.0, request: int | None = None
    ) -> list[dict[str, float | str]]:
        """Copies and searches that ended after ``since`` (``time.perf_counter``), by start.

        With a token: those of this request, as long as it is not over.
        """
        copies = list(self._version.prefetcher.recent)
        if request is not None:
            with self._lock:
                asking = self._open.get(request)
                handles = list(asking.handles) if asking else []
            copies = [copy for handle in handles for copy in list(handle.copies)]
        events: list[dict[str, float | str]] = [
            {"kind": "copy", "start": c.start, "end": c.end, "bytes": c.nbytes,
             "clusters": c.n_clusters}
            for c in copies if c.end > since
        ] + [
            {"kind": "search", "start": o.start, "end": o.end, "bytes": o.stats.nbytes,
             "hits": int(o.stats.hits.sum()), "misses": int(o.stats.misses.sum())}
            for o in list(self.observed) if o.end > since and request in (None, o.request)
        ]  # fmt: skip
        return sorted(events, key=lambda e: e["start"])


class _Window(NamedTuple):
    """The open window: of which index, and since when."""

    version: Version
    handle: Handle
    opened: float


@dataclass(slots=True)
class _Request:
    """Windows of one request, or of all that give no token."""

    window: _Window | None = None  # the open one
    behind: _Window | None = None  # closed, and still copying
    handles: list[Handle] = field(default_factory=list)  # of all its windows, if it has a token
    rounds: int = 0
    named: bool = False  # its token was given with a hint or a search

    def cancel(self) -> None:
        """What was not begun of its windows is left out; none is open."""
        for window in (self.window, self.behind):
            if window is not None:
                window.handle.cancel()
        self.window = self.behind = None


@dataclass(slots=True)
class _Totals:
    """Sums over searches; added to by any thread."""

    requests: int = 0
    windows: int = 0
    searches: int = 0
    queries: int = 0
    failed: int = 0
    hits: int = 0
    misses: int = 0
    nbytes: int = 0
    hot_s: float = 0.0
    cold_s: float = 0.0
    traced: int = 0  # searches with a window, since the budget was fitted; about
    _lock: Any = field(default_factory=threading.Lock)

    def add(self, stats: SearchStats) -> None:
        with self._lock:
            self.searches += 1
            self.queries += len(stats.hits)
            self.hits += int(stats.hits.sum())
            self.misses += int(stats.misses.sum())
            self.nbytes += stats.nbytes
            self.hot_s += stats.hot_s
            self.cold_s += stats.cold_s

    def add_failed(self, n: int) -> None:
        with self._lock:
            self.failed += n
