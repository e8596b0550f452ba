"""One index version: its tiers, its copying thread, the encoder of its queries.

An engine serves one version at a time. A version that was replaced is closed by the last search
that runs on it.
"""

import contextlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import numpy as np

from stages.clusters import Clustered, ClusterFile, Codec, Floats
from stages.digest import digest
from stages.encoder import encode_queries
from stages.errors import QuarryError
from stages.index import open_index
from stages.serve.prefetch.hybrid import HybridIVF, Scope, SearchStats
from stages.serve.prefetch.plan import DEPTH
from stages.serve.prefetch.prefetcher import GROUP, Prefetcher
from stages.serve.prefetch.tiers import Cold, DiskTier, Hot, PagedTier, Throttle
from stages.types import Encoder, Hits, Query

Strategy = Literal["gradual", "all", "once", "runtime", "none"]
Tier = Literal["ram", "cuda"]

CACHE_FRACTION = 0.5  # of the room; what stays from one request to the next
VECTORS = 4096  # query vectors that are kept: a query is often searched after it was a hint


class Settings(NamedTuple):
    """How an engine works; see ``open_engine``."""

    hot_bytes: int
    budget: int | None  # None: fitted to what was served
    strategy: Strategy = "gradual"
    cache_fraction: float = CACHE_FRACTION
    scope: Scope = "probed"
    nprobe: int | None = None
    depth: int = DEPTH
    codec: Codec = "fp32"
    tier: Tier = "ram"
    throttle: tuple[float, float] | None = None
    group_bytes: int = GROUP
    threads: int = 1


class Version:
    """One index with its tiers and its thread; closed when it is retired and no search runs."""

    def __init__(self, folder: Path, encoder: Path | None, settings: Settings) -> None:
        """
        Raises:
            QuarryError: as ``open_engine``; nothing stays open.
        """
        index = open_index(folder, encoder)
        if not isinstance(index, Clustered):
            raise QuarryError(
                f"index '{folder.name}' cannot be read cluster by cluster. Name an index of kind "
                f"clustered."
            )
        self._docids, self._encoder = index.docids, index.encoder
        self._scope = settings.scope
        self.cold, self.hot = open_tiers(index.folder, settings)
        with contextlib.ExitStack() as opened:  # closed again if what follows fails
            opened.callback(self.cold.close)
            self.nprobe = min(settings.nprobe or index.nprobe, len(self.cold.file.sizes))
            self.fingerprint = digest(
                "prefetch", index.fingerprint, str(self.nprobe), settings.scope, settings.codec
            )
            self._hybrid = HybridIVF(self.cold, self.hot, threads=settings.threads)
            opened.callback(self._hybrid.close)
            self.prefetcher = Prefetcher(
                self.cold, self.hot, group_bytes=settings.group_bytes, depth=settings.depth
            )
            opened.pop_all()
        self._lock, self._users, self.retired = threading.Lock(), 0, False
        self._vectors = _Vectors(self._encoder)
        self.encode = self._vectors.encode

    def search(self, vectors: Floats, k: int) -> tuple[list[Hits], SearchStats]:
        """Hits of (q, d) query vectors."""
        scores, rows, stats = self._hybrid.search(vectors, k, self.nprobe, self._scope)
        there = rows >= 0
        found = [
            Hits(self._docids[own[is_hit]], score[is_hit])
            for own, score, is_hit in zip(rows, scores, there, strict=True)
        ]
        return found, stats

    def forget(self) -> None:
        """No query vector is kept, and the codes are not in the system's memory."""
        self._vectors.forget()
        self.cold.forget_pages()

    def enter(self) -> None:
        """A search begins.

        Raises:
            QuarryError: the engine was closed.
        """
        with self._lock:
            if self.retired:
                raise QuarryError("prefetch: the engine was closed; open it again.")
            self._users += 1

    def leave(self) -> None:
        """A search ended."""
        with self._lock:
            self._users -= 1
            last = self.retired and not self._users
        if last:
            self._close()

    def retire(self) -> None:
        """No new search; closed at once, or by the last one that runs."""
        with self._lock:
            last = not self.retired and not self._users
            self.retired = True
        if last:
            self._close()

    def _close(self) -> None:
        self.prefetcher.close()
        self._hybrid.close()
        self.cold.close()


class _Vectors:
    """Query vectors, each encoded once; one call at a time, which the encoder's threads share."""

    def __init__(self, encoder: Encoder) -> None:
        self._encoder, self._lock = encoder, threading.Lock()
        self._kept: OrderedDict[Query, Floats] = OrderedDict()

    def encode(self, queries: Sequence[Query]) -> Floats:
        """(q, d); row i depends on queries[i] alone."""
        with self._lock:
            new = [q for q in dict.fromkeys(queries) if q not in self._kept]
            made = dict(zip(new, encode_queries(self._encoder, new), strict=True)) if new else {}
            vectors = np.array([made[q] if q in made else self._kept[q] for q in queries])
            for q in queries:
                self._kept[q] = made[q] if q in made else self._kept[q]
                self._kept.move_to_end(q)
            while len(self._kept) > VECTORS:
                self._kept.popitem(last=False)
        return vectors

    def forget(self) -> None:
        """The next query is encoded, whichever it is."""
        with self._lock:
            self._kept.clear()


def open_tiers(folder: Path, settings: Settings) -> tuple[Cold, Hot]:
    """The cold and the hot tier of an index directory.

    Raises:
        QuarryError: one of them cannot be had; the other is closed.
    """
    cold: Cold
    if settings.tier == "cuda":
        from stages.serve.prefetch.cuda import CudaTier, PinnedTier

        cold = PinnedTier(folder, settings.codec)
        make: Callable[[ClusterFile, int], Hot] = CudaTier
    else:
        cold = DiskTier(folder, settings.codec)
        make = PagedTier
    try:
        hot = make(cold.file, settings.hot_bytes)
        return (Throttle(cold, *settings.throttle) if settings.throttle else cold), hot
    except BaseException:
        cold.close()
        raise


def check(settings: Settings) -> Settings:
    """The same settings, if they make sense.

    Raises:
        QuarryError: a setting is out of its range.
    """
    for name, kind in (("strategy", Strategy), ("scope", Scope), ("codec", Codec), ("tier", Tier)):
        if (value := getattr(settings, name)) not in get_args(kind):
            known = ", ".join(get_args(kind))
            raise QuarryError(f"prefetch: {name} {value!r} is not known. There are: {known}.")
    for name, fine, wanted in (
        ("hot_bytes", settings.hot_bytes >= 0, "0 or more"),
        ("budget", settings.budget is None or settings.budget >= 0, "0 or more"),
        ("cache_fraction", 0 <= settings.cache_fraction <= 1, "from 0 to 1"),
        ("nprobe", settings.nprobe is None or settings.nprobe >= 1, "1 or more"),
        ("depth", settings.depth >= 1, "1 or more"),
        ("threads", settings.threads >= 1, "1 or more"),
    ):
        if not fine:
            raise QuarryError(
                f"prefetch: {name} is {getattr(settings, name)}; it must be {wanted}."
            )
    return settings
