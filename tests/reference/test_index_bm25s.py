"""BM25 against bm25s's own tokeniser and retrieval, and the figures of three real collections."""

import json
from pathlib import Path

import bm25s
import ir_measures
import numpy as np
import pytest
import Stemmer
from index_worlds import SHARED, beir, built, opened, passages_of
from ir_measures import R, nDCG

from stages.index import layout


def measured(folder: Path, passages, queries: dict[str, str], judged) -> dict:
    found = opened(built(folder, "bm25", passages)).search(list(queries.values()), 100)
    run = [
        ir_measures.ScoredDoc(q, hit.docid.rpartition("#")[0], hit.score)
        for q, hits in zip(queries, found, strict=True) for hit in hits
    ]  # fmt: skip
    qrels = [ir_measures.Qrel(*row) for row in judged]
    return ir_measures.calc_aggregate([nDCG @ 10, R @ 100], qrels, run)


@pytest.mark.parametrize(
    ("name", "ndcg", "recall"), [("cranfield", 0.3758, 0.7314), ("npl", 0.4362, 0.6034)]
)
def test_the_figures_of_a_collection_are_those_of_its_readme(name, ndcg, recall, tmp_path) -> None:
    found = measured(tmp_path, *beir(name))
    said = (SHARED / name / "README.md").read_text(encoding="utf-8")
    assert f"nDCG@10 {ndcg:.4f}, R@100 {recall:.4f}" in said
    assert round(found[nDCG @ 10], 4) == ndcg and round(found[R @ 100], 4) == recall


def test_the_figures_of_hotpotqa_are_those_of_its_readme(tmp_path: Path) -> None:
    path = SHARED / "hotpotqa" / "dev200.jsonl"
    if not path.exists():
        pytest.skip("the shared collection hotpotqa is not beside this checkout")
    asked = [json.loads(line) for line in path.open(encoding="utf-8")]
    texts = sorted({(p["title"], p["text"]) for q in asked for p in q["passages"]})
    docid = {text: str(i) for i, text in enumerate(texts)}
    passages = passages_of({f"{i}#0": text for text, i in docid.items()})
    judged = {
        (q["id"], docid[p["title"], p["text"]], 1)
        for q in asked for p in q["passages"] if p["is_supporting"]
    }  # fmt: skip
    found = measured(tmp_path, passages, {q["id"]: q["question"] for q in asked}, judged)
    assert len(passages) == 1971
    assert round(found[nDCG @ 10], 4) == 0.7988 and round(found[R @ 100], 4) == 0.9875


def test_scores_are_those_of_bm25s_to_the_last_bit(tmp_path: Path) -> None:
    passages, queries, _ = beir("cranfield")
    made = built(tmp_path, "bm25", passages)
    found = opened(made).search(list(queries.values()), 50)

    docids, texts, _ = layout.rows(passages)
    stemmer = Stemmer.Stemmer("english")
    split = {"stopwords": "en", "stemmer": stemmer, "show_progress": False}
    peer = bm25s.BM25(k1=1.2, b=0.75)
    peer.index(bm25s.tokenize(texts, **split), show_progress=False)
    tokens = bm25s.tokenize(list(queries.values()), return_ids=False, **split)
    rows, scores = peer.retrieve(tokens, k=50, show_progress=False)
    assert (np.array([[h.score for h in hits] for hits in found], "f4") == scores).all()
    for hits, near, of_query in zip(found, rows, scores, strict=True):
        above = of_query > of_query[-1]  # at the cut the peer takes any of the equal ones
        assert {h.docid for h in hits if h.score > of_query[-1]} == {docids[r] for r in near[above]}
