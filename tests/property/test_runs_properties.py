"""Runs, whatever the scores: permutation, prefix, and documents against brute force."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages import runs
from stages.runs import collapse, rank_rows, run_table, search_documents
from stages.types import Hit

scores = st.sampled_from([0.0, 0.5, 1.0, 1.5])  # few, so that ties are common
names = st.text("ab!~#é", min_size=1, max_size=3)
hits = st.dictionaries(names, scores, max_size=8).map(lambda d: [Hit(*x) for x in d.items()])
passages = st.dictionaries(
    st.tuples(names, st.integers(0, 12)).map(lambda x: f"{x[0]}#{x[1]}"), scores, max_size=25
)


class Ranked:
    """A correct retriever over given scores."""

    fingerprint = "ranked"

    def __init__(self, of: dict[str, float]) -> None:
        self.hits = sorted((Hit(*x) for x in of.items()), key=lambda h: (h.score, h.docid.encode()))

    def search(self, queries: list[str], k: int) -> list[list[Hit]]:
        return [self.hits[::-1][:k] for _ in queries]


@given(hits, st.randoms())
def test_a_run_does_not_depend_on_the_order_of_its_hits(found: list[Hit], random) -> None:
    shuffled = random.sample(found, len(found))
    assert run_table(["q"], [shuffled]).equals(run_table(["q"], [found]))


@given(hits, st.integers(1, 8))
def test_a_run_at_k_is_a_prefix_of_the_run_at_k_plus_one(found: list[Hit], k: int) -> None:
    longer = run_table(["q"], [found], k=k + 1)
    assert run_table(["q"], [found], k=k).equals(longer.slice(0, min(k, longer.num_rows)))


@given(st.dictionaries(st.tuples(names, names), scores, min_size=1, max_size=30), st.integers(1, 9))
def test_a_run_does_not_depend_on_how_many_rows_are_ranked_at_once(of, block: int) -> None:
    (qids, docids), values = zip(*of, strict=True), np.array([*of.values()])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runs, "BLOCK", block)
        run = rank_rows(pa.array(qids), pa.array(docids), values)
    expected = sorted(
        ((q.encode(), -s, d.encode()) for (q, d), s in of.items()),
        key=lambda row: (row[0], row[1], [-b for b in row[2]] + [1]),
    )
    found = [(r["qid"].encode(), -r["score"], r["docid"].encode()) for r in run.to_pylist()]
    assert found == expected


@given(passages, st.integers(1, 6))
def test_documents_are_those_of_an_exhaustive_search(of: dict[str, float], k: int) -> None:
    every = collapse([Hit(*x) for x in of.items()])
    assert search_documents(Ranked(of), ["q"], k) == [every[:k]]
