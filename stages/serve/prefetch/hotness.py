"""How warm each resident cluster is, and which go when room is made: the cache between requests.

New: 1024. At every prefetch all values are halved (as integers), then each hit adds 1024. After a
request the coldest are evicted until what stays takes ``cache_fraction`` of the room.

Lin et al., TeleRAG, arXiv:2502.20969, §3.5.
"""

import numpy as np

from stages.clusters import Ints

NEW = 1024
HIT = 1024
DECAY = 2


class Hotness:
    """A value for each cluster; 0 for those that are not resident."""

    def __init__(self, nlist: int) -> None:
        self.values: Ints = np.zeros(nlist, dtype=np.int64)
        self._resident = np.zeros(nlist, dtype=bool)

    def start_round(self) -> None:
        """A prefetch begins: everything cools."""
        self.values //= DECAY

    def hit(self, clusters: Ints) -> None:
        """These were wanted and there already; each as often as it occurs."""
        wanted = clusters[self._resident[clusters]]
        np.add.at(self.values, wanted, HIT)

    def add(self, clusters: Ints) -> None:
        """These are new."""
        self._resident[clusters], self.values[clusters] = True, NEW

    def drop(self, clusters: Ints) -> None:
        """These were evicted."""
        self._resident[clusters], self.values[clusters] = False, 0

    def coldest(self, pages: Ints, most: int) -> Ints:
        """What to evict so that the rest takes ``most`` pages or fewer; ``pages`` (nlist,) of each.

        Coldest first; of equal ones the larger number goes first (the official code says nothing).
        """
        here = np.flatnonzero(self._resident)[::-1]
        order = here[np.argsort(self.values[here], kind="stable")]
        excess = pages[order].sum() - most
        if excess <= 0:
            return order[:0]
        n = int(np.searchsorted(np.cumsum(pages[order]), excess)) + 1
        return order[:n]
