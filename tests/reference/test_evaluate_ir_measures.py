"""Our ranking measures against ir_measures, to 1e-9 per query; our tests against SciPy."""

import csv
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from scipy import stats

from stages import tables
from stages.evaluate.ranking import measure_run
from stages.evaluate.statistics import interval, permutation_test
from stages.runs import rank_rows

ir_measures = pytest.importorskip("ir_measures", reason="ir_measures is in the test extra")

CRANFIELD = Path(__file__).parents[3] / "shared/data/cranfield"
MEASURES = ["nDCG@10", "nDCG@1000", "nDCG", "R@1", "R@100", "RR", "AP", "AP@20", "P@5", "Success@3"]


def assert_equal_per_query(run: pa.Table, qrels: pa.Table, measures: list[str]) -> None:
    qids = qrels["qid"].unique().to_pylist()
    ours = measure_run(run, qrels, qids, measures)
    theirs = np.full(ours.shape, np.nan)
    judged = [ir_measures.Qrel(r["qid"], r["docid"], r["rel"]) for r in qrels.to_pylist()]
    scored = [ir_measures.ScoredDoc(r["qid"], r["docid"], r["score"]) for r in run.to_pylist()]
    parsed = [ir_measures.parse_measure(m) for m in measures]
    for metric in ir_measures.iter_calc(parsed, judged, scored):
        theirs[parsed.index(metric.measure), qids.index(metric.query_id)] = metric.value
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-9)


def as_run(rows: list[tuple[str, str, float]]) -> pa.Table:
    qid, docid, score = zip(*rows, strict=True)
    # trec_eval keeps scores in single precision; more digits would be ties there and not here.
    return rank_rows(pa.array(qid), pa.array(docid), np.float32(score).astype(np.float64))


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("ties", [True, False])
def test_random_runs_with_gaps_and_graded_judgements(seed, ties):
    rng = np.random.default_rng(seed)
    docs = [f"d{i}" for i in range(300)]
    judged = [
        {"qid": f"q{q}", "docid": str(d), "rel": int(rng.integers(0, 4))}
        for q in range(25)
        for d in rng.choice(docs, rng.integers(1, 40), replace=False)
    ]
    rows = [  # q20 .. q24 are judged and have no hits, q25 .. q29 have hits and no judgement
        (f"q{q}", str(d), rng.integers(0, 60) / 4 if ties else rng.random())
        for q in [*range(20), *range(25, 30)]
        for d in rng.choice(docs, rng.integers(1, 250), replace=False)
    ]
    # RR@k comes from another program than the rest, which breaks ties by another rule.
    measures = MEASURES if ties else [*MEASURES, "RR@5"]
    assert_equal_per_query(as_run(rows), tables.table("qrels", judged), measures)


@pytest.mark.skipif(not CRANFIELD.exists(), reason="../shared/data/cranfield is not here")
def test_bm25_on_cranfield():
    import bm25s

    docs = [json.loads(line) for line in (CRANFIELD / "corpus.jsonl").open()]
    asked = [json.loads(line) for line in (CRANFIELD / "queries.jsonl").open()]
    index = bm25s.BM25(k1=1.2, b=0.75)
    index.index(bm25s.tokenize([d["text"] for d in docs], show_progress=False), show_progress=False)
    tokens = bm25s.tokenize([q["text"] for q in asked], show_progress=False)
    places, scores = index.retrieve(tokens, k=100, show_progress=False)
    rows = [
        (q["_id"], docs[i]["_id"], float(s))
        for q, of_query, ss in zip(asked, places, scores, strict=True)
        for i, s in zip(of_query, ss, strict=True)
    ]
    judged = [
        {"qid": r["query-id"], "docid": r["corpus-id"], "rel": int(r["score"])}
        for path in sorted((CRANFIELD / "qrels").iterdir())
        for r in csv.DictReader(path.open(), delimiter="\t")
    ]
    assert_equal_per_query(as_run(rows), tables.table("qrels", judged), MEASURES)


def test_the_permutation_test_is_that_of_scipy():
    difference = np.random.default_rng(1).normal(0.3, 1, 12)
    exact = stats.permutation_test(
        (difference,), np.mean, permutation_type="samples", n_resamples=np.inf
    )
    assert permutation_test(difference, resamples=20_000) == pytest.approx(exact.pvalue, abs=0.01)


def test_the_interval_is_that_of_scipy():
    values = np.random.default_rng(2).beta(1, 3, 80)
    theirs = stats.bootstrap((values,), np.mean, method="percentile", n_resamples=20_000, rng=3)
    low, high = theirs.confidence_interval
    assert interval(values, resamples=20_000) == pytest.approx((low, high), abs=0.003)
