"""What each fusion rule is, in numbers small enough to add up by hand."""

import math

import numpy as np
import pyarrow as pa
import pytest

from stages import tables
from stages.errors import QuarryError
from stages.fuse import RULES, combmnz, combsum, rrf
from stages.params import load
from stages.runs import run_table
from stages.types import Hit


def run(**hits: dict[str, float]) -> pa.Table:
    """A run from {qid: {docid: score}}."""
    return run_table(list(hits), [[Hit(d, s) for d, s in h.items()] for h in hits.values()])


def ranked(fused: pa.Table) -> list[tuple[str, str, int, float]]:
    return [(r["qid"], r["docid"], r["rank"], r["score"]) for r in fused.to_pylist()]


A = run(q1={"x": 9.0, "y": 5.0, "z": 1.0})
B = run(q1={"z": 0.9, "x": 0.1})


def test_rrf_adds_reciprocal_ranks():
    assert ranked(rrf.fuse([A, B])) == [
        ("q1", "x", 1, 1 / (60 + 2) + 1 / (60 + 1)),
        ("q1", "z", 2, 1 / (60 + 3) + 1 / (60 + 1)),
        ("q1", "y", 3, 1 / (60 + 2)),
    ]


def test_rrf_weights_multiply_the_votes():
    scores = {d: s for _, d, _, s in ranked(rrf.fuse([A, B], rrf_k=1.0, weights=[1.0, 3.0]))}
    assert scores == {"x": 1 / (1 + 1) + 3 / (1 + 2), "y": 1 / (1 + 2), "z": 1 / (1 + 3) + 3 / 2}


def test_rrf_breaks_ties_by_the_larger_docid():
    one, other = run(q={"a": 2.0, "b": 1.0}), run(q={"b": 2.0, "a": 1.0})
    assert [d for _, d, _, _ in ranked(rrf.fuse([one, other]))] == ["b", "a"]


def test_ties_between_three_runs_are_not_decided_by_rounding():
    # a, b and c hold the places 1, 2, 3 in three orders: their sums are equal numbers.
    runs = [
        run(q=dict(zip(order, (3.0, 2.0, 1.0), strict=True))) for order in ("abc", "bca", "cab")
    ]
    fused = rrf.fuse(runs)
    assert [d for _, d, _, _ in ranked(fused)] == ["c", "b", "a"]
    assert len({s for *_, s in ranked(fused)}) == 1


def test_combsum_minmax_by_hand():
    scores = {d: s for _, d, _, s in ranked(combsum.fuse([A, B], norm="minmax"))}
    assert scores == {"x": (9 - 1) / (9 - 1) + 0, "y": (5 - 1) / (9 - 1), "z": 0 + 1}


def test_combsum_zscore_by_hand():
    scores = {d: s for _, d, _, s in ranked(combsum.fuse([A, B], norm="zscore"))}
    std = math.sqrt((4**2 + 0 + 4**2) / 3)  # of 9, 5, 1 around 5
    assert scores["x"] == pytest.approx(4 / std - 1, abs=1e-12)  # of 0.9, 0.1 around 0.5: +-1
    assert scores["y"] == pytest.approx(0 / std, abs=1e-12)
    assert scores["z"] == pytest.approx(-4 / std + 1, abs=1e-12)


def test_combmnz_counts_the_runs_that_found_a_document():
    scores = {d: s for _, d, _, s in ranked(combmnz.fuse([A, B], norm="minmax"))}
    assert scores == {"x": 2 * (1 + 0), "y": 1 * (5 - 1) / (9 - 1), "z": 2 * (0 + 1)}


@pytest.mark.parametrize("norm", ["minmax", "zscore"])
def test_equal_scores_normalise_to_zero_and_not_to_noise(norm):
    # The mean of 0.1, 0.1, 0.1 is not 0.1 in floating point.
    fused = combsum.fuse([run(q={"a": 0.1, "b": 0.1, "c": 0.1})], norm=norm)
    assert [s for *_, s in ranked(fused)] == [0.0, 0.0, 0.0]


def test_queries_are_the_union_over_runs():
    fused = rrf.fuse([run(q1={"a": 1.0}), run(q2={"b": 1.0})])
    assert ranked(fused) == [("q1", "a", 1, 1 / 61), ("q2", "b", 1, 1 / 61)]


def test_k_keeps_the_best_of_each_query():
    assert [(d, r) for _, d, r, _ in ranked(rrf.fuse([A, B], k=2))] == [("x", 1), ("z", 2)]


@pytest.mark.parametrize("rule", [rrf, combsum, combmnz])
def test_no_runs_and_empty_runs_give_an_empty_run(rule):
    empty = tables.empty_table("runs")
    assert rule.fuse([]).equals(empty)
    assert rule.fuse([empty, empty]).equals(empty)
    tables.check_table(rule.fuse([A, empty]), "runs", where="here")


def test_a_weight_per_run_or_an_error():
    with pytest.raises(ValueError, match="1 weights for 2 runs"):
        rrf.fuse([A, B], weights=[1.0])
    with pytest.raises(ValueError, match=">= 0"):
        rrf.fuse([A, B], weights=[1.0, -1.0])


def test_an_infinite_score_is_refused_with_its_query():
    with np.errstate(invalid="ignore"), pytest.raises(QuarryError, match="for query 'q' is NaN"):
        combsum.fuse([run(q={"d7": -math.inf, "b": 1.0})])


def test_wrong_values_name_entry_and_key(tmp_path):
    path = tmp_path / "params.yaml"
    path.write_text(
        "fuse:\n"
        "  short: {rule: rrf, corpus: c, runs: [a, b], weights: [1.0]}\n"
        "  typo: {rule: rrf, corpus: c, runs: [a], rff_k: 60.0}\n"
        "  scale: {rule: combsum, corpus: c, runs: [a], norm: max}\n"
    )
    with pytest.raises(QuarryError, match=r"fuse\.short\.weights: .*1 weights for 2 runs"):
        load(rrf.Params, "fuse", "short", path=path)
    with pytest.raises(QuarryError, match=r"fuse\.typo\.rff_k: unknown key\. .*'rrf_k'"):
        load(rrf.Params, "fuse", "typo", path=path)
    with pytest.raises(QuarryError, match=r"fuse\.scale\.norm: .*'minmax' or 'zscore'"):
        load(combsum.Params, "fuse", "scale", path=path)


def test_the_room_lists_its_files():
    assert set(RULES) == {"rrf", "combsum", "combmnz"}
