"""KiRAG: look for the next missing fact, add it to a chain, search with it, and rank by facts.

Fang, Meng & Macdonald, KiRAG: Knowledge-Driven Iterative Retriever for Enhancing
Retrieval-Augmented Generation, ACL 2025. A round searches with the question and the chain's last
item; of all facts of all passages found so far the aligner proposes those nearest to the question
and the chain; the constructor continues the chain with one of them. A fact that enters the chain
gets a bonus. Documents are ranked by their best fact. An empty continuation ends the loop.

Three constructors: ``llm`` writes freely after the chain (the paper's), ``llm_choice`` picks the
likeliest of the best facts (ours, for a small model), ``aligner`` takes the best fact that is not
in the chain (the paper's "no constructor"). ``retriever: false`` ranks the facts of the whole
corpus, ``aligner: false`` leaves them in the order of retrieval; an index of facts with sentences
or passages for triples is the ablation of the unit. The released code's second beam, with
documents in the place of triples, is left out.

One round, no bonus, and N above the number of facts: documents by their best fact. No facts:
documents as the question finds them.

Ours, where the paper has no rule: ties by docid descending, as everywhere; one bonus per fact and
question, or a chain that repeats itself would lift one document for ever; documents without a
fact in the pool follow behind, by their best retrieval score. ``memory`` is the trace, as JSON.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import Field, NonNegativeFloat, PositiveInt, model_validator

from stages.chains import best_match, chain_query
from stages.effects import (
    BudgetSpent,
    Effect,
    Encode,
    Hint,
    Outcome,
    Question,
    Search,
    Steps,
    dumps,
)
from stages.prompts import NO_YES
from stages.runs import collapse, parent
from stages.serve.asked import Library, Named
from stages.serve.reading import Part, Reads, read_last, show, stated_answer
from stages.serve.strategies.kirag_constructor import Item, construct
from stages.tools import Tools
from stages.types import Hit

TRACED = True


class Params(Reads):
    """A round is a search, a query's encoding and a call for the next item."""

    strategy: Literal["kirag"]
    facts: Named  # an index of kind facts, over the corpus
    scorer: Named  # the aligner: what made the vectors of the facts
    constructor: Literal["llm", "llm_choice", "aligner"] = "llm"
    rounds: PositiveInt = 5  # L
    found: PositiveInt = 10  # K0, passages of a search
    top: PositiveInt = 20  # N, facts that the aligner proposes in a round
    candidates: PositiveInt = 100  # facts that the constructor is shown, best of all rounds first
    choices: PositiveInt = 20  # facts that llm_choice chooses from
    bonus: NonNegativeFloat = 0.5  # of a fact that the chain uses, or that states the answer
    match: float = Field(0.6, ge=0, le=1)  # token F1 of a written item and the fact that it is
    item_tokens: PositiveInt = 64  # of an item
    query_tokens: PositiveInt = 256  # that the aligner reads of question and chain
    # Nats that an option of llm_choice gains with each of its tokens: a sum of log-probabilities
    # prefers short facts. At the mean loss of a token it is the rule "better than the mean
    # token" (Murray & Chiang, WMT 2018); 0: the sum. 1 is a guess, not tuned.
    length_bonus: NonNegativeFloat = 1.0
    retriever: bool = True  # false: the aligner looks at the facts of the whole corpus
    aligner: bool = True  # false: facts count by their passage's place

    @model_validator(mode="after")
    def _has_a_ranking(self) -> "Params":
        if not self.aligner and (not self.retriever or self.constructor == "aligner"):
            raise ValueError("aligner: false needs a retriever, and a constructor that reads")
        return self


class Pool:
    """P: the facts proposed so far, each with the best score that it had in any round."""

    def __init__(self) -> None:
        self.scores: dict[int, float] = {}
        self._rewarded: set[int] = set()

    def merge(self, rows: Iterable[int], scores: Iterable[float]) -> None:
        """Max-merge: a bonus survives later rounds, and no fact ever sinks."""
        for row, score in zip(rows, scores, strict=True):
            self.scores[row] = max(score, self.scores.get(row, -math.inf))

    def reward(self, row: int, bonus: float) -> float:
        """The bonus that this fact gets: the whole of it once, then none."""
        given = 0.0 if row in self._rewarded else bonus
        self._rewarded.add(row)
        self.scores[row] += given
        return given

    def ranked(self) -> list[int]:
        """Rows, best first; of equal ones the first row, that is the larger docid."""
        return sorted(self.scores, key=lambda row: (-self.scores[row], row))


class Retrieved(NamedTuple):
    """D: passages, and the documents of the run, by their best score in any round."""

    passages: dict[str, float]
    documents: dict[str, float]

    def merge(self, hits: Sequence[Hit], documents: Sequence[Hit]) -> None:
        for best, found in ((self.passages, hits), (self.documents, documents)):
            for docid, score in found:
                best[docid] = max(score, best.get(docid, -math.inf))


def strategy(question: Question, params: Params, library: Library) -> Steps:
    """The reader's answer from the passages of the best facts; documents by their best fact."""
    facts, pool, retrieved = library.facts, Pool(), Retrieved({}, {})
    chain: list[str] = []
    trace: list[dict[str, Any]] = []
    stop_reason = "fixed"
    try:
        for i in range(params.rounds):
            query = f"{question.text} {chain[-1]}" if chain else question.text
            rows, scores = yield from propose_facts(
                query, chain_query(question.text, chain), retrieved, params, facts
            )
            pool.merge(rows, scores)
            shown = pool.ranked()[: params.candidates]
            trace.append({
                "query": query, "item": "", "is_triple": False, "matched": None,
                "states_answer": None, "bonus": 0.0,
                "candidates": [[row, round(pool.scores[row], 6)] for row in shown],
            })  # fmt: skip
            if not shown:
                stop_reason = "no_query"  # ours: without facts there is nothing to go on with
                break
            if i + 1 < params.rounds:
                yield Hint(f"{question.text} {facts.texts[rows[0]]}")
            item = yield from construct(question.text, chain, shown, rows, params, library)
            if not item.text:
                stop_reason = "empty_gen"
                break
            chain.append(item.text)
            trace[-1] |= {"item": item.text, "is_triple": item.is_fact}
            trace[-1] |= reward(item, pool, facts.texts, params)
    except BudgetSpent:
        pass  # rank and read what there is
    passages, hits, n_by_facts = rank(pool, retrieved, facts, params)
    answer, read = yield from read_last(
        question, show(passages[: params.passages], params, library), params, library
    )
    without = sum(len(facts.of([docid])) == 0 for docid in retrieved.passages)
    memory = {
        "chain": chain, "rounds": trace, "passages_found": len(retrieved.passages),
        "passages_without_facts": without,
        "ranked_by_facts": n_by_facts,  # documents of the run; those behind are backfill
    }  # fmt: skip
    return Outcome(answer, dumps(memory), [p.docid for p in read], hits, stop_reason)


def propose_facts(
    query: str, aligned: str, retrieved: Retrieved, params: Params, facts: Any
) -> Part[tuple[list[int], list[float]]]:
    """Search; of the facts of everything found so far the N best: (rows, scores), best first."""
    effects: list[Effect] = []
    if params.retriever:
        effects += [Search(query, params.found), Search(query, params.k, unit="document")]
    if params.aligner:
        effects.append(Encode([aligned]))
    results = yield effects
    rows = None  # of the whole corpus
    if params.retriever:
        retrieved.merge(*results[:2])
        rows = facts.of(list(retrieved.passages))
    if params.aligner:
        rows, scores = facts.best(results[-1][0], params.top, rows)
        return rows.tolist(), scores.tolist()
    ranked = _best_first(retrieved.passages)
    rows = facts.of(ranked)[: params.top].tolist()
    places = {docid: n for n, docid in enumerate(ranked, 1)}
    return rows, [1 / places[docid] for docid in facts.docids(rows)]


def _best_first(scores: Mapping[str, float]) -> list[str]:
    return sorted(scores, key=lambda docid: (scores[docid], docid.encode()), reverse=True)


# -- bonus and ranking ------------------------------------------------------------------------


def reward(
    item: Item, pool: Pool, texts: Sequence[str], params: Params
) -> dict[str, int | float | None]:
    """Give the item's bonuses; what is told of it in the trace.

    A written triple is the fact of the pool most like it, if that is like enough. An item that
    states the answer (but yes or no) also rewards the best fact that holds it.
    """
    ranked = pool.ranked()
    matched, stating, bonus = item.row, None, 0.0
    if item.is_fact and matched is None:
        place, f1 = best_match(item.text, [texts[row] for row in ranked])
        matched = ranked[place] if f1 >= params.match else None
    if matched is not None:
        bonus += pool.reward(matched, params.bonus)
    answer = (stated_answer(item.text) or "").lower()
    if answer and f" {answer}" not in NO_YES:
        stating = next((row for row in ranked if answer in texts[row].lower()), None)
        if stating is not None:
            bonus += pool.reward(stating, params.bonus)
    return {"matched": matched, "states_answer": stating, "bonus": bonus}


def rank(
    pool: Pool, retrieved: Retrieved, facts: Any, params: Params
) -> tuple[list[Hit], list[Hit], int]:
    """(passages, documents, how many of these by facts), best first.

    Passages and documents count by their best fact of the pool. Behind them come those found
    without one, by their best retrieval score; their own scores lie below, and above that less 1.
    """
    rows = pool.ranked()
    owned: dict[str, float] = {}
    for docid, row in zip(facts.docids(rows), rows, strict=True):
        owned.setdefault(docid, pool.scores[row])
    by_facts = collapse([Hit(docid, score) for docid, score in owned.items()])[: params.k]
    documents = {hit.docid for hit in by_facts}
    best = dict(retrieved.documents)
    for docid, score in retrieved.passages.items():
        best[parent(docid)] = max(score, best.get(parent(docid), -math.inf))
    rest = [docid for docid in _best_first(best) if docid not in documents]
    low = by_facts[-1].score if by_facts else 0.0
    behind = [Hit(docid, low - n / (len(rest) + 1)) for n, docid in enumerate(rest, 1)]
    passages = [Hit(docid, owned[docid]) for docid in _best_first(owned)]
    passages += [
        Hit(docid, retrieved.passages[docid])
        for docid in _best_first(retrieved.passages)
        if docid not in owned
    ]
    return passages, [*by_facts, *behind][: params.k], len(by_facts)


def equip(tools: Tools, params: Params, scorer: Path | None) -> Tools:
    """The aligner reads more of question and chain than of a fact."""
    from stages.encoder import open_encoder

    encoder = open_encoder(scorer, max_tokens=params.query_tokens, threads=params.threads)
    return tools._replace(encoder=encoder)
