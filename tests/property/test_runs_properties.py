"""Runs, whatever the scores: permutation, prefix, and documents against brute force."""

from hypothesis import given
from hypothesis import strategies as st

from stages.runs import collapse, run_table, search_documents
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


@given(passages, st.integers(1, 6))
def test_documents_are_those_of_an_exhaustive_search(of: dict[str, float], k: int) -> None:
    every = collapse([Hit(*x) for x in of.items()])
    assert search_documents(Ranked(of), ["q"], k) == [every[:k]]
