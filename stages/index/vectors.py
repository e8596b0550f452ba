"""Search by vectors: exact scores, exact ties, on candidates from a library.

A library's matrix product sums in another order for another number of queries, and for another
place in the matrix: the last bits of a score change with the company a query comes in, and two
passages of the same text may differ. So faiss only proposes. The proposed rows are scored again in
float64 and rounded to float32, which leaves a score that depends on the two vectors alone; and if
a row beyond the proposal could still belong to the k best, more are asked for.

How far off a proposed score may be: a float32 sum of d products, in any order, errs by at most
d · u · Σ|q_i v_i| in first order with u = 2^-24, and for unit vectors that sum is at most 1
(Higham, Accuracy and Stability of Numerical Algorithms, 2002, §3.1).
"""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from stages.index.ranking import Ranked, top_k

Floats = npt.NDArray[np.float32]
# (queries (q, d), m) -> approximate scores (q, m), best first, and their rows (q, m), -1 for none
Propose = Callable[[Floats, int], tuple[Floats, npt.NDArray[np.int64]]]

SPARE = 32  # rows proposed beyond k
GROWTH = 8  # times as many where that was not enough: equal texts, mostly
UNIT = 2.0**-24  # the rounding error of one float32 operation, relative


def search_vectors(queries: Floats, vectors: Floats, k: int, propose: Propose) -> list[Ranked]:
    """The k best of the rows that ``propose`` can reach, by inner product, then by row.

    ``vectors`` (n, d) may be memory-mapped. No vectors: no hits.
    """
    nothing = np.empty(0, dtype=np.int32), np.empty(0, dtype=np.float32)
    found: list[Ranked] = [nothing] * len(queries)
    todo = list(range(len(queries))) if len(vectors) and k else []
    margin = 2 * queries.shape[1] * UNIT  # twice the bound: unit vectors are unit but for rounding
    m = k + SPARE
    while todo:
        m = min(m, len(vectors))
        again = []
        for i, near, rows in zip(todo, *propose(queries[todo], m), strict=True):
            rows = rows[rows >= 0].astype(np.int32)
            exact = vectors[rows].astype(np.float64) @ queries[i].astype(np.float64)
            found[i] = top_k(rows, exact.astype(np.float32), k)
            all_seen = len(rows) < m or m == len(vectors)
            if not all_seen and near[-1] >= found[i][1][-1] - margin:
                again.append(i)
        todo, m = again, m * GROWTH
    return found
