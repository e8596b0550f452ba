"""All trees in lock-step: one pass of the model per beam step, whatever trees there are.

In a round every tree selects a leaf (or ``leaves`` of them), all are expanded together, valued
together and backed up. A tree that has done its simulations, or has not the tokens for one more
(``max_tokens``), is given out at once and makes room for the next. What a tree sees does not depend
on the others: draws are seeded by its query and the prefix.

A prefix that occurs once (``stop_count``) names its passage: it ends there, and ``verify_tokens``
of the passage are read in one pass for its value, once per passage and query.
"""

import time
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from stages.prefixes import Ask
from stages.serve.traverse import beam as beams_of
from stages.serve.traverse.beam import Beam
from stages.serve.traverse.tree import Node, Tree
from stages.serve.traverse.walk import Walk
from stages.walks import walk_prompt


class Prefix(NamedTuple):
    """What is to be valued."""

    query: str
    tokens: tuple[int, ...]
    likelihood: float  # log-probability of the tokens behind the prompt
    hidden: npt.NDArray[np.float32]  # (d,) of the last token


class Value(Protocol):
    """How good prefixes are, in [0, 1]."""

    fingerprint: str

    def __call__(self, prefixes: Sequence[Prefix]) -> npt.NDArray[np.floating]:
        """An (n,) array."""
        ...


class Likelihood:
    """The model's own: the geometric mean of the tokens' probabilities (no head; the ablation)."""

    fingerprint = "likelihood"

    def __call__(self, prefixes: Sequence[Prefix]) -> npt.NDArray[np.float64]:
        return np.exp([p.likelihood / len(p.tokens) for p in prefixes])


class Search:
    """Grows trees over an index with a reader (``stages.prefixes``) and a value.

    ``seconds`` adds up what the index and the model took, ``counts`` what was done.
    """

    def __init__(self, index: Any, reader: Any, value: Value, walk: Walk, *, seed: int) -> None:
        self.index, self.reader, self.value = index, reader, value
        self.walk, self.seed = walk, seed
        self.seconds = {"index": 0.0, "model": 0.0, "all": 0.0}
        self.counts = {"searches": 0, "expansions": 0, "steps": 0, "passes": 0, "passages": 0}

    def run(self, queries: Sequence[str]) -> list[Tree]:
        """The finished tree of each query."""
        return [tree for _, tree in sorted(self.grow(queries), key=lambda x: x[0])]

    def grow(self, queries: Sequence[str]) -> Iterator[tuple[int, Tree]]:
        """(position, finished tree) of each query, as they finish."""
        waiting, active = deque(enumerate(queries)), {}
        while waiting or active:
            began = time.perf_counter()
            room = min(self.walk.trees - len(active), len(waiting))
            new = {i: self._tree(query) for i, query in (waiting.popleft() for _ in range(room))}
            self._plant(list(new.values()))
            active |= new
            leaves = [(t, path) for t in active.values() for path in self._select(t)]
            self._expand(leaves)
            growing = {id(t) for t, _ in leaves}
            done = [i for i, t in active.items() if id(t) not in growing]
            self.counts["searches"] += len(done)
            self.seconds["all"] += time.perf_counter() - began
            for i in done:
                tree = active.pop(i)
                tree.prompt = None  # its keys and values
                yield i, tree

    def _tree(self, query: str) -> Tree:
        return Tree(query, len(self.index.sa), self.walk.simulations, widen=self.walk.widen)

    def _plant(self, trees: Sequence[Tree]) -> None:
        """Read the prompts."""
        room = max(self.walk.granularity * self.walk.depth, self.walk.verify_tokens)
        prompts = self._timed(
            "model", self.reader.open, [walk_prompt(t.query) for t in trees], room=room
        )
        for tree, prompt in zip(trees, prompts, strict=True):
            tree.prompt, tree.root.logps = prompt, prompt.logps
            tree.tokens = prompt.n

    def _select(self, tree: Tree) -> list[list[Node]]:
        paths: list[list[Node]] = []
        room = (self.walk.max_tokens - tree.tokens) // self.walk.expansion_tokens
        tree.cut = room < 1 and tree.simulations > 0 and not tree.root.closed
        while len(paths) < min(self.walk.leaves, room) and (
            path := tree.select(self.walk.exploration)
        ):
            paths.append(path)
        return paths

    def _expand(self, leaves: Sequence[tuple[Tree, list[Node]]]) -> None:
        """The children of all these leaves, valued and put into their trees."""
        walk = self.walk
        starts = [
            Beam(n.tokens, n.left, n.right, n.columns, n.logps, likelihood=n.likelihood)
            for _, (*_, n) in leaves
        ]
        searches = [[start] for start in starts]
        known = [sorted((c.left, c.right) for c in path[-1].children) for _, path in leaves]
        for _ in range(walk.granularity):
            live = [b for beams in searches for b in beams if not b.ended]
            if not live:
                break
            options = iter(self._timed(
                "index", beams_of.follow, self.index, live,
                candidates=walk.candidates, least=walk.width,
            ))  # fmt: skip
            read: list[tuple[Tree, Beam]] = []
            for n, (tree, _) in enumerate(leaves):
                own = [next(options) for b in searches[n] if not b.ended]
                searches[n], fresh = beams_of.advance(
                    searches[n], own, tree.query, width=walk.width,
                    temperature=walk.temperature, stop_count=walk.stop_count,
                    seed=self.seed, known=known[n],
                )  # fmt: skip
                read += [(tree, b) for b in fresh if not (b.ended and walk.verify_tokens)]
            self._read(read)
        self.counts["expansions"] += len(leaves)
        for (_, path), beams in zip(leaves, searches, strict=True):
            beams[:] = [b for b in beams if len(b.tokens) > len(path[-1].tokens)]
        kids = [
            [self._node(b, path[-1]) for b in beams]
            for (_, path), beams in zip(leaves, searches, strict=True)
        ]
        self._evaluate([
            (tree, *new)
            for (tree, _), nodes, beams in zip(leaves, kids, searches, strict=True)
            for new in zip(nodes, beams, strict=True)
        ])  # fmt: skip
        for (tree, path), nodes in zip(leaves, kids, strict=True):
            tree.grow(path, nodes)

    def _read(self, fresh: Sequence[tuple[Tree, Beam]]) -> None:
        """One pass of the model over the new token of every beam."""
        if not fresh:
            return
        asks = [Ask(tree.prompt, b.columns, [b.tokens[-1]]) for tree, b in fresh]
        for (_, beam), read in zip(
            fresh, self._timed("model", self.reader.read, asks), strict=True
        ):
            beam.columns, beam.logps, beam.hidden = read.path, read.logps, read.hidden[-1]
        for tree, _ in fresh:
            tree.tokens += 1
        self.counts["steps"] += len(fresh)
        self.counts["passes"] += 1

    def _node(self, beam: Beam, parent: Node) -> Node:
        depth = parent.depth + 1
        terminal = beam.ended or depth == self.walk.depth
        return Node(
            beam.tokens, beam.left, beam.right, depth, prior=beam.phi, likelihood=beam.likelihood,
            terminal=terminal, columns=beam.columns,
            logps=None if terminal else beam.logps,
        )  # fmt: skip

    def _evaluate(self, new: Sequence[tuple[Tree, Node, Beam]]) -> None:
        """Values of new nodes: those of the passages that they name, if these are read, or own."""
        by_passage: list[tuple[Tree, Node, list[int]]] = []
        own: list[tuple[Node, Prefix]] = []
        for tree, node, beam in new:
            if beam.hidden is not None:
                prefix = Prefix(tree.query, node.tokens, node.likelihood, beam.hidden)
                own.append((node, prefix))
            else:
                docs = self.index.docs(node.left, node.right, self.walk.stop_count)
                by_passage.append((tree, node, docs))
        self._read_passages(by_passage)
        if own:
            values = self.value([prefix for _, prefix in own])
            for (node, _), value in zip(own, values, strict=True):
                node.value = float(value)
        for tree, node, docs in by_passage:
            node.value = max(tree.passages[doc] for doc in docs)

    def _read_passages(self, named: Sequence[tuple[Tree, Node, list[int]]]) -> None:
        """Value the passages that were not read yet, from their beginnings: all in one call."""
        todo = {(id(t), doc): (t, doc) for t, _, docs in named for doc in docs
                if doc not in t.passages}  # fmt: skip
        if not todo:
            return
        texts = [tuple(self.index.text(doc)[: self.walk.verify_tokens]) for _, doc in todo.values()]
        asks = [Ask(t.prompt, (), text) for (t, _), text in zip(todo.values(), texts, strict=True)]
        reads = self._timed("model", self.reader.read, asks, keep=False)
        prefixes = [
            Prefix(
                t.query,
                text,
                float(t.prompt.logps[text[0]]) + float(read.own.sum()),
                read.hidden[-1],
            )
            for (t, _), text, read in zip(todo.values(), texts, reads, strict=True)
        ]
        for (tree, doc), text, value in zip(
            todo.values(), texts, self.value(prefixes), strict=True
        ):
            tree.passages[doc] = float(value)
            tree.tokens += len(text)
        self.counts["passages"] += len(todo)

    def _timed(self, what: str, call: Any, *args: Any, **kwargs: Any) -> Any:
        start = time.perf_counter()
        result = call(*args, **kwargs)
        self.seconds[what] += time.perf_counter() - start
        return result
