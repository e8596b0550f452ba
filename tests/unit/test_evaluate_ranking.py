"""What each ranking measure is, on one run of five documents."""

import math

import numpy as np
import pyarrow as pa
import pytest

from stages import tables
from stages.evaluate.ranking import measure_run, parse_measure
from stages.runs import run_table
from stages.types import Hit


def run(**docs: str) -> pa.Table:
    """A run from {qid: documents in order}, one letter each."""
    hits = [[Hit(d, -float(i)) for i, d in enumerate(ds)] for ds in docs.values()]
    return run_table(list(docs), hits)


def qrels(**judged: dict[str, int]) -> pa.Table:
    rows = [
        {"qid": q, "docid": d, "rel": rel} for q, docs in judged.items() for d, rel in docs.items()
    ]
    return tables.table("qrels", rows)


def value(measure: str, found: pa.Table, judged: pa.Table, qid: str = "q") -> float:
    return float(measure_run(found, judged, [qid], [measure])[0, 0])


# a at 1, b at 2, c at 3, d at 4, e at 5; b and d are relevant, z was not found.
FOUND = run(q="abcde")
JUDGED = qrels(q={"b": 1, "d": 2, "z": 1, "a": 0})


@pytest.mark.parametrize(
    ("measure", "expected"),
    [
        ("P@5", 2 / 5),
        ("P@10", 2 / 10),  # a short run is not excused
        ("R@2", 1 / 3),
        ("R@5", 2 / 3),
        ("RR", 1 / 2),
        ("RR@1", 0.0),
        ("Success@1", 0.0),
        ("Success@2", 1.0),
        ("AP", (1 / 2 + 2 / 4) / 3),
        ("AP@3", (1 / 2) / 3),
    ],
)
def test_measures_of_relevance_by_hand(measure, expected):
    assert value(measure, FOUND, JUDGED) == pytest.approx(expected, abs=1e-15)


def test_ndcg_takes_the_judgement_as_gain_and_log2_of_rank_plus_one_as_discount():
    dcg = 1 / math.log2(2 + 1) + 2 / math.log2(4 + 1)
    ideal = 2 / math.log2(1 + 1) + 1 / math.log2(2 + 1) + 1 / math.log2(3 + 1)
    assert value("nDCG", FOUND, JUDGED) == pytest.approx(dcg / ideal, abs=1e-15)
    cut = 2 / math.log2(1 + 1) + 1 / math.log2(2 + 1)  # the ideal run is cut, too
    assert value("nDCG@2", FOUND, JUDGED) == pytest.approx(1 / math.log2(2 + 1) / cut, abs=1e-15)


def test_a_negative_judgement_is_as_good_as_none():
    junk, none = qrels(q={"b": 1, "a": -2}), qrels(q={"b": 1})
    for measure in ("nDCG@10", "AP", "R@5"):
        assert value(measure, FOUND, junk) == value(measure, FOUND, none)


def test_a_query_without_hits_counts_as_zero():
    values = measure_run(run(q1="a"), qrels(q1={"a": 1}, q2={"a": 1}), ["q1", "q2"], ["nDCG@10"])
    np.testing.assert_array_equal(values, [[1.0, 0.0]])


def test_a_query_with_nothing_relevant_is_zero_and_not_nan():
    judged = qrels(q={"a": 0})
    assert [value(m, FOUND, judged) for m in ("nDCG@10", "AP", "R@5", "RR", "P@5")] == [0.0] * 5


def test_queries_that_were_not_asked_are_not_measured():
    values = measure_run(run(q1="a", q2="b"), qrels(q1={"a": 1}, q2={"b": 1}), ["q2"], ["P@1"])
    np.testing.assert_array_equal(values, [[1.0]])


def test_nothing_in_nothing_out():
    none = tables.empty_table("runs"), tables.empty_table("qrels")
    assert measure_run(*none, ["q"], ["nDCG@10", "AP"]).tolist() == [[0.0], [0.0]]
    assert measure_run(FOUND, JUDGED, [], ["AP"]).shape == (1, 0)
    assert measure_run(FOUND, none[1], ["q"], ["AP"]).tolist() == [[0.0]]


@pytest.mark.parametrize("name", ["ndcg@10", "R", "P@0", "nDCG@", "MAP", "R@10 "])
def test_a_misspelt_measure_is_an_error_that_lists_them(name):
    with pytest.raises(ValueError, match="there are nDCG, nDCG@k"):
        parse_measure(name)
