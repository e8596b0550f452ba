"""The k best rows: order, ties, and what the cut does with equal scores."""

import numpy as np
import pytest

from stages.index.ranking import as_hits, floor, top_k, top_k_hit
from stages.types import Hit, Hits


def best(scores: list[float], k: int) -> list[int]:
    return top_k(np.arange(len(scores), dtype=np.int32), np.array(scores, "f4"), k)[0].tolist()


def test_the_best_come_first_and_equal_scores_by_row() -> None:
    assert best([1.0, 3.0, 2.0, 3.0], 3) == [1, 3, 2]


@pytest.mark.parametrize("k", [1, 2, 3])
def test_a_cut_through_equal_scores_keeps_the_first_rows(k: int) -> None:
    assert best([5.0, 7.0, 5.0, 5.0, 5.0], k) == [1, 0, 2][:k]


def test_rows_may_come_in_any_order() -> None:
    rows, scores = top_k(np.array([9, 2, 5], "i4"), np.array([1.0, 1.0, 2.0], "f4"), 2)
    assert rows.tolist() == [5, 2] and scores.tolist() == [2.0, 1.0]


@pytest.mark.parametrize("k", [1, 3, 100, 400])
@pytest.mark.parametrize("values", [4, 1000, 10**6])
def test_of_many_rows_with_ties_the_best_are_those_of_a_full_sort(k: int, values: int) -> None:
    rng = np.random.default_rng(13)
    scores = rng.integers(0, values, 5000).astype("f4")
    scores[rng.random(5000) < 0.3] = 0
    order = np.lexsort((np.arange(5000), -scores))[:k].tolist()
    assert best(scores.tolist(), k) == order
    rows, found = top_k_hit(scores, k)
    assert rows.tolist() == [i for i in order if scores[i]]
    assert found.tolist() == scores[rows].tolist()


@pytest.mark.parametrize("hits", [0, 1, 7])
def test_rows_whose_score_is_0_are_no_hits_however_many_are_wanted(hits: int) -> None:
    scores = np.zeros(1000, "f4")
    scores[:hits] = 2
    for k in (1, 5, 1000, 2000):
        assert top_k_hit(scores, k)[0].tolist() == list(range(min(hits, k)))


def test_the_floor_is_reached_by_k_rows_and_by_few_more() -> None:
    for seed in range(20):
        scores = np.random.default_rng(seed).random(10_000).astype("f4")
        reach = (scores >= floor(scores, 50)).sum()
        assert 50 <= reach <= 100


def test_fewer_rows_than_k_are_all_of_them_and_none_are_none() -> None:
    assert best([1.0, 2.0], 10) == [1, 0]
    assert best([], 10) == best([1.0, 2.0], 0) == []


def test_hits_carry_the_docid_of_their_row_and_a_plain_float() -> None:
    docids = np.array(["b#0", "a#0"], dtype=object)
    ranked = [(np.array([1, 0], "i4"), np.array([0.5, 0.25], "f4")), (np.array([], "i4"),) * 2]
    assert as_hits(ranked, docids) == [[Hit("a#0", 0.5), Hit("b#0", 0.25)], []]
    assert type(as_hits(ranked, docids)[0][0].score) is float


def test_a_ranking_is_a_sequence_of_hits_and_its_slices_are_rankings() -> None:
    hits = Hits(np.array(["b#0", "a#0", "c#0"], dtype=object), np.array([3.0, 2.0, 1.0], "f4"))
    assert [h.docid for h in hits] == ["b#0", "a#0", "c#0"]
    assert isinstance(hits[:2], Hits) and hits[:2] == [Hit("b#0", 3.0), Hit("a#0", 2.0)]
    assert hits[-1] == Hit("c#0", 1.0) and Hit("a#0", 2.0) in hits
    assert hits != [Hit("b#0", 3.0)] and not Hits(hits.docids[:0], hits.scores[:0])
