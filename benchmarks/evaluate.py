"""Ranking measures against ir_measures and ranx: 4 runs of 1,000 queries x 1,000 documents.

Each side starts from runs and judgements in memory, in the form it reads fastest (Arrow tables;
dict of dicts for ir_measures, whose evaluator is built once for all runs; ranx.Run), and ends
with the value of each measure for each query. 100 documents of 5,000 are judged per query.
"""

import warnings

import ir_measures
import numpy as np
import pyarrow as pa
import ranx

from benchmarks.fuse import N_QUERIES, UNIVERSE, as_ranx, draw_runs
from benchmarks.harness import compare
from stages.evaluate.ranking import measure_run
from stages.tables import TABLES

MEASURES = ["nDCG@10", "R@100", "AP", "RR", "P@5"]
IN_RANX = ["ndcg@10", "recall@100", "map", "mrr", "precision@5"]
QIDS = [f"q{i}" for i in range(N_QUERIES)]


def draw_qrels(seed: int = 7, n_judged: int = 100) -> pa.Table:
    """Graded judgements 0 to 3, most of them 0."""
    rng = np.random.default_rng(seed)
    docs = np.concatenate([rng.permutation(UNIVERSE)[:n_judged] for _ in QIDS])
    rel = rng.choice(4, len(docs), p=[0.6, 0.2, 0.1, 0.1])
    columns = [np.repeat(QIDS, n_judged), [f"d{i:07d}" for i in docs], rel.astype(np.int32)]
    return pa.table(columns, names=TABLES["qrels"].schema.names)


def as_dict(t: pa.Table, value: str) -> dict[str, dict[str, float]]:
    """{qid: {docid: value}}."""
    nested: dict[str, dict[str, float]] = {}
    for q, d, v in zip(*(t[c].to_pylist() for c in ("qid", "docid", value)), strict=True):
        nested.setdefault(q, {})[d] = v
    return nested


def assert_same_as_ir_measures(ours: list[np.ndarray], theirs: list) -> None:
    """Every measure of every query and run, to 1e-9."""
    place = {(str(m), q): (i, j) for i, m in enumerate(MEASURES) for j, q in enumerate(QIDS)}
    for values, metrics in zip(ours, theirs, strict=True):
        expected = np.full(values.shape, np.nan)
        for metric in metrics:
            expected[place[str(metric.measure), metric.query_id]] = metric.value
        np.testing.assert_allclose(values, expected, rtol=0, atol=1e-9)


def assert_same_as_ranx(ours: list[np.ndarray], theirs: list[dict[str, np.ndarray]]) -> None:
    """The mean of every measure and run, to 1e-9."""
    for values, of_run in zip(ours, theirs, strict=True):
        expected = [np.mean(of_run[name]) for name in IN_RANX]
        np.testing.assert_allclose(values.mean(axis=1), expected, rtol=0, atol=1e-9)


def main() -> None:
    """Print one JSON line per peer."""
    warnings.simplefilter("ignore")  # numba's, about ranx
    runs, qrels = draw_runs(), draw_qrels()
    dicts, judged = [as_dict(r, "score") for r in runs], as_dict(qrels, "rel")
    evaluator = ir_measures.evaluator([ir_measures.parse_measure(m) for m in MEASURES], judged)
    what = "evaluate: 5 measures, 1,000 queries x 1,000 documents x 4 runs"
    shared = {"unit": "queries/s", "aim": 2.0, "work": N_QUERIES * len(runs)}
    shared["ours"] = lambda: [measure_run(run, qrels, QIDS, MEASURES) for run in runs]
    compare(
        what,
        peer="ir_measures",
        theirs=lambda: [list(evaluator.iter_calc(run)) for run in dicts],
        check=assert_same_as_ir_measures,
        **shared,
    )
    theirs, truth = [as_ranx(run) for run in runs], ranx.Qrels(judged)
    compare(
        what,
        peer="ranx",
        theirs=lambda: [ranx.evaluate(truth, r, IN_RANX, return_mean=False) for r in theirs],
        check=assert_same_as_ranx,
        **shared,
    )


if __name__ == "__main__":
    main()
