"""CT-MCTS: the card's numbers and limits, what a path may be, and that trees keep apart."""

import numpy as np
import pytest
from walk_worlds import drawn, index_of, random_docs, searching

from stages.digest import uniform
from stages.serve.traverse import beam
from stages.serve.traverse.beam import Beam
from stages.serve.traverse.tree import Node, Tree, back_up, best_child, close, rank, uct
from stages.walks import walk_prompt

DOCS = random_docs(40, 1)


def hashed(query: str, tokens: tuple[int, ...]) -> float:
    return float(np.exp(drawn(f"value {query}", tokens)[0]))


def shape(tree: Tree) -> list[tuple]:
    return [
        (n.tokens, n.left, n.right, n.depth, n.visits, round(n.total, 9), n.terminal, n.closed)
        for n in tree.nodes()
    ]


def test_uct_is_the_cards() -> None:
    """Check 4: Q + lambda · sqrt(ln 8 / 7), and / 3 (the card's .58328 is .5 + .1 · .83255)."""
    assert uct([0.5, 0.7], [6, 2], 1.0) == pytest.approx([1.04503, 1.53255], abs=1e-5)
    assert uct([0.6, 0.5], [6, 2], 0.1) == pytest.approx([0.65450, 0.58326], abs=1e-5)
    assert uct([0.6, 0.5], [6, 2], 0.5) == pytest.approx([0.87252, 0.91628], abs=1e-5)
    assert uct([0.1, 0.2], [0, 0], 9.0) == [0.1, 0.2], "nothing was seen: no bonus"


def test_visits_of_a_closed_child_count_among_all() -> None:
    """.6 + .5 · sqrt(ln 37 / 7) = .959 and .35 + .5 · sqrt(ln 37 / 2) = 1.022; without the closed
    child's 30 visits it would be .864 and .843."""
    a, b, closed = (
        Node((t,), 0, 1, visits=n, total=n * q)
        for t, n, q in ((1, 6, 0.6), (2, 1, 0.35), (3, 30, 0.1))
    )
    closed.closed = True
    assert best_child(Node((), 0, 9, children=[a, b, closed]), 0.5) is b


def test_of_equal_children_the_likelier_and_then_the_smaller_is_chosen() -> None:
    a, b, c = (
        Node((t,), 0, 1, prior=p, visits=1, total=0.5) for t, p in ((3, -1.0), (2, -0.5), (1, -0.5))
    )
    assert best_child(Node((), 0, 9, children=[a, b, c]), 0.5) is c
    c.closed = True
    assert best_child(Node((), 0, 9, children=[a, b, c]), 0.5) is b
    b.under_way = a.closed = True
    assert best_child(Node((), 0, 9, children=[a, b, c]), 0.5) is None


def test_values_are_averaged_along_the_path() -> None:
    """Check 5."""
    node, root = Node((1,), 0, 1), Node((), 0, 9)
    for value in (0.2, 0.8, 0.5):
        back_up([root, node], value)
    assert (node.visits, node.q) == (3, pytest.approx(0.5)) and root.visits == 3


def test_the_root_counts_valued_nodes_and_visits_of_terminal_ones() -> None:
    for leaves in (1, 3):
        search = searching(DOCS, hashed, simulations=60, granularity=2, depth=3, widen=0.0,
                           leaves=leaves)  # fmt: skip
        (tree,) = search.run(["q"])
        nodes = tree.nodes()
        again = 60 - tree.simulations - search.counts["expansions"]
        assert again > 0, "a terminal node was visited again"
        assert tree.root.visits == len(nodes) + again
        for n in [tree.root, *nodes]:
            below = sum(c.visits for c in n.children)
            assert n.visits == below or n.terminal or n.visits == below + 1
            assert not n.under_way and n.total <= n.visits


def test_a_node_that_is_visited_often_gets_more_children() -> None:
    how = dict(simulations=30, granularity=2, depth=8)
    (wide,) = searching(DOCS, hashed, widen=1.0, **how).run(["q"])
    (narrow,) = searching(DOCS, hashed, widen=0.0, **how).run(["q"])
    assert max(len(n.children) for n in [narrow.root, *narrow.nodes()]) == 2
    assert len(wide.root.children) > 2
    for n in [wide.root, *wide.nodes()]:
        tokens = [c.tokens for c in n.children]
        assert len(set(tokens)) == len(tokens), "no child is drawn twice"
    found = [c.tokens for c in wide.root.children[:2]]
    assert found == [c.tokens for c in narrow.root.children], "the first two are the same"


def test_a_tree_may_be_walked_to_its_end() -> None:
    docs = [[1, 2, 3], [1, 2, 4], [5]]
    search = searching(docs, hashed, simulations=500, granularity=2, depth=3)
    (tree,) = search.run(["q"])
    assert tree.root.closed and tree.simulations > 400
    tokens = {n.tokens for n in tree.nodes()}
    assert {(1, 2), (2, 3), (2, 4), (3,), (4,), (5,), (1, 2, 3), (1, 2, 4)} == tokens


def test_a_node_closes_when_nothing_below_it_is_left() -> None:
    leaf, inner = Node((1, 2), 0, 1, terminal=True), Node((1,), 0, 2, spent=True)
    other, root = Node((2,), 2, 4), Node((), 0, 4, spent=True)
    inner.children, root.children = [leaf], [inner, other]
    close([root, inner])
    assert inner.closed and not root.closed
    other.terminal = True
    close([root, inner])
    assert root.closed


def test_marginals_of_the_stochastic_beam() -> None:
    """Check 6: p = (.6, .3, .1), then (.5, .5), (.9, .1), (.2, .8), two of six without replacement.

    7 000 draws; the largest standard error is sqrt(.58 · .42 / 7000) = .0059.
    """
    docs = [[a, x] for a in (0, 1, 2) for x in (3, 4)]
    index = index_of(docs, separator=5)
    first = np.log([0.6, 0.3, 0.1, 1e-9, 1e-9])
    second = np.log([[0.5, 0.5], [0.9, 0.1], [0.2, 0.8]])
    draws, counts, top = 7_000, np.zeros(6), np.zeros(6)
    start = Beam((), 0, len(index.sa), (), first)
    begin = beam.follow(index, [start], candidates=9, least=2)
    # tokens 3 and 4 begin walks too; here only 0, 1 and 2 may
    begin = [beam.Follow(*(x[:3] for x in begin[0]))]
    how = dict(width=2, temperature=1.0, stop_count=0)
    for seed in range(draws):
        beams, fresh = beam.advance([start], begin, "q", seed=seed, **how)
        for b in fresh:
            b.logps = np.r_[np.full(3, -50.0), second[b.tokens[0]]]
        options = beam.follow(index, beams, candidates=9, least=2)
        beams, _ = beam.advance(beams, options, "q", seed=seed, **how)
        numbers = [2 * b.tokens[0] + b.tokens[1] - 3 for b in beams]
        assert len(set(numbers)) == 2 and beams[0].g >= beams[1].g
        counts[numbers] += 1
        top[numbers[0]] += 1
    expected = np.array([0.5810, 0.5810, 0.5388, 0.0700, 0.0469, 0.1823])
    np.testing.assert_allclose(counts / draws, expected, atol=4 * 0.0059)
    model = np.array([0.30, 0.30, 0.27, 0.03, 0.02, 0.08])
    np.testing.assert_allclose(top / draws, model, atol=4 * 0.0055)


def test_the_largest_of_the_children_is_the_parents_and_impossible_ones_stay_so() -> None:
    random = np.random.default_rng(0)
    phi = np.log([0.5, 0.25, 0.25 - 1e-12, 1e-12, 0.0 + 1e-300])
    for _ in range(50):
        g = beam.conditioned(1.25, phi, random)
        assert g.max() == pytest.approx(1.25, abs=1e-12) and np.isfinite(g).all()
    with np.errstate(divide="ignore"):
        g = beam.conditioned(0.0, np.log([1.0, 0.0]), random)
    assert g.tolist() == [0.0, -np.inf]


def test_one_likeliest_continuation_at_a_time_is_greedy_decoding() -> None:
    """Check 7: M = 1, lambda = 0, tau -> 0, S = d_max."""
    levels, g = 5, 2
    search = searching(DOCS, hashed, simulations=levels, granularity=g, depth=levels, width=1,
                       exploration=0.0, temperature=1e-6, stop_count=0, widen=0.0)  # fmt: skip
    (tree,) = search.run(["q"])
    greedy: tuple[int, ...] = ()
    for _ in range(levels * g):
        follows = {d[i + len(greedy)] for d in DOCS for i in range(len(d) - len(greedy))
                   if tuple(d[i : i + len(greedy)]) == greedy}  # fmt: skip
        if not follows:
            break
        logps = drawn(walk_prompt("q"), greedy)
        greedy = (*greedy, max(follows, key=lambda t: logps[t]))
    assert max((n.tokens for n in tree.nodes()), key=len) == greedy


def test_an_oracle_leads_to_its_passage() -> None:
    """Check 7: V = 1 on beginnings of the gold passage, lambda = 0, all continuations."""
    gold = tuple(DOCS[7])
    search = searching(
        DOCS, lambda q, tokens: float(gold[: len(tokens)] == tokens), simulations=10,
        granularity=1, depth=10, width=40, exploration=0.0, widen=0.0,
    )  # fmt: skip
    (tree,) = search.run(["q"])
    ranked = rank(tree, lambda n: search.index.docs(n.left, n.right, 50), 1)
    assert ranked[0] == (7, 1.0) and search.counts["expansions"] <= 10
    on_path = [n for n in tree.nodes() if n.tokens == gold[: len(n.tokens)]]
    assert max(n.depth for n in on_path) == max(n.depth for n in tree.nodes())


def test_at_equal_tokens_a_walk_by_values_finds_what_a_beam_does_not() -> None:
    """Section 8: at a fork the model knows nothing, and the value sees who went right.

    Eight beginnings, eight ways on from each, then one passage. A beam must hold both right turns
    among its few; a walk learns the first one before it looks for the second. One level of all
    eight tokens is a stochastic beam search, valued as the walk is; of width 1, a greedy one.
    """
    tails = random_docs(64, 3, tokens=14, least=6, most=7)
    docs = [[i // 8, 8 + i % 8, *(16 + token for token in t)] for i, t in enumerate(tails)]
    queries = [f"q{i}" for i in range(100)]
    gold = {q: tuple(docs[int(uniform(q) * 64)]) for q in queries}

    def run(**how: float) -> tuple[int, float]:
        search = searching(docs, lambda q, t: float(gold[q][: len(t)] == t), **how)
        trees = search.run(queries)
        best = [rank(t, lambda n: search.index.docs(n.left, n.right, 50), 50)[0] for t in trees]
        hits = sum(gold[q] == tuple(docs[doc]) for q, (doc, _) in zip(queries, best, strict=True))
        return hits, sum(t.tokens for t in trees) / len(trees)

    walk, read = run(simulations=16, granularity=1, depth=8, width=2)
    one_level = {"simulations": 1, "granularity": 8, "depth": 1, "widen": 0.0}
    beam, beam_read = run(width=12, **one_level)
    greedy, _ = run(width=1, **one_level)
    assert beam_read == pytest.approx(read, rel=0.02)
    assert walk > 2 * beam and beam > greedy and greedy <= 4, "one of 64 by chance"


def test_equal_values_spread_the_visits_and_an_exhausted_tree_ends() -> None:
    search = searching(DOCS, lambda q, t: 0.5, simulations=60, granularity=2, depth=6, width=4,
                       widen=0.0)  # fmt: skip
    (tree,) = search.run(["q"])
    visits = [c.visits for c in tree.root.children]
    assert len(visits) >= 4 and max(visits) <= 3 * min(visits)
    search = searching([[1, 2, 3], [4, 5]], lambda q, t: 0.5, simulations=500, width=9)
    (tree,) = search.run(["q"])
    assert tree.root.closed and tree.simulations > 400


def test_every_path_occurs_in_a_passage_and_names_its_rows() -> None:
    """Check 3."""
    search = searching(DOCS, hashed, simulations=40, granularity=3, depth=8, stop_count=0)
    trees = search.run([f"q{i}" for i in range(6)])
    nodes = [n for t in trees for n in t.nodes()]
    assert len(nodes) > 100 and len({n.tokens for n in nodes}) > 100
    for n in nodes:
        texts = ["," + ",".join(map(str, DOCS[d])) + "," for d in
                 search.index.docs(n.left, n.right, 10**6)]  # fmt: skip
        assert texts and all("," + ",".join(map(str, n.tokens)) + "," in t for t in texts)
        assert search.index.find(n.tokens) == (n.left, n.right)
        assert n.depth <= 8 and len(n.tokens) <= 3 * n.depth


@pytest.mark.parametrize("verify", [0, 12])
def test_a_tree_alone_is_the_tree_in_company(verify: int) -> None:
    """Check 9: equal seeds, equal trees; in any company, order and number at once."""
    how = dict(simulations=12, granularity=3, depth=6, verify_tokens=verify)
    queries = [f"q{i}" for i in range(7)]
    together = [shape(t) for t in searching(DOCS, hashed, **how).run(queries)]
    assert len(set(map(str, together))) == 7, "queries differ"
    alone = [shape(searching(DOCS, hashed, **how).run([q])[0]) for q in queries]
    assert alone == together
    few = searching(DOCS, hashed, trees=2, **how).run(queries[::-1])
    assert [shape(t) for t in few][::-1] == together
    other = searching(DOCS, hashed, seed=14, **how).run(queries)
    assert [shape(t) for t in other] != together


def test_a_tree_is_given_out_when_it_is_done_and_makes_room() -> None:
    """With two at a time of five, the first is there before the last has begun."""
    short, long = dict(simulations=2), dict(simulations=30)
    how = dict(granularity=3, depth=6, trees=2)
    search = searching(DOCS, hashed, **how, **long)
    opened: list[int] = []
    begin = search.reader.open
    search.reader.open = lambda prompts, **room: (
        opened.append(len(prompts)) or begin(prompts, **room)
    )
    given = [(i, sum(opened)) for i, _ in search.grow([f"q{i}" for i in range(5)])]
    assert sorted(i for i, _ in given) == [0, 1, 2, 3, 4] and given[0][1] == 2 and given[-1][1] == 5
    assert [i for i, _ in searching(DOCS, hashed, **how, **short).grow(["a"])] == [0]


@pytest.mark.parametrize(("verify", "leaves"), [(0, 1), (12, 1), (12, 3)])
def test_a_trees_tokens_are_those_that_the_model_read_for_it(verify: int, leaves: int) -> None:
    how = dict(simulations=12, granularity=3, depth=6, verify_tokens=verify, leaves=leaves)
    queries = [f"q{i} {'w ' * i}" for i in range(5)]
    search = searching(DOCS, hashed, **how)
    together = [t.tokens for t in search.run(queries)]
    assert sum(together) == search.reader.tokens and len(set(together)) > 1
    for query, tokens in zip(queries, together, strict=True):
        (tree,) = (alone := searching(DOCS, hashed, **how)).run([query])
        assert tree.tokens == tokens == alone.reader.tokens and not tree.cut


@pytest.mark.parametrize("leaves", [1, 3])
def test_a_tree_never_reads_more_than_its_tokens_and_says_that_it_was_cut(leaves: int) -> None:
    how = dict(simulations=40, granularity=3, depth=6, verify_tokens=9, leaves=leaves)
    (whole,) = searching(DOCS, hashed, **how).run(["q"])
    prompt = len(walk_prompt("q").split())
    least = prompt + searching(DOCS, hashed, **how).walk.expansion_tokens
    seen = []
    for most in range(least, whole.tokens + 60, 17):
        (tree,) = searching(DOCS, hashed, max_tokens=most, **how).run(["q"])
        assert prompt < tree.tokens <= most
        assert tree.cut == (tree.simulations > 0 and not tree.root.closed)
        if leaves == 1:  # of several the last round has fewer, and then others are looked at
            assert {n.tokens for n in tree.nodes()} <= {n.tokens for n in whole.nodes()}
        seen.append((tree.cut, tree.tokens))
    assert seen[0][0] and len({n for _, n in seen}) > 3
    (same,) = searching(DOCS, hashed, max_tokens=10 * whole.tokens, **how).run(["q"])
    assert shape(same) == shape(whole) and not same.cut


def test_trees_share_the_passes_of_the_model() -> None:
    how = dict(simulations=8, granularity=3, depth=6, stop_count=0)
    one = searching(DOCS, hashed, **how)
    one.run(["q0"])
    many = searching(DOCS, hashed, **how)
    many.run([f"q{i}" for i in range(16)])
    assert many.counts["passes"] <= 2 * one.counts["passes"]
    assert many.counts["steps"] >= 10 * one.counts["steps"]


def test_a_prefix_that_names_its_passage_is_valued_by_the_passage_read_once() -> None:
    docs = [[1, 2, 3, 4, 5, 6], [1, 2, 9, 8, 7], [7, 7, 3, 4, 1, 1, 1]]
    asked: list[tuple[int, ...]] = []

    def value(query: str, tokens: tuple[int, ...]) -> float:
        asked.append(tokens)
        return len(tokens) / 10

    search = searching(
        docs, value, simulations=20, granularity=2, depth=3, width=6, verify_tokens=4
    )
    (tree,) = search.run(["q"])
    named = [n for n in tree.nodes() if n.right - n.left == 1]
    assert named and all(n.terminal and n.value == 0.4 for n in named)
    passages = [tuple(d[:4]) for d in docs]
    for tokens in passages:
        assert asked.count(tokens) <= 1
    assert search.counts["passages"] == len({tuple(t) for t in asked if t in passages}) <= 3


def test_passages_rank_by_their_best_node_then_visits_then_length() -> None:
    tree = Tree("q", 100, 0)
    wide = Node((1,), 0, 90, visits=9, total=9.0)
    a = Node((2,), 0, 2, visits=2, total=1.0)
    b = Node((3,), 2, 3, visits=3, total=1.5)
    c = Node((4, 5), 3, 4, visits=2, total=1.0)
    d = Node((6,), 4, 5, visits=1, total=0.9)
    tree.root.children = [wide, a, b, c, d]
    docs = {a: [0, 4], b: [1], c: [2], d: [3], wide: [5]}
    ranked = rank(tree, docs.__getitem__, 50)
    assert ranked == [(3, 0.9), (1, 0.5), (2, 0.5), (0, 0.5), (4, 0.5)]
    tree.root.children = [wide]
    assert rank(tree, docs.__getitem__, 50) == [(5, 1.0)], "nothing is narrow: the deepest"
    tree.root.children = []
    assert rank(tree, docs.__getitem__, 50) == []


def test_a_corpus_of_one_passage_and_of_none() -> None:
    (tree,) = searching([[1, 2, 3]], hashed, simulations=4).run(["q"])
    assert {n.right - n.left for n in tree.nodes()} == {1}
    (tree,) = searching([[]], hashed, simulations=4).run(["q"])
    assert tree.nodes() == [] and tree.root.closed
    assert searching(DOCS, hashed).run([]) == []


def test_very_many_continuations_are_looked_up_likeliest_first(monkeypatch) -> None:
    """The fast path gives what the whole set gives, as long as the candidates hold all of it."""
    how = dict(simulations=20, granularity=3, depth=6)
    whole = [shape(t) for t in searching(DOCS, hashed, **how).run(["a", "b"])]
    monkeypatch.setattr(beam, "NARROW", 0)
    assert [shape(t) for t in searching(DOCS, hashed, **how).run(["a", "b"])] == whole
    few = searching(DOCS, hashed, candidates=1, **how).run(["a"])
    assert few[0].nodes(), "none of the candidates follows: all are looked at"
