"""SEAL's ranking: the card's weights, and a hand-made tree over a hand-made corpus."""

import numpy as np
import pytest
from walk_worlds import drawn, index_of, random_docs, searching

from stages.serve.traverse import seal
from stages.serve.traverse.retriever import CorpusWalker
from stages.serve.traverse.tree import Node, Tree, rank

LIKELY = float(np.log(0.1))


def tree_of(index, *keys: tuple[tuple[int, ...], float], tokens: dict[int, float] | None = None):
    """A tree of these prefixes; a token has log-probability -50 but for those given."""
    tree = Tree("q", len(index.sa), 0)
    tree.root.logps = np.full(64, -50.0, np.float32)  # padded, as a model's may be
    for token, logp in (tokens or {}).items():
        tree.root.logps[token] = logp
    for key, logp in keys:
        tree.root.children.append(Node(key, *index.find(key), likelihood=logp))
    return tree


def worth(index, key: tuple[int, ...], logp: float = LIKELY) -> float:
    left, right = index.find(key)
    return float(seal.weight(logp, right - left, len(index.sa)))


def test_weights_are_the_cards() -> None:
    """Check 8: a million tokens."""
    found = seal.weight([-2, -2, -8, -12], [10, 1000, 10, 10], 1_000_000)
    assert found == pytest.approx([85.6155, 25.4740, 9.6583, 0], abs=1e-4)


def test_a_certain_text_has_a_finite_weight_and_one_that_is_everywhere_none() -> None:
    assert np.isfinite(seal.weight(0.0, 1, 1000)) and seal.weight(-1.0, 1000, 1000) == 0


def test_keys_add_up_once_each_and_not_on_the_same_tokens() -> None:
    docs = [[1, 2, 3, 4, 5, 1, 2], [1, 2, 9, 9, 9], [9, 3, 4, 9, 9], [9] * 4000]
    index = index_of(docs)
    found = dict(seal.rank(tree_of(index, ((1, 2), LIKELY), ((3, 4), LIKELY)), index))
    one, other = worth(index, (1, 2)), worth(index, (3, 4))
    assert found == pytest.approx({0: one + other, 1: one, 2: other}, abs=0.11)
    inner = tree_of(index, ((1, 2, 3), LIKELY), ((2, 3), LIKELY))
    assert dict(seal.rank(inner, index)) == pytest.approx({0: worth(index, (1, 2, 3))}, abs=0.11)


def test_a_key_of_tokens_that_are_covered_counts_by_its_new_ones() -> None:
    """(2, 7) behind (1, 2): 1 - .8 + .8 / 2 of its weight, where (1, 2) is the better key."""
    docs = [[1, 2, 5, 2, 7], [9] * 4000]
    index = index_of(docs)
    tree = tree_of(index, ((1, 2), LIKELY), ((2, 7), LIKELY - 0.5))
    expected = worth(index, (1, 2)) + 0.6 * worth(index, (2, 7), LIKELY - 0.5)
    assert dict(seal.rank(tree, index)) == pytest.approx({0: expected}, abs=0.11)


def test_single_tokens_that_no_key_covers_are_added() -> None:
    docs = [[1, 2, 5, 5], [1, 2, 6, 2], [5, 9], [9] * 4000]
    index = index_of(docs)
    tree = tree_of(index, ((1, 2), LIKELY), tokens={5: LIKELY, 2: LIKELY})
    key, token = worth(index, (1, 2)), worth(index, (5,))
    assert token > 0
    ranked = seal.rank(tree, index)
    assert [doc for doc, _ in ranked] == [0, 1], "the third has no key; the second no other token"
    assert dict(ranked) == pytest.approx({0: key + token, 1: key}, abs=0.11)


def test_a_common_key_finds_nothing_and_the_walk_falls_back_to_its_values(monkeypatch) -> None:
    docs = [*random_docs(30, 5), [7] * 40_000]

    def logps(query: str, tokens: tuple[int, ...]) -> np.ndarray:  # the corpus has 0 to 5
        x = drawn(query, tokens) + 8 * (np.arange(30) < 6)
        return (x - np.log(np.exp(x).sum())).astype(np.float32)

    how = {"simulations": 8, "granularity": 2, "depth": 3}
    search = searching(docs, lambda _, t: float(drawn("v", t)[0] < 0), logps=logps, **how)
    search.walk = search.walk.model_copy(update={"doc_score": "seal"})
    (tree,) = search.run(["q"])
    walker = CorpusWalker(search, type("G", (), {"count_tokens": None}), "f")
    by_seal = [h.docid for h in walker._hits(tree)]
    ranked = seal.rank(tree, search.index)
    assert by_seal == [search.index.docids[doc] for doc, _ in ranked] and len(ranked) > 2
    scores = [score for _, score in ranked]
    assert scores == sorted(scores, reverse=True) and scores[0] > scores[-1]
    monkeypatch.setattr(seal, "MOST_COUNT", 0)
    assert seal.rank(tree, search.index) == []
    plain = rank(tree, lambda n: search.index.docs(n.left, n.right, 50), 50)
    assert [h.docid for h in walker._hits(tree)] == [search.index.docids[d] for d, _ in plain]
    assert by_seal != [search.index.docids[d] for d, _ in plain]
