"""CT-MCTS as a ``Retriever``: a query's passages are what its tree found."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from stages.digest import digest
from stages.errors import QuarryError
from stages.lm import LocalGenerator
from stages.prompts import cut_passages
from stages.serve.traverse.search import Likelihood, Prefix, Search
from stages.serve.traverse.tree import Tree, rank
from stages.serve.traverse.walk import Walk
from stages.tools import Tools
from stages.types import Hits, Passage, Query
from stages.value import ValueHead

VERSION = "1"  # of what a search does; part of every key of its results


class HeadValue:
    """``Value`` by a trained head."""

    def __init__(self, head: ValueHead) -> None:
        self.fingerprint, self._head = head.fingerprint, head

    def __call__(self, prefixes: Sequence[Prefix]) -> np.ndarray:
        return self._head.predict(np.stack([p.hidden for p in prefixes]))


class CorpusWalker:
    """A ``Retriever``. All queries of a call grow their trees together; a query walks once.

    A hit's score is 1 / its place: values differ in their last digits from batch to batch, places
    do not.
    """

    def __init__(self, search: Search, generator: Any, fingerprint: str) -> None:
        self.fingerprint = fingerprint
        self.engine = search
        self._count = generator.count_tokens
        self._found: dict[str, Hits] = {}

    def search(self, queries: Sequence[Query], k: int) -> list[Hits]:
        """Up to k passages per query, best first; few are found, however large k is.

        Raises:
            QuarryError: a query is several texts.
        """
        if several := next((q for q in queries if not isinstance(q, str)), None):
            raise QuarryError(
                f"a walk through the corpus is asked one text at a time, not {several!r:.80}."
            )
        new = [q for q in dict.fromkeys(queries) if q not in self._found]
        for query, tree in zip(new, self.engine.run([self._cut(q) for q in new]), strict=True):
            self._found[query] = self._hits(tree)
        return [self._found[q][:k] for q in queries]

    def _cut(self, query: str) -> str:
        whole = [Passage("", "", query)]
        return cut_passages(whole, self.engine.walk.query_tokens, self._count)[0].text

    def _hits(self, tree: Tree) -> Hits:
        index, most = self.engine.index, self.engine.walk.max_occ
        ranked = rank(tree, lambda node: index.docs(node.left, node.right, most), most)
        docids = np.array([index.docids[doc] for doc, _ in ranked], dtype=object)
        return Hits(docids, 1 / np.arange(1, len(ranked) + 1))


def walking(tools: Tools, walk: Walk, scorer: Path | None, *, seed: int) -> Tools:
    """The tools with the retriever (an index of kind suffixes) walked by the generator.

    Raises:
        QuarryError: the index is of another kind or of another model's tokens, the generator is a
            server, or the head was trained on another model.
    """
    index, generator = tools.retriever, tools.generator
    if not hasattr(index, "roots"):
        raise QuarryError(
            "freeson walks an index of kind suffixes; the entry's index is of another kind. Add "
            "one to params.yaml under index, with the entry's model as its model, and name it."
        )
    if not isinstance(generator, LocalGenerator):
        raise QuarryError(
            "freeson reads log-probabilities and hidden states of thousands of prefixes, which an "
            "openai server does not give. Name a generator on this machine."
        )
    reader = generator.reads_prefixes()
    if reader.tokenizer != index.tokenizer:
        raise QuarryError(
            f"index '{index.name}' holds tokens of another generator than the entry's model. Name "
            f"the index that was built for it, or rebuild with dvc repro index@{index.name}."
        )
    value: Any = Likelihood()
    if scorer is not None:
        head = ValueHead(scorer)
        if head.generator != generator.fingerprint:
            raise QuarryError(
                f"{scorer.name}: this value head reads the hidden states of another generator than "
                f"the entry's model. Name that one, or train a head on this one."
            )
        value = HeadValue(head)
    made = digest(
        "walk", VERSION, index.fingerprint, generator.fingerprint, value.fingerprint, str(seed),
        walk.model_dump_json(exclude={"trees"}),
    )  # fmt: skip
    return tools._replace(
        retriever=CorpusWalker(Search(index, reader, value, walk, seed=seed), generator, made)
    )
