"""Ranks, ties, and passages that become documents."""

import numpy as np
import pyarrow as pa
import pytest

from stages.errors import QuarryError
from stages.runs import collapse, parent, rank_rows, run_table, search_documents
from stages.types import Hit


def rows(run: pa.Table) -> list[tuple]:
    return [tuple(row.values()) for row in run.to_pylist()]


class Fixed:
    """A retriever over a fixed ranking, which notes how deep it was asked to look."""

    fingerprint = "fixed"

    def __init__(self, **rankings: list[tuple[str, float]]) -> None:
        self.rankings = {q: [Hit(*pair) for pair in hits] for q, hits in rankings.items()}
        self.asked: list[tuple[tuple[str, ...], int]] = []

    def search(self, queries: list[str], k: int) -> list[list[Hit]]:
        self.asked.append((tuple(queries), k))
        return [self.rankings[q][:k] for q in queries]


def test_equal_scores_go_to_the_larger_docid_and_ranks_start_at_one() -> None:
    run = run_table(["q"], [[Hit("a", 1.0), Hit("c", 1.0), Hit("b", 1.0), Hit("z", 0.5)]])
    assert rows(run) == [
        ("q", "c", 1, 1.0),
        ("q", "b", 2, 1.0),
        ("q", "a", 3, 1.0),
        ("q", "z", 4, 0.5),
    ]


def test_docids_are_compared_as_bytes_of_utf8() -> None:
    names = ["é", "z", "Z", "10", "9", "￿", "😀"]
    run = run_table(["q"], [[Hit(n, 0.0) for n in names]])
    assert run["docid"].to_pylist() == sorted(names, key=str.encode, reverse=True)


def test_k_cuts_each_query_after_ranking() -> None:
    hits = [[Hit("a", 1.0), Hit("b", 2.0)], [Hit("a", 3.0)]]
    assert rows(run_table(["q2", "q1"], hits, k=1)) == [("q1", "a", 1, 3.0), ("q2", "b", 1, 2.0)]


def test_a_query_without_hits_has_no_rows_and_no_rows_are_a_run() -> None:
    assert run_table(["q1", "q2"], [[], [Hit("a", 1.0)]])["qid"].to_pylist() == ["q2"]
    assert run_table([], []).num_rows == 0


def test_a_score_that_is_not_a_number_is_named() -> None:
    ids = pa.array(["d1", "d2"], pa.string())
    with pytest.raises(QuarryError, match="document 'd2' for query 'd2' is NaN"):
        rank_rows(ids, ids, np.array([1.0, np.nan]))


def test_the_parent_is_what_stands_before_the_last_mark() -> None:
    assert parent("doc#3") == "doc"
    assert parent("page#top#0") == "page#top"
    with pytest.raises(QuarryError, match="'doc' is not a passage"):
        parent("doc")


def test_a_document_has_the_score_of_its_best_passage() -> None:
    hits = [Hit("a#0", 3.0), Hit("b#1", 2.0), Hit("b#0", 5.0), Hit("c#0", 3.0)]
    assert collapse(hits) == [Hit("b", 5.0), Hit("c", 3.0), Hit("a", 3.0)]


def test_a_query_whose_passages_are_of_few_documents_is_asked_again_deeper() -> None:
    long = [(f"long#{i}", 9.0 - i / 100) for i in range(30)]
    retriever = Fixed(
        deep=[*long, ("b#0", 1.0), ("a#0", 0.5)], shallow=[("x#0", 2.0), ("y#0", 1.0)]
    )
    deep, shallow = search_documents(retriever, ["deep", "shallow"], 2)
    assert deep == [Hit("long", 9.0), Hit("b", 1.0)]
    assert shallow == [Hit("x", 2.0), Hit("y", 1.0)]
    assert retriever.asked == [
        (("deep", "shallow"), 3), (("deep",), 12), (("deep",), 48),
    ]  # fmt: skip


def test_an_equal_document_of_larger_name_is_found_behind_the_cut() -> None:
    # As passages "a#0" comes before "a!#0" ('#' > '!'); as documents "a!" comes before "a".
    retriever = Fixed(q=[("a#0", 1.0), ("a!#0", 1.0), ("b!#0", 0.5)])
    assert search_documents(retriever, ["q"], 1) == [[Hit("a!", 1.0)]]


def test_an_index_with_too_few_documents_gives_what_it_has() -> None:
    retriever = Fixed(some=[("a#1", 2.0), ("a#0", 1.0)], none=[])
    assert search_documents(retriever, ["some", "none"], 5) == [[Hit("a", 2.0)], []]
