"""Vector and impact search against brute force, on random matrices with planted ties."""

from pathlib import Path

import faiss
import numpy as np
import pytest
import scipy.sparse as sp
from index_worlds import MOUNTAINS, beir, built, encoder_dir, exact, opened, passages_of

from stages.encoder import open_encoder
from stages.index.ivf import assign, inverted_file
from stages.index.postings import search_postings
from stages.index.vectors import search_vectors


def unit_rows(n: int, d: int, seed: int) -> np.ndarray:
    rows = np.random.default_rng(seed).standard_normal((n, d)).astype("f4")
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def brute(queries: np.ndarray, vectors: np.ndarray, k: int) -> list[list[int]]:
    scores = (queries.astype("f8") @ vectors.astype("f8").T).astype("f4")
    return [np.lexsort((np.arange(len(vectors)), -row))[:k].tolist() for row in scores]


def knn(vectors: np.ndarray):
    return lambda queries, m: faiss.knn(queries, vectors, m, metric=faiss.METRIC_INNER_PRODUCT)


@pytest.mark.parametrize("k", [1, 10, 100, 5000])
def test_vector_search_is_brute_force_with_ties_by_row(k: int) -> None:
    vectors = unit_rows(2_000, 32, seed=1)
    vectors[500:900] = vectors[3]  # 400 equal passages: more than any cut spares
    queries = np.vstack([unit_rows(40, 32, seed=2), vectors[3:4]])
    found = search_vectors(queries, vectors, k, knn(vectors))
    assert [rows.tolist() for rows, _ in found] == brute(queries, vectors, k)


@pytest.mark.parametrize("d", [32, 384, 1024, 4096])
def test_a_library_that_errs_as_much_as_float32_may_changes_nothing(d: int) -> None:
    vectors, queries = unit_rows(500, d, seed=3), unit_rows(20, d, seed=4)
    vectors[100:200] = vectors[0]
    rng, error = np.random.default_rng(5), 0.9 * d * 2**-24  # and what the product errs by itself

    def noisy(asked: np.ndarray, m: int):
        scores = asked @ vectors.T + rng.uniform(-error, error, (len(asked), len(vectors)))
        rows = np.argsort(-scores, axis=1)[:, :m]
        return np.take_along_axis(scores, rows, 1).astype("f4"), rows

    found = search_vectors(np.vstack([queries, vectors[:1]]), vectors, 10, noisy)
    assert [r.tolist() for r, _ in found] == brute(np.vstack([queries, vectors[:1]]), vectors, 10)


@pytest.mark.parametrize("d", [384, 1024, 4096])
def test_the_best_row_is_found_behind_as_large_an_error_as_d_allows(d: int) -> None:
    """One query, scores that are a coordinate: row 99 is best, and proposed after all others."""
    error, score = d * 2**-24, 1 / 64
    vectors = np.zeros((100, d), dtype="f4")
    vectors[:, 0] = score - 0.995 * error
    vectors[0, 0], vectors[99, 0] = score, score + 0.001 * error
    query = np.zeros((1, d), dtype="f4")
    query[0, 0] = 1
    told = vectors[:, 0].copy()
    told[99] -= error
    rows = np.argsort(-told, kind="stable")

    found = search_vectors(
        query, vectors, 1, lambda asked, m: (told[rows[None, :m]], rows[None, :m])
    )
    assert found[0][0].tolist() == [99]


def test_lists_hold_every_vector_once_and_probing_all_of_them_is_exhaustive() -> None:
    vectors, centroids = unit_rows(800, 16, seed=6), unit_rows(20, 16, seed=7)
    lists = assign(vectors, centroids)
    assert (lists == np.argmax(vectors @ centroids.T, axis=1)).all()
    ivf = inverted_file(vectors, centroids, lists)
    sizes = [ivf.invlists.list_size(i) for i in range(20)]
    assert sizes == np.bincount(lists, minlength=20).tolist()
    ivf.nprobe = 20
    queries = unit_rows(5, 16, seed=8)
    assert (ivf.search(queries, 10)[1] == brute(queries, vectors, 10)).all()


@pytest.mark.parametrize("k", [1, 7, 1000])
def test_impact_search_is_the_sparse_product_with_ties_by_row(k: int) -> None:
    rng = np.random.default_rng(9)
    passages = sp.random(300, 50, density=0.1, random_state=rng, format="csr", dtype="f4")
    passages.data = np.ceil(passages.data * 3).astype("f4")  # few values: many ties
    queries = sp.random(30, 50, density=0.1, random_state=rng, format="csr", dtype="f4")
    queries.data[:] = 1
    dense = queries.toarray() @ passages.toarray().T
    for (rows, scores), row in zip(
        search_postings(queries, passages.T.tocsr(), k), dense, strict=True
    ):
        order = np.lexsort((np.arange(300), -row))
        expected = [i for i in order if row[i] > 0][:k]
        assert rows.tolist() == expected and scores.tolist() == row[expected].tolist()


@pytest.mark.parametrize("kind", ["flat", "splade"])
def test_hits_are_those_of_brute_force_over_the_encoder_vectors(kind: str, tmp_path: Path) -> None:
    made = built(tmp_path, kind, passages_of(MOUNTAINS))
    role = "dense" if kind == "flat" else "sparse"
    encoder = open_encoder(encoder_dir(role), role)
    docids = list(MOUNTAINS)
    texts = [f"{title} {text}" if title else text for title, text in MOUNTAINS.values()]
    queries = ["volcano", "first climbed", "a river to the sea"]
    as_rows = np.asarray if kind == "flat" else lambda v: v.toarray()
    asked, given = (
        as_rows(encoder.encode(t, r)) for t, r in ((queries, "query"), (texts, "passage"))
    )
    found = opened(made).search(queries, 4)
    for hits, best in zip(found, exact(asked, given, docids, 4), strict=True):
        assert [h.docid for h in hits] == [d for _, d in best]
        assert [h.score for h in hits] == pytest.approx([s for s, _ in best], rel=1e-6)


@pytest.mark.slow
def test_dense_and_sparse_figures_of_cranfield(tmp_path: Path) -> None:
    """Two minutes: 2,800 passages through real encoders."""
    import ir_measures
    from ir_measures import R, nDCG

    passages, queries, judged = beir("cranfield")
    for kind, ndcg, recall in (("flat", 0.3986, 0.7800), ("splade", 0.3651, 0.7217)):
        found = opened(built(tmp_path, kind, passages)).search(list(queries.values()), 100)
        run = [
            ir_measures.ScoredDoc(q, hit.docid.rpartition("#")[0], hit.score)
            for q, hits in zip(queries, found, strict=True) for hit in hits
        ]  # fmt: skip
        qrels = [ir_measures.Qrel(*row) for row in judged]
        got = ir_measures.calc_aggregate([nDCG @ 10, R @ 100], qrels, run)
        assert got[nDCG @ 10] == pytest.approx(ndcg, abs=5e-4)
        assert got[R @ 100] == pytest.approx(recall, abs=5e-4)
