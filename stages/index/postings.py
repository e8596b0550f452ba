"""Search by words: a score is the product of a sparse query with the postings of its words.

Postings are a CSR matrix (words, rows) of impacts, what a word adds to the score of a row; a query
is a row of weights. The product adds each row's impacts in the order of the query's words, so a
score depends on the query and the passage alone, and rows that share no word never appear.
"""

from collections.abc import Sequence

import numpy as np
import scipy.sparse as sp

from stages.errors import QuarryError
from stages.index.layout import Index
from stages.index.ranking import Ranked, top_k
from stages.types import Query

CELLS = 2**24  # scores held at once: 128 MB

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
    """The k best rows per query of (q, words) weights; a row without a query's words is no hit."""
    block = max(1, CELLS // max(1, postings.shape[1]))
    found: list[Ranked] = []
    for at in range(0, queries.shape[0], block):
        scores = queries[at : at + block] @ postings  # (block, rows)
        spans = zip(scores.indptr[:-1], scores.indptr[1:], strict=True)
        found += [top_k(scores.indices[a:b], scores.data[a:b], k) for a, b in spans]
    return found
