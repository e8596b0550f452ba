"""faiss's own kernel over chosen lists, and the k best with equal scores by row.

Both tiers are scanned by ``IndexIVF.search_preassigned``: a score then has the bits that faiss
gives it in an ``IndexIVFFlat`` over everything, which a matrix product does not reproduce.
"""

from typing import Any

import faiss
import numpy as np
import numpy.typing as npt

from stages.clusters import Bytes, Codec, Floats, Ints

DEEPER = 8  # times as many candidates where the cut goes through equal scores

_QUANTIZERS = {"fp16": faiss.ScalarQuantizer.QT_fp16, "int8": faiss.ScalarQuantizer.QT_8bit}


class Lists:
    """Inverted lists of codes that faiss scans; ``n`` lists, empty at first.

    Different lists may be filled and scanned at the same time, by any threads.
    """

    def __init__(self, codec: Codec, dim: int, n: int, scale: Floats | None = None) -> None:
        coarse, inner = faiss.IndexFlatIP(dim), faiss.METRIC_INNER_PRODUCT
        n = max(1, n)  # faiss wants a list
        if codec == "fp32":
            self._index: Any = faiss.IndexIVFFlat(coarse, dim, n, inner)
        else:
            quantizer = _QUANTIZERS[codec]
            self._index = faiss.IndexIVFScalarQuantizer(coarse, dim, n, quantizer, inner, False)
            if scale is not None:
                faiss.copy_array_to_vector(scale.ravel(), self._index.sq.trained)
        self._index.is_trained = True
        self._lists = faiss.downcast_InvertedLists(self._index.invlists)

    def reserve(self, n: int, size: int) -> None:
        """Allocate ``size`` places in each of the first ``n`` lists.

        Raises:
            MemoryError: there is not so much.
        """
        for i in range(n):
            self._lists.resize(i, size)
            self._lists.resize(i, 0)

    def fill(self, i: int, codes: Bytes, ids: Ints) -> None:
        """Replace what list i holds: (m, code bytes) codes called ids (m,)."""
        flat = np.ascontiguousarray(codes).reshape(-1)  # a temporary must not die before the call
        self._lists.resize(i, 0)
        self._lists.add_entries(i, len(ids), faiss.swig_ptr(ids), faiss.swig_ptr(flat))

    def scan(self, queries: Floats, depth: int, lists: Ints) -> tuple[Floats, Ints]:
        """(q, depth) scores, best first, and ids in the lists (q, m) of each query, -1: none.

        Fewer candidates than ``depth``: score -inf, id -1.
        """
        n, m = lists.shape  # faiss reads rows of min(m, its lists): never more columns than lists
        assert m <= self._index.nlist or not n, "a list stands twice in a row"
        scores = np.full((n, depth), -np.inf, dtype=np.float32)
        ids = np.full((n, depth), -1, dtype=np.int64)
        if n and m:
            queries, lists = np.ascontiguousarray(queries), np.ascontiguousarray(lists)
            near = np.zeros(lists.shape, dtype=np.float32)
            self._index.search_preassigned_c(
                n, faiss.swig_ptr(queries), depth, faiss.swig_ptr(lists), faiss.swig_ptr(near),
                faiss.swig_ptr(scores), faiss.swig_ptr(ids), False,
                faiss.SearchParametersIVF(nprobe=m),
            )  # fmt: skip
            scores[ids < 0] = -np.inf
        return scores, ids

    def best(self, queries: Floats, k: int, lists: Ints, rows: Ints) -> tuple[Floats, Ints]:
        """``scan`` for the k best by score, then by row; ids are places in ``rows`` (N,).

        faiss keeps any of the candidates whose score equals the k-th: where that may have
        happened, more are asked for.
        """
        scores = np.full((len(queries), k), -np.inf, dtype=np.float32)
        ids = np.full((len(queries), k), -1, dtype=np.int64)
        todo, depth = np.arange(len(queries) if k else 0), k + 1
        lists = pack_left(lists)
        while len(todo):
            depth = min(depth, len(rows) + 1)
            found, places = self.scan(queries[todo], depth, lists[todo])
            scores[todo], ids[todo] = k_best(found, places, k, rows)
            open_end = (places[:, -1] >= 0) & (found[:, -1] >= scores[todo, -1])
            todo, depth = todo[open_end], depth * DEEPER
        return scores, ids


def k_best(scores: Floats, ids: Ints, k: int, rows: Ints) -> tuple[Floats, Ints]:
    """(q, k) of (q, m) candidates by score descending, then ``rows[id]`` ascending; id -1: none."""
    if not len(rows):
        rows = np.zeros(1, dtype=np.int64)
    order = np.lexsort((rows[ids], -scores), axis=1)[:, :k]
    short = k - order.shape[1]
    scores, ids = (np.take_along_axis(a, order, 1) for a in (scores, ids))
    if short > 0:
        scores = np.pad(scores, ((0, 0), (0, short)), constant_values=-np.inf)
        ids = np.pad(ids, ((0, 0), (0, short)), constant_values=-1)
    return scores, ids


def pack_left(lists: Ints) -> Ints:
    """The same rows with their -1 at the end, and no more columns than the fullest row needs."""
    there: npt.NDArray[np.bool_] = lists >= 0
    counts = there.sum(1)
    width = int(counts.max(initial=0))
    packed = np.full((len(lists), width), -1, dtype=np.int64)
    packed[np.arange(width) < counts[:, None]] = lists[there]
    return packed
