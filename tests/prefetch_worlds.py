"""Small clustered indexes for the tests of prefetching: random vectors in clusters of any size."""

from collections.abc import Sequence
from pathlib import Path

import faiss
import numpy as np

from stages.index.clustered import cluster_arrays
from stages.index.lists import inverted_file


def unit_rows(n: int, d: int, rng: np.random.Generator) -> np.ndarray:
    rows = rng.standard_normal((n, d)).astype("f4")
    return rows / np.linalg.norm(rows, axis=1, keepdims=True) if n else rows


class World:
    """An index directory with clusters of these sizes, and what it was made from."""

    def __init__(
        self, folder: Path, sizes: Sequence[int], *, d: int = 24, seed: int = 1, twins: int = 0,
        codecs: Sequence[str] = (),
    ) -> None:  # fmt: skip
        rng = np.random.default_rng(seed)
        self.folder, self.sizes, self.rng = folder, list(sizes), rng
        self.lists = rng.permutation(np.repeat(np.arange(len(sizes)), sizes)).astype("i4")
        self.centroids = unit_rows(len(sizes), d, rng)
        self.vectors = unit_rows(len(self.lists), d, rng)
        if twins:  # a text that occurs often
            self.vectors[rng.integers(0, max(1, len(self.lists)), twins)] = self.vectors[:1]
        folder.mkdir(parents=True, exist_ok=True)
        arrays = cluster_arrays(self.vectors, self.lists, self.centroids, codecs)
        for name, array in arrays.items():
            np.save(folder / f"{name}.npy", array)

    def queries(self, n: int) -> np.ndarray:
        return unit_rows(n, self.centroids.shape[1], self.rng)

    def faiss(self, queries: np.ndarray, k: int, nprobe: int) -> tuple[np.ndarray, np.ndarray]:
        """(scores, rows) of ``IndexIVFFlat`` over all of it."""
        ivf = inverted_file(self.vectors, self.centroids, self.lists)
        ivf.nprobe = nprobe
        faiss.omp_set_num_threads(1)
        scores, rows = ivf.search(queries, k)
        scores[rows < 0] = -np.inf
        return scores, rows
