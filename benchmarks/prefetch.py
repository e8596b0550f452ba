"""The lookahead engine's search against faiss's IndexIVFFlat: same nprobe, threads and queries.

200,000 random vectors around 512 centres, d = 384, nlist 512, nprobe 32, k 10; all clusters are
resident: what a search costs when every guess was right. Batches of 256 queries and single ones.

Same result with tier ram: scores and rows equal, every bit. With tier cuda: scores to 1e-5, and
rows where neighbouring scores are further apart than twice that. With ``--tier cuda`` there is a
third line: resident clusters against clusters that are fetched when the query is known.

    python benchmarks/prefetch.py [--tier ram|cuda] [--threads 2]
"""

import argparse
import sys
import tempfile
from pathlib import Path

import faiss
import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.harness import compare
from stages.index.clustered import cluster_arrays
from stages.index.lists import assign, inverted_file
from stages.serve.prefetch.hybrid import HybridIVF
from stages.serve.prefetch.tiers import DiskTier, PagedTier

N, D, NLIST, NPROBE, K = 200_000, 384, 512, 32, 10
QUERIES, SINGLE = 256, 64
NOISE = 0.08  # of each component beside a unit centre's 0.05: neighbouring clusters overlap
ROOM = 2**31
TOLERANCE = 1e-5

Found = tuple[np.ndarray, np.ndarray]


def unit(rows: np.ndarray) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype("f4")


def world(threads: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(vectors, centroids, lists, queries)."""
    rng = np.random.default_rng(13)
    centres = unit(rng.standard_normal((NLIST, D)))

    def around(n: int) -> np.ndarray:
        noise = NOISE * rng.standard_normal((n, D), dtype="f4")
        return unit(centres[rng.integers(0, NLIST, n)] + noise)

    vectors = around(N)
    return vectors, centres, assign(vectors, centres, threads=threads), around(QUERIES)


def same_bits(ours: Found, theirs: Found) -> None:
    """Scores and rows."""
    assert (ours[0] == theirs[0]).all() and (ours[1] == theirs[1]).all()


def same_to_tolerance(ours: Found, theirs: Found) -> None:
    """Scores to ``TOLERANCE``; rows where the scores beside are twice that apart."""
    np.testing.assert_allclose(ours[0], theirs[0], atol=TOLERANCE)
    apart = np.abs(np.diff(theirs[0], axis=1)) > 2 * TOLERANCE
    never = np.zeros((len(apart), 1), dtype=bool)
    clear = np.hstack([apart, never]) & np.hstack([~never, apart])
    assert (ours[1] == theirs[1])[clear].all()


def in_batches(search, queries: np.ndarray, size: int) -> Found:
    """All results of a search that takes (q, d) queries."""
    parts = [search(queries[at : at + size])[:2] for at in range(0, len(queries), size)]
    return tuple(np.concatenate(p) for p in zip(*parts, strict=True))


def main() -> None:
    """Print one JSON line per comparison."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tier", choices=["ram", "cuda"], default="ram")
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    vectors, centroids, lists, queries = world(given.threads)
    peer = inverted_file(vectors, centroids, lists)
    peer.nprobe = NPROBE
    with tempfile.TemporaryDirectory() as folder:
        for name, array in cluster_arrays(vectors, lists, centroids).items():
            np.save(Path(folder) / f"{name}.npy", array)
        del vectors
        if given.tier == "cuda":
            from stages.serve.prefetch.cuda import CudaTier, PinnedTier

            cold, check = PinnedTier(Path(folder)), same_to_tolerance
            hot = CudaTier(cold.file, ROOM)
        else:
            cold, check = DiskTier(Path(folder)), same_bits
            hot = PagedTier(cold.file, ROOM)
        everything = cold.read(range(NLIST)).codes
        hot.put(everything)
        hot.finish()
        hybrid = HybridIVF(cold, hot, threads=given.threads)

        def theirs(some: np.ndarray) -> Found:
            faiss.omp_set_num_threads(given.threads)
            return peer.search(some, K)

        def ours(some: np.ndarray) -> Found:
            return hybrid.search(some, K, NPROBE)

        for size, some in ((QUERIES, queries), (1, queries[:SINGLE])):
            compare(
                f"prefetch search, batch {size}, tier {given.tier}, {given.threads} threads",
                peer="faiss IndexIVFFlat", unit="queries/s", aim=1.0,
                ours=lambda size=size, some=some: in_batches(ours, some, size),
                theirs=lambda size=size, some=some: in_batches(theirs, some, size),
                work=len(some), check=check, samples=9,
            )  # fmt: skip
        if given.tier == "cuda":
            empty = CudaTier(cold.file, ROOM)

            def fetch(some: np.ndarray) -> Found:
                probed = np.unique(peer.quantizer.search(some, NPROBE)[1])
                empty.put(cold.read(probed).codes)
                empty.finish()
                found = HybridIVF(cold, empty).search(some, K, NPROBE)
                empty.evict(np.flatnonzero(empty.resident()))
                return found

            compare(
                "prefetch retrieval step, batch 1, tier cuda", peer="fetch on demand",
                unit="queries/s", aim=1.0, work=SINGLE, check=same_to_tolerance,
                ours=lambda: in_batches(ours, queries[:SINGLE], 1),
                theirs=lambda: in_batches(fetch, queries[:SINGLE], 1),
            )  # fmt: skip


if __name__ == "__main__":
    main()
