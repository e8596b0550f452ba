"""Search over both tiers: resident clusters where they lie, the others as they are read.

scope ``probed``: the nprobe nearest clusters of each query and no others. Ids and scores are those
of faiss's ``IndexIVFFlat``, bit for bit, whatever is resident: a prefetch changes when, never what.
scope ``resident``: besides, everything that is resident, the official behaviour: a superset, with
recall that only grows.

fp16 and int8 codes propose ``RESCORE`` · k candidates, which are scored again in float32 from the
cold tier; which clusters are resident changes nothing here either.

Lin et al., TeleRAG, arXiv:2502.20969, §3.3. The official code waits for all copies; here a cluster
whose copy is not complete is a miss.
"""

import time
from concurrent.futures import ThreadPoolExecutor
from typing import Literal, NamedTuple

import faiss
import numpy as np

from stages.clusters import Batch, Floats, Ints, nearest_clusters
from stages.serve.prefetch.scan import Lists, k_best
from stages.serve.prefetch.tiers import Cold, Held, Hot

Scope = Literal["probed", "resident"]

CHUNK = 2**26  # bytes of missed clusters in memory at once, twice: one is read, one scanned
RESCORE = 4  # candidates per hit where codes are short


class SearchStats(NamedTuple):
    """What a search did; hits + misses = nprobe for each query."""

    hits: Ints  # (q,) probed clusters that were resident
    misses: Ints  # (q,)
    nbytes: int  # read from the cold tier; a cluster that several queries miss is read once, and
    # what verifies a cluster before its first rescoring is not counted
    hot_s: float
    cold_s: float  # reading and scanning what was missed; the reading goes on beside hot_s


class HybridIVF:
    """An inverted file over two tiers; any number of threads may search at once."""

    def __init__(self, cold: Cold, hot: Hot, *, threads: int = 1, readers: int = 2) -> None:
        self._cold, self._hot, self._threads = cold, hot, threads
        self._file = cold.file
        self._readers = ThreadPoolExecutor(readers, thread_name_prefix="missed")

    def search(
        self, queries: Floats, k: int, nprobe: int, scope: Scope = "probed"
    ) -> tuple[Floats, Ints, SearchStats]:
        """(q, k) scores, best first, and rows; then what it took.

        Equal scores by row ascending. Fewer than k candidates: row -1, score -inf.

        Raises:
            QuarryError: a cluster that one of the queries needs cannot be read, be it the codes
                that are scanned or the vectors that are scored again.
        """
        faiss.omp_set_num_threads(self._threads)
        file, exact = self._file, self._file.codec == "fp32"
        queries = np.ascontiguousarray(queries, dtype=np.float32)
        probed = nearest_clusters(queries, file.centroids, nprobe)  # (q, n)
        n_candidates = min(k if exact else RESCORE * k, len(file.rows))
        with self._hot.held() as held:
            hit = held.resident[probed]
            missed = np.unique(probed[~hit])
            chunks = _cut(missed, file.nbytes)
            reading = [self._readers.submit(self._cold.read, c) for c in chunks[:1]]
            start = time.perf_counter()
            scores, places = _search_hot(held, queries, n_candidates, probed, hit, scope)
            middle = time.perf_counter()
        nbytes = 0
        for i in range(len(chunks)):
            batch = reading[i].result()
            reading += [self._readers.submit(self._cold.read, c) for c in chunks[i + 1 : i + 2]]
            nbytes += batch.nbytes
            reading[i] = None  # its codes are no longer needed after this
            found = self._search_read(batch, queries, n_candidates, np.where(hit, -1, probed))
            scores = np.concatenate([scores, found[0]], axis=1)
            places = np.concatenate([places, found[1]], axis=1)
            scores, places = k_best(scores, places, n_candidates, file.rows)
        if not exact:
            scores, places, more = self._rescore(queries, places)
            nbytes += more
        if not exact or n_candidates < k:
            scores, places = k_best(scores, places, k, file.rows)
        rows = np.where(places >= 0, file.rows[places] if len(file.rows) else -1, -1)
        n_hits = hit.sum(1)
        took = (middle - start, time.perf_counter() - middle)
        return scores, rows, SearchStats(n_hits, probed.shape[1] - n_hits, nbytes, *took)

    def _search_read(
        self, batch: Batch, queries: Floats, k: int, missed: Ints
    ) -> tuple[Floats, Ints]:
        """The best among clusters that were just read; ``missed`` (q, n), -1: not missed."""
        for error in batch.errors.values():
            raise error
        file = self._file
        lists = Lists(file.codec, file.dim, len(batch.codes), file.scale)
        place = np.full(len(file.sizes) + 1, -1)  # the last one answers for -1
        for i, (cluster, codes) in enumerate(batch.codes.items()):
            place[cluster] = i
            lists.fill(i, codes, np.arange(file.offsets[cluster], file.offsets[cluster + 1]))
        return lists.best(queries, k, place[missed], file.rows)

    def _rescore(self, queries: Floats, places: Ints) -> tuple[Floats, Ints, int]:
        """Exact scores of candidates (q, m), and the bytes that it took."""
        distinct = np.unique(places[places >= 0])
        vectors = self._cold.read_vectors(distinct).astype(np.float64)
        scores = np.full(places.shape, -np.inf, dtype=np.float32)
        for row, query, own in zip(scores, queries, places, strict=True):
            there = own >= 0
            row[there] = vectors[np.searchsorted(distinct, own[there])] @ query.astype(np.float64)
        return scores, places, len(distinct) * self._file.dim * 4

    def close(self) -> None:
        """No search may be running."""
        self._readers.shutdown()


def _search_hot(
    held: Held, queries: Floats, k: int, probed: Ints, hit: np.ndarray, scope: Scope
) -> tuple[Floats, Ints]:
    if scope == "probed":
        return held.best(queries, k, np.where(hit, probed, -1))
    every = np.flatnonzero(held.resident)
    return held.best(queries, k, np.broadcast_to(every, (len(queries), len(every))))


def _cut(clusters: Ints, nbytes: Ints) -> list[Ints]:
    """Clusters in chunks of about ``CHUNK`` bytes."""
    chunk = (np.cumsum(nbytes[clusters]) - 1) // CHUNK
    return np.split(clusters, np.flatnonzero(np.diff(chunk)) + 1) if len(clusters) else []
