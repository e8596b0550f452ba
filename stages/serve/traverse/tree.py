"""A query's search tree: which leaf to expand next, what its value does, what was found.

Selection is UCT (Kocsis & Szepesvári, ECML 2006) as the paper writes it; the ranking of passages,
the closing of exhausted nodes and the visits that stand for leaves under way (virtual loss: Chaslot
et al., 2008; only with more than one leaf at a time) are ours.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

DIGITS = 4  # values differ by up to 2e-5 between batch shapes: closer ones are equal


@dataclass(slots=True, eq=False)
class Node:
    """A prefix: its tokens from the root on, and the rows of the index that begin with it."""

    tokens: tuple[int, ...]
    left: int
    right: int
    depth: int = 0  # levels below the root
    prior: float = 0.0  # log-probability given the parent, among what the corpus allows
    likelihood: float = 0.0  # log-probability of all tokens, among all tokens
    value: float = 0.0
    visits: int = 0  # N
    total: float = 0.0  # W
    terminal: bool = False
    closed: bool = False  # nothing below it can still be expanded
    under_way: bool = False
    children: list["Node"] = field(default_factory=list)
    columns: tuple[int, ...] = ()  # of the model's cache
    logps: npt.NDArray[np.float32] | None = None  # of what may follow; none of a terminal node
    spent: bool = False  # it has all the children that it can get

    @property
    def q(self) -> float:
        """Q, the mean value of what was seen here and below."""
        return self.total / self.visits if self.visits else 0.0


def uct(q: Sequence[float], visits: Sequence[int], exploration: float) -> list[float]:
    """Q(a) + lambda · sqrt(ln Σ_b N(b) / (1 + N(a))) of every child a; 0 visits give no bonus."""
    among = math.log(sum(visits)) if sum(visits) else 0.0
    return [qa + exploration * math.sqrt(among / (1 + n)) for qa, n in zip(q, visits, strict=True)]


def best_child(node: Node, exploration: float) -> Node | None:
    """The open child of largest UCT; ties: the larger prior, then the smaller tokens.

    Visits of closed children count among all, as the formula has it.
    """
    scores = uct([c.q for c in node.children], [c.visits for c in node.children], exploration)
    ranked = [
        (-round(score, DIGITS), -round(c.prior, DIGITS), c.tokens, c)
        for score, c in zip(scores, node.children, strict=True)
        if not c.closed and not c.under_way
    ]
    return min(ranked, key=lambda x: x[:3])[3] if ranked else None


def back_up(path: Sequence[Node], value: float) -> None:
    """N += 1, W += value along a path."""
    for node in path:
        node.visits += 1
        node.total += value


def close(path: Sequence[Node]) -> None:
    """Close the nodes of a path, from its end, that are spent and have only done children."""
    for node in reversed(path):
        if not node.terminal:
            if not node.spent or not _are_done(node.children):
                return
            node.closed = True


def _are_done(nodes: Sequence[Node]) -> bool:
    return all(n.terminal or n.closed for n in nodes)


class Tree:
    """The tree of one query, and how many simulations it has left."""

    def __init__(self, query: str, rows: int, simulations: int, *, widen: float = 0.0) -> None:
        self.query, self.simulations, self.widen = query, simulations, widen
        self.prompt: Any = None  # with the keys and values of the tree
        self.root = Node((), 0, rows)
        self.passages: dict[int, float] = {}  # values of passages that were read
        self.tokens = 0  # read for it
        self.cut = False  # it has simulations left, and no tokens

    def select(self, exploration: float) -> list[Node] | None:
        """The path to a leaf that is to be expanded; None: none (now).

        Terminal nodes on the way are visited again; that is a simulation each.
        """
        while self.simulations and not self.root.closed and not self.root.under_way:
            path = [self.root]
            while path[-1].children and not path[-1].terminal:
                if self._widens(path[-1]):
                    break
                if (child := best_child(path[-1], exploration)) is None:
                    return None  # all of them are under way
                path.append(child)
            self.simulations -= 1
            leaf = path[-1]
            if not leaf.terminal:
                leaf.under_way = True
                for node in path:  # until its value is there it counts as 0
                    node.visits += 1
                return path
            if leaf is self.root:
                return None
            back_up(path, leaf.value)
        return None

    def _widens(self, node: Node) -> bool:
        """Whether an expanded node is to get more children now."""
        enough = node.visits >= self.widen * len(node.children) ** 2
        return not node.spent and (enough or _are_done(node.children))

    def grow(self, path: Sequence[Node], children: Sequence[Node]) -> None:
        """Put the valued new children of the path's leaf into the tree.

        A node that never got any is terminal.
        """
        for node in path:
            node.visits -= 1
        leaf = path[-1]
        leaf.under_way = False
        leaf.children += children
        leaf.spent = not children or not self.widen
        for child in children:
            back_up([*path, child], child.value)
        if not leaf.children:
            leaf.terminal = True
            leaf.closed = leaf is self.root
            back_up(path[1:] and path, leaf.value)
        close(path)

    def nodes(self) -> list[Node]:
        """All but the root, parents first."""
        found, todo = [], list(self.root.children)
        while todo:
            node = todo.pop(0)
            found.append(node)
            todo += node.children
        return found


def rank(tree: Tree, docs: Any, max_occ: int) -> list[tuple[int, float]]:
    """(passage, score), best first: the best Q of the nodes that speak for the passage.

    Those are of at most ``max_occ`` occurrences; ``docs(node)`` are a node's passages. Ties: more
    visits, the longer prefix, the smaller number. Where no node is that narrow: the first passages
    of the deepest node, of several the most visited.
    """
    nodes = tree.nodes()
    narrow = [n for n in nodes if n.right - n.left <= max_occ]
    if not narrow and nodes:
        narrow = [max(nodes, key=lambda n: (n.depth, n.visits, n.tokens))]
    best: dict[int, tuple[float, int, int]] = {}
    for node in narrow:
        key = (round(node.q, DIGITS), node.visits, len(node.tokens))
        for doc in docs(node):
            best[doc] = max(key, best.get(doc, key))
    ranked = sorted(best.items(), key=lambda x: (*(-v for v in x[1]), x[0]))
    return [(doc, score) for doc, (score, *_) in ranked]
