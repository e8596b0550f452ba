"""A chain of facts for a question whose supporting passages are known, by rule.

Where nobody wrote down which facts answer a question and the generator is too small to judge
(TRACE, Fang et al., EMNLP Findings 2024, lets one choose), supporting passages still say much.
Ours, marked ``rule``: a bridge chain has one fact of each supporting document. The first shares an
entity or a rare word with the question, each further one an entity with the chain (the same name,
or a name inside a longer one), the last holds the answer. A comparison has of each document the
fact that shares most with the question.

What words share is weighed by how rare they are among the passages, log((n + 1) / df): it needs no
list of stop words, and no language.
"""

import itertools
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import NamedTuple

from stages.answers import normalise
from stages.chains import triple_text
from stages.gaps import Alike
from stages.runs import parent

MOST_DOCUMENTS = 4  # that a chain goes through
ALIKE = Alike()  # equal, or of two words or more inside the other
RARE = 0.05  # share of the passages that a rare word may occur in


class Fact:
    """A triple of a passage; its text is what training and serving see."""

    def __init__(self, docid: str, subj: str, rel: str, obj: str) -> None:
        self.docid, self.subj, self.rel, self.obj = docid, subj, rel, obj
        self.text = triple_text(subj, rel, obj)

    @cached_property
    def entities(self) -> frozenset[str]:
        """Subject and object, normalised; what normalises to nothing is none."""
        return frozenset(filter(None, map(normalise, (self.subj, self.obj))))

    @cached_property
    def words(self) -> frozenset[str]:
        return frozenset(normalise(self.text).split())


class Linked(NamedTuple):
    """A chain, or why there is none."""

    chain: tuple[Fact, ...]
    reason: str = ""


class Rarity:
    """How much a word says: by the number of passages whose facts have it."""

    def __init__(self, facts_of: Mapping[str, Sequence[Fact]]) -> None:
        self.n = len(facts_of)
        self.df = Counter(
            word for facts in facts_of.values() for word in set().union(*(f.words for f in facts))
        )

    def weight(self, words: Iterable[str]) -> float:
        """The sum over the words, in an order of their own: equal sets, equal sums."""
        return sum(math.log((self.n + 1) / max(1, self.df[word])) for word in sorted(words))

    def is_rare(self, word: str) -> bool:
        return self.df[word] <= max(2, RARE * self.n)


class Asked:
    """A question, and what a fact shares with it."""

    def __init__(self, question: str, rarity: Rarity) -> None:
        self.text = f" {normalise(question)} "
        self.words, self.rarity = frozenset(self.text.split()), rarity

    def shares(self, fact: Fact) -> float:
        """The weight of the words that both have."""
        return self.rarity.weight(fact.words & self.words)

    def opens(self, fact: Fact) -> bool:
        """Whether a chain may begin with it: it shares an entity or a rare word."""
        if any(self.rarity.is_rare(word) for word in fact.words & self.words):
            return True
        return any(f" {entity} " in self.text for entity in fact.entities)


def link(
    question: str,
    answers: Sequence[str],
    docids: Sequence[str],
    facts_of: Mapping[str, Sequence[Fact]],
    rarity: Rarity,
    *,
    comparison: bool,
) -> Linked:
    """The chain through all documents of these passages that shares most with the question.

    Of equal chains the first counts, passages in the order given and facts in that of their text.
    """
    of_document: dict[str, list[Fact]] = {}
    for docid in docids:
        of_document.setdefault(parent(docid), []).extend(facts_of.get(docid, ()))
    facts = list(of_document.values())
    if not facts:
        return Linked((), "no_support")
    if len(facts) > MOST_DOCUMENTS:
        return Linked((), "too_many_documents")
    if not all(facts):
        return Linked((), "document_without_triples")
    asked = Asked(question, rarity)
    if comparison:
        return _compare(asked, facts)
    if not any(asked.opens(fact) for fact in itertools.chain(*facts)):
        return Linked((), "no_start")
    golds = [f" {normalise(answer)} " for answer in answers if normalise(answer)]
    if not any(_holds(fact, golds) for fact in itertools.chain(*facts)):
        return Linked((), "no_answer")
    best: tuple[Fact, ...] = ()
    most = -1.0
    for chain in _chains(facts, asked):
        if _holds(chain[-1], golds):
            shared = sum(asked.shares(fact) for fact in chain)
            if shared > most:
                best, most = chain, shared
    return Linked(best, "" if best else "no_link")


def _compare(asked: Asked, facts: list[list[Fact]]) -> Linked:
    """Of each document the fact that shares most with the question."""
    chain = [max(own, key=lambda fact: asked.shares(fact)) for own in facts]
    if not all(asked.opens(fact) for fact in chain):
        return Linked((), "no_start")
    if len({fact.text for fact in chain}) < len(chain):
        return Linked((), "same_fact")
    return Linked(tuple(chain))


def _chains(facts: list[list[Fact]], asked: Asked) -> Iterator[tuple[Fact, ...]]:
    """Every chain of linked facts through all documents, each once."""
    todo: list[tuple[tuple[Fact, ...], tuple[int, ...]]] = [
        ((fact,), (at,))
        for at, own in reversed(list(enumerate(facts)))
        for fact in reversed(own)
        if asked.opens(fact)
    ]
    while todo:
        chain, seen = todo.pop()
        if len(chain) == len(facts):
            yield chain
            continue
        todo += [
            ((*chain, fact), (*seen, at))
            for at, own in reversed(list(enumerate(facts)))
            if at not in seen
            for fact in reversed(own)
            if _linked(fact, chain) and fact.text not in {f.text for f in chain}
        ]


def _linked(fact: Fact, chain: Sequence[Fact]) -> bool:
    """Whether a subject or object of the fact is one of the chain."""
    known = {name for f in chain for name in (f.subj, f.obj) if normalise(name)}
    own = [name for name in (fact.subj, fact.obj) if normalise(name)]
    return any(ALIKE.names(name, other) for name in own for other in known)


def _holds(fact: Fact, golds: Sequence[str]) -> bool:
    """Whether an answer stands in the fact, as whole words."""
    text = f" {normalise(fact.text.replace(';', ' '))} "
    return any(gold in text for gold in golds)
