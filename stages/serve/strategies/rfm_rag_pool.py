"""What one question of RFM-RAG has on its way: its triples, its pool, its trace; and distilling."""

import weakref
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from stages.effects import LLM, Question, dumps
from stages.evidence import (
    Evidence,
    bound_items,
    distil,
    evict,
    merge,
    new_names,
    pool_facts,
    relevance,
    wanted_words,
)
from stages.gaps import Alike, Fact, Match, Rule, fold, gaps, match
from stages.serve.asked import Library
from stages.serve.reading import Part, show
from stages.serve.strategies import rfm_rag_prompts as prompts
from stages.types import Hit, Passage, Request

if TYPE_CHECKING:
    from stages.serve.strategies.rfm_rag import Params

Kept = list[tuple[str, tuple[Fact, ...], float]]  # of one passage: sentence, facts, relevance


class State:
    """What one question has: its triples, its pool, what left the pool, the rounds so far."""

    def __init__(self, question: Question, params: "Params") -> None:
        self.question, self.params = question, params
        self.alike = Alike(contained=params.contained)
        self.asked: list[Fact] = []
        self.rule: Rule = "value"
        self.unread = False  # no triples: the question as a whole is the one gap
        self.pool: list[Evidence] = []
        self.gone: list[tuple[Evidence, int]] = []  # with the round from which it was not there
        self.match = Match((), {})
        self.seen: dict[str, None] = {}
        self.queries: set[str] = set()
        self.rounds: list[dict[str, Any]] = []
        self.n_items = self.unparsed = 0

    def take(self, found: Sequence[Evidence], t: int) -> int:
        """Merge a round's evidence, match anew, evict; how many items were new."""
        if self.params.memory == "last":
            self.gone += [(e, t) for e in self.pool]
            self.pool = []
        self.pool, n_new = merge(self.pool, found)
        self._match()
        kept, out = evict(self.pool, bound_items(self.pool, self.match), cap=self.params.pool_cap)
        if out:
            self.gone += [(self.pool[i], t) for i in out]
            self.pool = kept
            self._match()
        return n_new

    def _match(self) -> None:
        self.match = match(self.asked, pool_facts(self.pool)[0], self.alike)

    @property
    def gaps(self) -> list[Fact]:
        """The open triples."""
        return gaps(self.asked, self.match) if self.match.used else self.asked

    @property
    def resolved(self) -> list[Fact]:
        """The facts that answer a triple, in hop order."""
        facts, _ = pool_facts(self.pool)
        return [facts[p] for p in self.match.used if p is not None]

    def next_queries(self, queries: Sequence[str]) -> list[str]:
        """Those not asked before, m at the most; without one the question with a name added.

        The value that was bound last; where the question could not be read, names that the
        evidence brought. ``gap: rewrite`` has no such names.
        """
        chosen = self._new(queries)
        if not chosen and self.params.gap == "triples":
            names = [self._newest_name()]
            if self.unread:
                names = new_names(self.pool, self.question.text)
            chosen = self._new([f"{self.question.text} {name}" for name in names if name])
        return chosen

    def _new(self, queries: Sequence[str]) -> list[str]:
        new = {fold(q): q for q in reversed(queries) if fold(q) not in self.queries}
        return list(reversed(new.values()))[: self.params.queries]

    def _newest_name(self) -> str:
        """The value whose item came last."""
        _, item_of = pool_facts(self.pool)
        values = [
            (self.pool[item_of[p]].eid, self.match.bound[slot])
            for triple, p in zip(self.asked, self.match.used, strict=False) if p is not None
            for slot in (triple.subj, triple.obj) if slot in self.match.bound
        ]  # fmt: skip
        return max(values, default=(0, ""))[1]

    def trace(self) -> str:
        """Everything that the rounds did, as JSON: items in the order they came."""
        items = [(e, None) for e in self.pool] + self.gone
        items.sort(key=lambda x: x[0].eid)
        return dumps({
            "asked": self.asked, "rule": self.rule, "contained": self.alike.contained,
            "unread": self.unread,
            "rounds": self.rounds, "unparsed": self.unparsed,
            "pool": [{**e._asdict(), "evicted": gone} for e, gone in items],
        })  # fmt: skip


# -- distilling -------------------------------------------------------------------------------

_FACTS: "weakref.WeakKeyDictionary[Library, dict[str, list[Fact]]]" = weakref.WeakKeyDictionary()


def facts_of(library: Library, docid: str) -> list[Fact]:
    """The facts extracted from a passage, in order."""
    if library not in _FACTS:
        rows: dict[str, list[Fact]] = {}
        columns = ("docid", "subj", "rel", "obj")
        for d, *fact in zip(*(library.triples[c].to_pylist() for c in columns), strict=True):
            rows.setdefault(d, []).append(Fact(*fact))
        _FACTS[library] = rows
    return _FACTS[library].get(docid, [])


def distil_passages(
    new: Sequence[tuple[str, int]], queries: Sequence[str], t: int, state: State, library: Library
) -> Part[list[Evidence]]:
    """A round's evidence: every item with its passage and the query that found that."""
    params = state.params
    passages = library.passages([docid for docid, _ in new])
    known = [facts_of(library, p.docid) if library.triples is not None else [] for p in passages]
    wanted = wanted_words(state.gaps)
    if params.distil == "raw":
        shown = show([Hit(p.docid, 0.0) for p in passages], params, library)
        kept = [
            [(p.text, tuple(f), 1 / (1 + n))]
            for n, (p, f) in enumerate(zip(shown, known, strict=True))
        ]
    elif params.distil == "offline":
        # No sentence has half of the words of a whole question: the best ones are taken.
        how = {"most": params.facts_per_passage, "least": 0 if state.unread else params.relevance}
        kept = [distil(p, f, wanted, **how) for p, f in zip(passages, known, strict=True)]
    else:
        kept = yield from ask_to_distil(passages, known, wanted, state)
    items = []
    for passage, (_, by), of_one in zip(passages, new, kept, strict=True):
        for text, facts, score in of_one:
            items.append(Evidence(
                text, passage.docid, facts, t, queries[by], round(score, 4),
                eid=state.n_items + len(items),
            ))  # fmt: skip
    state.n_items += len(items)
    return items


def ask_to_distil(
    passages: Sequence[Passage], known: Sequence[Sequence[Fact]], wanted: Sequence[set[str]],
    state: State,
) -> Part[list[Kept]]:  # fmt: skip
    """What the model copies out of each passage, if it is there; one call a passage.

    A reply without a grounded line is asked for once more, sampled; then the passage's most
    relevant sentence stands in. A reply "none" adds nothing.
    """
    params = state.params

    def ask(passage: Passage, temperature: float) -> LLM:
        prompt = prompts.distil_prompt(state.question.text, state.gaps, passage)
        return LLM(Request(prompt, params.line_tokens, ("\n\n",), temperature))

    replies: dict[int, prompts.Distilled] = {}
    todo = list(range(len(passages)))
    for temperature in (0.0, 0.7):
        said = (yield [ask(passages[i], temperature) for i in todo]) if todo else []
        for i, reply in zip(todo, said, strict=True):
            how = {"most": params.facts_per_passage}
            replies[i] = prompts.read_distilled(reply.text, passages[i], **how)
        todo = [i for i in todo if not replies[i].parsed]
    state.unparsed += len(todo)
    kept: list[Kept] = []
    for i, (passage, facts) in enumerate(zip(passages, known, strict=True)):
        if i in todo:
            kept.append(distil(passage, facts, wanted, most=1))
        else:
            kept.append([(text, own, relevance(text, wanted)) for text, own in replies[i].kept])
    return kept
