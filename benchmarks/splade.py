"""SPLADE's search against bm25s on the same impacts, at k = 100, queries encoded already.

Impacts are real: splade-tiny's weights of Semanlink's passages, ten copies of each, scaled by a
drawn factor between 0.5 and 1.5, so that postings are as long as in 11,000 texts. Queries are the
words of its encoded questions (the model's time is the same on both sides). bm25s's ``retrieve``
on a matrix of impacts knows no query weights, so a word of a query counts 1 on both sides.

Both sides end with docids and scores as arrays; ours has equal scores in order. One thread. bm25s
runs twice: by its default (numpy) and compiled (numba, see bm25.py).

Same result: scores equal to 1e-5 relative, and the same documents above each query's last score.
"""

import sys
from pathlib import Path

import bm25s
import numpy as np
import scipy.sparse as sp

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.harness import compare
from stages.encoder import embed, open_encoder
from stages.errors import QuarryError
from stages.index import layout
from stages.index.postings import as_arrays, search_postings
from stages.index.ranking import as_hits
from stages.records import RecordStore
from stages.tables import read_table
from stages.types import Hits

K = 100
COPIES = 10


def impacts_and_queries() -> tuple[sp.csr_matrix, sp.csr_matrix]:
    """(words, passages) and (q, words)."""
    corpus, model = ROOT / "data/ingest/semanlink", ROOT / "data/finetune/splade-tiny"
    if not corpus.exists() or not model.exists():
        raise QuarryError("Run `dvc repro ingest@semanlink finetune@splade-tiny` first.")
    encoder = open_encoder(model, "sparse")
    docids, texts, _ = layout.rows(read_table(corpus, "passages"))
    with RecordStore(ROOT / ".quarry" / "records") as store:
        passages = embed(encoder, docids, texts, store)
    factors = np.random.default_rng(13).uniform(0.5, 1.5, COPIES * passages.shape[0])
    copies = sp.diags(factors) @ sp.vstack([passages] * COPIES)
    arrays = as_arrays(copies.T.tocsr())
    postings = sp.csr_matrix(tuple(arrays.values()), shape=copies.shape[::-1])
    asked = read_table(corpus, "queries")["text"].to_pylist()
    return postings, encoder.encode(asked, "query")


def assert_same(ours: list[Hits], theirs: tuple[np.ndarray, np.ndarray]) -> None:
    """See above."""
    for hits, docids, scores in zip(ours, *theirs, strict=True):
        mine = hits.scores
        np.testing.assert_allclose(mine, scores, rtol=1e-5)
        last = scores[-1] * (1 + 1e-5)
        peers = {d for d, s in zip(docids, scores, strict=True) if s > last}
        assert {h.docid for h in hits if h.score > last} == peers


def main() -> None:
    """Print one JSON line per comparison."""
    postings, queries = impacts_and_queries()
    names = np.array([f"{i:06d}#0" for i in range(postings.shape[1])])
    docids = names.astype(object)
    ones = queries.copy()
    ones.data[:] = 1
    words = [ones.indices[a:b].tolist() for a, b in zip(ones.indptr, ones.indptr[1:], strict=False)]

    for backend in ("numpy", "numba"):
        peer = bm25s.BM25(backend=backend)
        peer.scores = {
            "data": postings.data, "indices": postings.indices,
            "indptr": postings.indptr.astype(np.int64), "num_docs": postings.shape[1],
        }  # fmt: skip
        peer.vocab_dict = {str(i): i for i in range(postings.shape[0])}
        peer.unique_token_ids_set = set(peer.vocab_dict.values())
        peer.nonoccurrence_array = None

        def search_peer(peer: bm25s.BM25 = peer) -> tuple[np.ndarray, np.ndarray]:
            return peer.retrieve(words, corpus=names, k=K, show_progress=False)

        compare(
            "splade search, query weights 1", peer=f"bm25s ({backend})", unit="queries/s", aim=0.95,
            work=len(words), theirs=search_peer, check=assert_same,
            ours=lambda: as_hits(search_postings(ones, postings, K), docids),
        )  # fmt: skip


if __name__ == "__main__":
    main()
