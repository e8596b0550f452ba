"""The k best rows of a query, with ties, and rows as hits."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from stages.types import Hits

Ranked = tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]]  # rows and scores, best first


def top_k(rows: npt.NDArray[np.int32], scores: npt.NDArray[np.float32], k: int) -> Ranked:
    """The k best by score descending, then row ascending; fewer if there are fewer.

    O(n + t log t), where t counts the rows whose score is not below the k-th: all that are equal
    to it are looked at, so the cut never depends on the order in which rows came.
    """
    if 0 < k < len(scores):
        cut = np.partition(scores, len(scores) - k)[len(scores) - k]
        keep = np.flatnonzero(scores >= cut)
        rows, scores = rows[keep], scores[keep]
    order = np.lexsort((rows, -scores))[:k]
    return rows[order], scores[order]


def as_hits(ranked: Sequence[Ranked], docids: npt.NDArray[np.object_]) -> list[Hits]:
    """Rows as passages."""
    return [Hits(docids[rows], scores) for rows, scores in ranked]
