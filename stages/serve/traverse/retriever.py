"""CT-MCTS as a ``Retriever``: a query's passages are what its tree found."""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from stages.digest import digest
from stages.effects import Cost, Walked, read_result, write_result
from stages.effects import Search as Asked
from stages.errors import QuarryError
from stages.lm import LocalGenerator
from stages.prompts import cut_passages
from stages.records import RecordStore
from stages.serve.traverse import seal
from stages.serve.traverse.search import Likelihood, Prefix, Search
from stages.serve.traverse.tree import Tree, rank
from stages.serve.traverse.walk import Walk
from stages.tools import Tools
from stages.types import Hit, Passage, Query
from stages.value import ValueHead
from stages.walks import walk_prompt

log = logging.getLogger(__name__)

VERSION = "3"  # of what a search does; part of every key of its results


class HeadValue:
    """``Value`` by a trained head."""

    def __init__(self, head: ValueHead) -> None:
        self.fingerprint, self._head = head.fingerprint, head

    def __call__(self, prefixes: Sequence[Prefix]) -> np.ndarray:
        return self._head.predict(np.stack([p.hidden for p in prefixes]))


class CorpusWalker:
    """A ``Retriever``. All queries of a call grow their trees together; a query walks once.

    What a walk found, and what it cost, is kept in the store of ``records`` as soon as its tree is
    done: a killed process loses the trees that were growing (``Walk.trees`` at the most). A hit's
    score is 1 / its place: values differ in their last digits from batch to batch, places do not.
    """

    def __init__(
        self, search: Search, generator: Any, fingerprint: str,
        records: Callable[[], RecordStore] | None = None,
    ) -> None:  # fmt: skip
        self.fingerprint = fingerprint
        self.engine = search
        self._count = generator.count_tokens
        self._records = records
        self._found: dict[str, Walked] = {}

    def search(self, queries: Sequence[Query], k: int) -> list[Walked]:
        """Up to k passages per query, best first; few are found, however large k is.

        Raises:
            QuarryError: a query is several texts.
        """
        if several := next((q for q in queries if not isinstance(q, str)), None):
            raise QuarryError(
                f"a walk through the corpus is asked one text at a time, not {several!r:.80}."
            )
        if new := [q for q in dict.fromkeys(queries) if q not in self._found]:
            if self._records is None:
                self._walk(new, None)
            else:
                with self._records() as store:
                    self._walk(new, store)
        found = [self._found[q] for q in queries]
        return [Walked(hits[:k], hits.cost) for hits in found]

    def _walk(self, queries: Sequence[str], store: RecordStore | None) -> None:
        asked = {digest("walk", self.fingerprint, q): Asked(q, 1) for q in queries}
        if store is not None:
            for key, record in store.get_many(list(asked)).items():
                effect = asked.pop(key)
                self._found[effect.query] = read_result(effect, record.decode())
        keys = list(asked)
        for i, tree in self.engine.grow([self._cut(asked[key].query) for key in keys]):
            effect, found = asked[keys[i]], self._hits(tree)
            self._found[effect.query] = found
            if store is not None:
                store.put_many({keys[i]: write_result(effect, found).encode()})
        log.info("%d walks, %d of them reused; so far %s", len(queries),
                 len(queries) - len(keys), self.engine.counts)  # fmt: skip

    def _cut(self, query: str) -> str:
        whole = [Passage("", "", query)]
        return cut_passages(whole, self.engine.walk.query_tokens, self._count)[0].text

    def _hits(self, tree: Tree) -> Walked:
        index, walk = self.engine.index, self.engine.walk
        ranked = seal.rank(tree, index) if walk.doc_score == "seal" else []
        if not ranked:  # or no prefix has a weight
            ranked = rank(tree, lambda n: index.docs(n.left, n.right, walk.max_occ), walk.max_occ)
        hits = (Hit(index.docids[doc], 1 / place) for place, (doc, _) in enumerate(ranked, 1))
        return Walked(hits, Cost(tree.tokens, walk.simulations - tree.simulations, tree.cut))


def walking(
    tools: Tools, walk: Walk, scorer: Path | None, *, seed: int,
    records: Callable[[], RecordStore] | None = None,
) -> Tools:  # fmt: skip
    """The tools with the retriever (an index of kind suffixes) walked by the generator.

    Raises:
        QuarryError: the index is of another kind or of another model's tokens, the generator is a
            server, the head was trained on another model, or no walk could take a step.
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
    least = generator.count_tokens([walk_prompt("")])[0] + walk.query_tokens + walk.expansion_tokens
    if walk.max_tokens < least:
        raise QuarryError(
            f"walk.max_tokens is {walk.max_tokens}; a prompt and one expansion may take {least}. "
            f"Allow as many, or take smaller query_tokens, width, granularity or verify_tokens."
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
    search = Search(index, reader, value, walk, seed=seed)
    return tools._replace(
        retriever=CorpusWalker(search, generator, made, records), search_tokens=walk.max_tokens
    )
