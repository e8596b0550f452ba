"""Copies clusters from the cold tier to the hot one, in one thread, while others compute.

A window is the time in which one language-model call runs: the queries that are known at its start
share one budget. Each window has a handle; queries may join it until it is cancelled, and the plan
is then made anew over all of them, with what is left of the budget. Clusters are copied in groups;
a group appears in the hot tier when all of it is there, and until then its clusters are misses.

A window is in the queue once, whatever joins it, and leaves it when it is cancelled.

``start``, ``add``, ``cancel`` and ``trim`` hand over to the thread and return: no caller ever waits
for a copy, an encoding or a plan, and what goes wrong in the thread is in the handle.

Lin et al., TeleRAG, arXiv:2502.20969, §3.2; joining a window is ours.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from stages.clusters import Floats, Ints
from stages.serve.prefetch.hotness import Hotness
from stages.serve.prefetch.plan import DEPTH, plan, rank_clusters
from stages.serve.prefetch.tiers import Cold, Hot

log = logging.getLogger(__name__)

GROUP = 2**22  # bytes of a group of copies: what a cancelled window may still be copying
Vectors = Callable[[], Floats]  # makes (q, d) query vectors, in the thread


class Copy(NamedTuple):
    """One group: when it was copied (``clock`` seconds) and what."""

    start: float
    end: float
    nbytes: int
    n_clusters: int


@dataclass(slots=True)
class Totals:
    """Sums over the life of a prefetcher."""

    nbytes: int = 0  # read to be copied
    clusters: int = 0  # copied
    evicted: int = 0
    errors: int = 0
    copy_s: float = 0.0
    plan_s: float = 0.0


@dataclass(slots=True, eq=False)
class Handle:
    """A window: what was asked of it, and what has been done."""

    budget: int  # bytes
    copies: list[Copy] = field(default_factory=list)
    clusters: list[int] = field(default_factory=list)  # that were copied, in order
    nbytes: int = 0
    plan_s: float = 0.0
    errors: list[Exception] = field(default_factory=list)
    ranked: Ints | None = None  # (q, depth) of all queries so far
    cancelled: bool = False
    _new: deque[Vectors] = field(default_factory=deque)
    _idle: threading.Event = field(default_factory=threading.Event)

    def wait(self, timeout: float | None = None) -> bool:
        """Whether there is nothing left to do, within ``timeout`` seconds."""
        return self._idle.wait(timeout)

    def cancel(self) -> None:
        """Groups that were not begun are left out."""
        self.cancelled = True


class _Job(NamedTuple):
    """What the thread does next."""

    do: Callable[[], None] | None  # None: end
    window: Handle | None = None  # that it works on


class Prefetcher:
    """One thread between two tiers; the only one that changes the hot tier."""

    def __init__(
        self,
        cold: Cold,
        hot: Hot,
        *,
        group_bytes: int = GROUP,
        depth: int = DEPTH,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._cold, self._hot, self._clock = cold, hot, clock
        self._group_bytes, self._depth = group_bytes, depth
        self.hotness = Hotness(len(cold.file.sizes))
        self.totals = Totals()
        self.recent: deque[Copy] = deque(maxlen=4096)
        self._jobs: deque[_Job] = deque()
        self._lock, self._closed = threading.Lock(), False
        self._came = threading.Condition(self._lock)
        self._thread = threading.Thread(target=self._work, name="prefetch", daemon=True)
        self._thread.start()

    def start(self, queries: Floats | Vectors, budget: int) -> Handle:
        """A new window of at most ``budget`` bytes for (q, d) queries, or what makes them."""
        handle = Handle(int(budget))
        handle._idle.set()
        self.add(handle, queries)
        return handle

    def add(self, handle: Handle, queries: Floats | Vectors) -> None:
        """More queries of the same window."""
        vectors = queries if callable(queries) else lambda: queries
        with self._lock:
            handle._new.append(vectors)
            if handle._idle.is_set():
                handle._idle.clear()
                self._put(_Job(lambda: self._run(handle), handle))

    def trim(self, fraction: float, keep: Sequence[Handle] = ()) -> threading.Event:
        """Evict the coldest until the rest takes ``fraction`` of the room; set when it is done.

        What the windows of ``keep`` have copied stays, be it cold.
        """
        done = threading.Event()

        def evict() -> None:
            most = int(fraction * self._hot.capacity)
            cold = self.hotness.coldest(self._hot.pages_of, most)
            cold = np.setdiff1d(cold, [c for window in keep for c in window.clusters])
            self._hot.evict(cold)
            self.hotness.drop(cold)
            self.totals.evicted += len(cold)
            done.set()

        with self._lock:
            self._put(_Job(evict))
        return done

    def waiting(self) -> int:
        """Windows that the thread has yet to look at."""
        with self._lock:
            return sum(job.window is not None for job in self._jobs)

    def close(self) -> None:
        """The group that is being copied is finished; the thread ends."""
        with self._lock:
            self._closed = True
            self._put(_Job(None))
        self._thread.join()

    def _put(self, job: "_Job") -> None:
        """Behind the others, with the lock held; windows that were cancelled leave the queue."""
        waiting, self._jobs = self._jobs, deque()
        for one in waiting:
            if one.window is not None and one.window.cancelled:
                one.window._idle.set()
            else:
                self._jobs.append(one)
        self._jobs.append(job)
        self._came.notify()

    # -- in the thread --------------------------------------------------------------------

    def _work(self) -> None:
        while (do := self._next()) is not None:
            try:
                do()
            except Exception:  # the thread must live on; the next job may be fine
                log.exception("prefetch: a job failed")

    def _next(self) -> Callable[[], None] | None:
        with self._lock:
            self._came.wait_for(lambda: self._jobs)
            return self._jobs.popleft().do

    def _run(self, handle: Handle) -> None:
        """Copy group after group, until nothing is planned and no query is new."""
        todo = np.empty(0, dtype=np.int64)
        while True:
            with self._lock:
                new = [handle._new.popleft() for _ in range(len(handle._new))]
                if self._closed or handle.cancelled or not (new or len(todo)):
                    handle._idle.set()
                    return
            try:
                if new:
                    todo = self._plan(handle, new)
                if len(todo):
                    size = self._group(todo)
                    self._copy(handle, todo[:size])
                    todo = todo[size:]
            except Exception as e:
                log.warning("prefetch: given up for this window: %s", e)
                handle.errors.append(e)
                self.totals.errors += 1
                todo = todo[:0]

    def _plan(self, handle: Handle, new: list[Vectors]) -> Ints:
        """Clusters to copy for all queries of the window, with what is left of its budget."""
        queries = np.concatenate([vectors() for vectors in new])
        start = self._clock()
        file, hot = self._cold.file, self._hot
        ranked = rank_clusters(queries, file.centroids, self._depth)
        if handle.ranked is None:
            self.hotness.start_round()
            handle.ranked = ranked
        else:
            handle.ranked = np.concatenate([handle.ranked, ranked])
        left = handle.budget - handle.nbytes
        resident = hot.resident()
        wanted = plan(
            handle.ranked, resident, file.nbytes, left, pages=hot.pages_of, room=hot.free_pages()
        )
        # Of the queries that were there before, the visits are counted already.
        own = (
            plan(ranked, resident, file.nbytes, left)
            if len(ranked) < len(handle.ranked)
            else wanted
        )
        self.hotness.hit(own.hits)
        took = self._clock() - start
        handle.plan_s += took
        self.totals.plan_s += took
        return wanted.clusters

    def _group(self, clusters: Ints) -> int:
        """How many of these go together: at least one."""
        sums = np.cumsum(self._cold.file.nbytes[clusters])
        return max(1, int((sums <= self._group_bytes).sum()))

    def _copy(self, handle: Handle, clusters: Ints) -> None:
        start = self._clock()
        batch = self._cold.read(clusters)
        placed = self._hot.put({int(c): batch.codes[c] for c in clusters if int(c) in batch.codes})
        self.hotness.add(np.array(placed, dtype=np.int64))
        copy = Copy(start, self._clock(), batch.nbytes, len(placed))
        handle.errors += batch.errors.values()
        handle.nbytes += batch.nbytes
        handle.clusters += placed
        handle.copies.append(copy)
        self.recent.append(copy)
        totals = self.totals
        totals.nbytes += batch.nbytes
        totals.clusters += len(placed)
        totals.errors += len(batch.errors)
        totals.copy_s += copy.end - copy.start
