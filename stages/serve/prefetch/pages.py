"""Which pages of a fast tier hold which cluster. Pages have a fixed size: nothing is ever moved.

One thread takes, publishes and evicts; any thread may hold the table. A search keeps the table that
it began with, and the pages of an eviction are free once every search that began before it is done:
nobody waits, and no page is written while it is read.
"""

import itertools
import threading
from collections.abc import Iterable

import numpy as np

from stages.clusters import Ints


class PageTable:
    """``table`` (nlist, most): the pages of each resident cluster, -1 behind them; never changed
    in place."""

    def __init__(self, pages_of: Ints, capacity: int) -> None:
        """``pages_of`` (nlist,) pages that each cluster needs."""
        self._pages_of = pages_of
        self.table: Ints = np.full((len(pages_of), max(1, pages_of.max(initial=1))), -1)
        self._lock = threading.Lock()
        self._free = list(range(capacity))[::-1]
        self._tickets = itertools.count()
        self._searching: set[int] = set()  # tickets of running searches
        self._leaving: list[tuple[int, list[int]]] = []  # (ticket, pages) of evictions

    def take(self, cluster: int) -> list[int] | None:
        """Pages for a cluster, in order, or None: too few are free."""
        n = int(self._pages_of[cluster])
        with self._lock:
            self._reclaim()
            return [self._free.pop() for _ in range(n)] if n <= len(self._free) else None

    def publish(self, placed: dict[int, list[int]]) -> None:
        """These clusters are complete: new searches find them."""
        table = self.table.copy()
        for cluster, pages in placed.items():
            table[cluster, : len(pages)] = pages
        self.table = table

    def evict(self, clusters: Iterable[int] | Ints) -> None:
        """New searches do not find these."""
        clusters = np.asarray(clusters, dtype=np.int64)
        table = self.table.copy()
        pages = table[clusters]
        table[clusters] = -1
        with self._lock:
            self.table = table
            self._leaving.append((next(self._tickets), pages[pages >= 0].tolist()))
            self._reclaim()

    def enter(self) -> tuple[int, Ints]:
        """(ticket, table) of a search that begins."""
        with self._lock:
            ticket = next(self._tickets)
            self._searching.add(ticket)
            return ticket, self.table

    def leave(self, ticket: int) -> None:
        """That search is done."""
        with self._lock:
            self._searching.discard(ticket)
            self._reclaim()

    def n_free(self) -> int:
        """Pages that could be taken now."""
        with self._lock:
            self._reclaim()
            return len(self._free)

    def _reclaim(self) -> None:
        """Free the pages of evictions that every running search has come after."""
        oldest = min(self._searching, default=next(self._tickets))
        while self._leaving and self._leaving[0][0] < oldest:
            self._free += sorted(self._leaving.pop(0)[1], reverse=True)
