"""Search by words: a score is the product of a sparse query with the postings of its words.

Postings are a CSR matrix (words, rows) of impacts, what a word adds to the score of a row; a query
is a row of weights. All are above 0. A row's score adds its impacts in the order of the query's
words, so it depends on the query and the passage alone.
"""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import scipy.sparse as sp
from scipy.sparse._sparsetools import csc_matvec  # what ``csc_array @ vector`` calls

from stages.errors import QuarryError
from stages.index.layout import Index
from stages.index.ranking import Ranked, top_k_hit
from stages.types import Query

NAMES = "impacts", "rows", "starts"


def as_arrays(postings: sp.csr_matrix) -> dict[str, np.ndarray]:
    """What is kept of the matrix: rows of a word ascend."""
    postings.sort_indices()
    at = np.int32 if postings.nnz < 2**31 else np.int64  # scipy wants one type for both
    values = (
        postings.data.astype(np.float32),
        postings.indices.astype(at),
        postings.indptr.astype(at),
    )
    return dict(zip(NAMES, values, strict=True))


def from_index(index: Index) -> sp.csr_matrix:
    """The matrix, on the memory-mapped arrays."""
    impacts, rows, starts = (np.asarray(index.arrays[n]) for n in NAMES)
    return sp.csr_matrix((impacts, rows, starts), shape=(len(starts) - 1, len(index.docids)))


def one_text_each(queries: Sequence[Query], kind: str) -> list[str]:
    """The queries, each of which must be one text.

    Raises:
        QuarryError: one is several texts, which stand for the mean of their vectors.
    """
    texts = [query for query in queries if isinstance(query, str)]
    if len(texts) < len(queries):
        raise QuarryError(
            f"an index of kind {kind} searches by words, and has no vectors for a query of "
            f"several texts to be the mean of. Name a dense index (flat, ivf), or say "
            f"combine: text in the entry that searches it."
        )
    return texts


def search_postings(queries: sp.csr_matrix, postings: sp.csr_matrix, k: int) -> list[Ranked]:
    """The k best rows per query of (q, words) weights; a row without a query's words is no hit.

    O(rows + postings of its words) per query: a word is one column of a product that adds to the
    scores in place, and the scores of 100,000 rows stay in the processor's cache.
    """
    words, spans = queries.indices.tolist(), pairwise(queries.indptr.tolist())
    starts, weights = postings.indptr, queries.data.astype(np.float32)
    rows = postings.shape[1]
    scores = np.empty(rows, dtype=np.float32)
    found: list[Ranked] = []
    for first, end in spans:
        scores.fill(0)
        for i in range(first, end):
            span = starts[words[i] : words[i] + 2]
            csc_matvec(rows, 1, span, postings.indices, postings.data, weights[i : i + 1], scores)
        found.append(top_k_hit(scores, k))
    return found
