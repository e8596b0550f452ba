"""The k best rows of a query, with ties, and rows as hits."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from stages.types import Hits

Ranked = tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]]  # rows and scores, best first


def top_k(rows: npt.NDArray[np.int32], scores: npt.NDArray[np.float32], k: int) -> Ranked:
    """The k best by score descending, then row ascending; fewer if there are fewer.

    O(n + t log t), where t counts the rows that are not below ``floor``: all that are equal to
    the k-th are looked at, so the cut never depends on the order in which rows came.
    """
    if 0 < k < len(scores):
        keep = np.flatnonzero(scores >= floor(scores, k))
        rows, scores = rows[keep], scores[keep]
    return _in_order(rows, scores, k)


def top_k_hit(scores: npt.NDArray[np.float32], k: int) -> Ranked:
    """The k best of all rows, as ``top_k``; those whose score is 0 are no hits, none is below."""
    least = floor(scores, k) if 0 < k < len(scores) else 0
    rows = np.flatnonzero(scores >= least if least > 0 else scores).astype(np.int32)
    return _in_order(rows, scores[rows], k)


def _in_order(rows: npt.NDArray[np.int32], scores: npt.NDArray[np.float32], k: int) -> Ranked:
    order = np.lexsort((rows, -scores))[:k]
    return rows[order], scores[order]


def floor(scores: npt.NDArray[np.float32], k: int) -> np.float32:
    """A score that k of them reach, k in 1..n, at most the k-th best and rarely far below it.

    The k-th best of the maxima of 4k groups: those k groups have a row each. About 1.2 k rows
    reach it where the best ones lie anywhere. One pass, where a partition takes ten.
    """
    groups = 4 * k
    each = len(scores) // groups
    if each < 2:
        return np.partition(scores, len(scores) - k)[len(scores) - k]
    best = scores[: each * groups].reshape(each, groups).max(axis=0)
    return np.partition(best, groups - k)[groups - k]


def as_hits(ranked: Sequence[Ranked], docids: npt.NDArray[np.object_]) -> list[Hits]:
    """Rows as passages."""
    return [Hits(docids[rows], scores) for rows, scores in ranked]
