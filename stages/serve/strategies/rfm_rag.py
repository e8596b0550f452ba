"""RFM-RAG: fill a pool of evidence, ask for what the question's triples still lack, judge, repeat.

Li, Shi, Zhou, Wei, Yang, Jin & Yang, arXiv:2508.17862 (2025). Theirs: passages are distilled into
a pool that lasts over the rounds; new queries describe the gap between the question's relational
triples and the evidence; a trained R-Feedback model judges completeness and ends the loop; the
reader sees the evidence and not the passages. Of the rest only the abstract could be read: how
triples are matched (``stages.gaps``), the pool's rules (``stages.evidence``), the judge's
training (``finetune/judge``) and all limits are ours.

    judge         the pool is judged sufficient: score >= tau
    converged     for ``patience`` rounds in a row no item was new: the pool's fixpoint
    no_query      every query that names a gap was asked already
    fixed         after ``rounds`` rounds; budget_docs: after ``most_passages`` passages

It ends: a passage is distilled once, so a round that adds to the pool reads one more passage of a
finite corpus, and of other rounds there are at most ``patience`` in a row.

Distilling is a scored selection of sentences and facts extracted before (``offline``: no call in
the loop), or a call per passage (``llm``); ``raw`` keeps the passages. The question's triples
come from its text by rules (``symbolic``) or from the model (``llm``). Switches for the paper's
claims: ``memory: last`` (no pool), ``gap: rewrite`` (no triples in queries), ``judge``,
``distil: raw``. One round is one-shot RAG over distilled evidence. ``memory`` of the outcome is
the trace, as JSON: from it ``pairs`` makes the judge's training pools.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, NonNegativeFloat, PositiveInt, model_validator

from stages.effects import (
    LLM,
    BudgetSpent,
    Choice,
    Hint,
    Outcome,
    Question,
    Score,
    Steps,
)
from stages.evidence import bound_items, judge_text, pool_facts, reading_order
from stages.gaps import Fact, alternatives, copy_answer, fold, gap_queries, gap_query
from stages.prompts import NO_YES, STOP
from stages.serve.asked import Library
from stages.serve.reading import Part, Reads, rank_together, read_last, searches
from stages.serve.strategies import rfm_rag_prompts as prompts
from stages.serve.strategies.rfm_rag_pool import State, distil_passages
from stages.serve.strategies.rfm_rag_questions import Reading, read_question
from stages.shell import NONE
from stages.tools import Tools
from stages.types import Hit, Passage, Request

TRACED = True
AUTO = {"cross_encoder": 0.5, "llm": 0.5, "coverage": 1.0, "always_continue": 1.0}  # tau


class Params(Reads):
    """A round is the searches of its queries, distilling, and a judgement."""

    strategy: Literal["rfm_rag"]
    triples: str  # of the corpus; none: only where distil is not offline
    model: str  # the reader; none where the answer is copied
    passages: PositiveInt = 5  # k, of a search
    new_passages: PositiveInt = 5  # that a round reads, of all its searches together
    queries: PositiveInt = 2  # m, of a round
    rounds: PositiveInt = 5  # T
    most_passages: PositiveInt = 25  # R, read in all
    patience: PositiveInt = 1  # rounds in a row without new evidence
    pool_cap: PositiveInt = 30  # items
    facts_per_passage: PositiveInt = 3  # items of one passage
    relevance: float = Field(0.5, ge=0, le=1)  # of a sentence to an open triple, at the least
    contained: bool = True  # a name of two words or more is the longer one that it stands in
    mode: Literal["symbolic", "llm"] = "symbolic"  # who reads the question and names the gaps
    distil: Literal["offline", "llm", "raw"] = "offline"
    memory: Literal["pool", "last"] = "pool"  # last: what the last round found, alone
    gap: Literal["triples", "rewrite"] = "triples"  # what the next query is made from
    judge: Literal["cross_encoder", "llm", "coverage", "always_continue"] = "cross_encoder"
    # Score from which a pool is sufficient; auto: the trained judge's own, else 0.5, of coverage 1.
    tau: Literal["auto"] | NonNegativeFloat = "auto"
    reader: Literal["model", "copy"] = "model"  # copy: the value of the answer's variable
    line_tokens: PositiveInt = 64  # of a reply: triples, a query, evidence

    @model_validator(mode="after")
    def _has_what_it_needs(self) -> "Params":
        calls = {"reader": self.reader == "model", "mode": self.mode == "llm",
                 "gap": self.gap == "rewrite", "judge": self.judge == "llm",
                 "distil": self.distil != "offline"}  # fmt: skip
        if self.model == NONE and any(calls.values()):
            keys = ", ".join(f"{k}: {getattr(self, k)}" for k, on in calls.items() if on)
            raise ValueError(f"{keys} needs a model: name one in 'model'")
        if self.triples == NONE and self.distil == "offline":
            raise ValueError("distil: offline reads an entry of triples: name it in 'triples'")
        if self.scorer == NONE and self.judge == "cross_encoder":
            raise ValueError(
                "judge: cross_encoder needs a 'scorer' (a finetune entry, recipe judge)"
            )
        return self


class Thresholded:
    """A judge whose scores are moved so that its own threshold lies at 0.5."""

    def __init__(self, judge: Any, tau: float) -> None:
        self._judge, self._tau = judge, tau
        self.fingerprint = f"{judge.fingerprint} tau={tau!r}"

    def score(self, pairs: Sequence[tuple[str, str]]) -> Any:
        """(n,) float32: 0.5 + (p - tau) / 2, so not below 0.5 where p is not below tau."""
        p = self._judge.score(pairs).astype("float64")
        return (0.5 + (p - self._tau) / 2).astype("float32")


def equip(tools: Tools, params: Params, scorer: Path | None) -> Tools:
    """``tau: auto`` is the threshold that the judge's training chose."""
    if scorer is None or params.judge != "cross_encoder" or params.tau != "auto":
        return tools
    from stages.judge import read_threshold

    return tools._replace(reranker=Thresholded(tools.reranker, read_threshold(scorer)))


def strategy(question: Question, params: Params, library: Library) -> Steps:
    """The answer from the pool that the rounds filled."""
    state = State(question, params)
    runs: list[Sequence[Hit]] = []
    queries, stalled, stop_reason = [question.text], 0, "fixed"
    try:
        yield Hint(question.text)
        (state.asked, state.rule), state.unread = yield from read_triples(question, params)
        for t in range(params.rounds):
            state.queries |= {fold(q) for q in queries}
            found = yield [search for query in queries for search in searches(query, params)]
            runs += found[1::2]
            new = choose_new(found[0::2], state.seen, params)
            state.seen |= dict.fromkeys(d for d, _ in new)
            n_new = state.take((yield from distil_passages(new, queries, t, state, library)), t)
            guess = state.next_queries(template_queries(state))
            if guess and t + 1 < params.rounds:
                yield Hint(guess[0])
            state.rounds.append({
                "queries": queries, "new": [d for d, _ in new], "added": n_new,
                "kappa": round(state.match.kappa, 4), "score": None,
            })  # fmt: skip
            score = yield from judge(state, t + 1)
            state.rounds[-1]["score"] = round(score, 4)
            if params.judge != "always_continue" and score >= threshold(params):
                stop_reason = "judge"
                break
            stalled = 0 if n_new else stalled + 1
            if stalled >= params.patience:
                stop_reason = "converged"
                break
            if len(state.seen) >= params.most_passages:
                stop_reason = "budget_docs"
                break
            if t + 1 < params.rounds and not (queries := (yield from ask_next(state))):
                stop_reason = "no_query"
                break
    except BudgetSpent:
        pass  # read what there is; the engine names the limit
    answer, shown = yield from answer_from(state, library)
    return Outcome(
        answer, state.trace(), list(dict.fromkeys(p.docid for p in shown)),
        rank_together(runs, params.k), stop_reason,
    )  # fmt: skip


def threshold(params: Params) -> float:
    """The score from which a pool is sufficient."""
    return AUTO[params.judge] if params.tau == "auto" else params.tau


def read_triples(question: Question, params: Params) -> Part[tuple[Reading, bool]]:
    """The question's triples in hop order, by rules or by the model.

    Where neither finds one, the question is its own single gap; then the second value is true.
    """
    if params.mode == "symbolic":
        reading = read_question(question.text)
    else:
        prompt = prompts.triples_prompt(question.text)
        reply = yield LLM(Request(prompt, params.line_tokens, STOP))
        reading = Reading(prompts.read_question_triples(reply.text))
    unread = not reading.triples
    return (Reading(prompts.whole_question(question.text)) if unread else reading), unread


def choose_new(
    found: Sequence[Sequence[Hit]], seen: Mapping[str, None], params: Params
) -> list[tuple[str, int]]:
    """(passage not read before, which query found it first), best first by reciprocal rank."""
    ranked = rank_together(found, params.passages * len(found))
    new = [hit.docid for hit in ranked if hit.docid not in seen]
    room = min(params.new_passages, params.most_passages - len(seen))
    by = {h.docid: i for i, hits in reversed(list(enumerate(found))) for h in hits}
    return [(docid, by[docid]) for docid in new[:room]]


def judge(state: State, n_rounds: int) -> Part[float]:
    """How complete the pool is, from 0 to 1."""
    question, how = state.question.text, state.params.judge
    if how == "cross_encoder":
        text = judge_text(state.pool, state.match, n_rounds, unread=state.unread)
        scores = yield Score([(question, text)])
        return float(scores[0])
    if how == "llm":
        prompt = prompts.sufficient_prompt(question, [e.text for e in state.pool])
        return float((yield Choice(prompt, NO_YES)))
    return state.match.kappa if how == "coverage" else 0.0


def template_queries(state: State) -> list[str]:
    """A query per gap that has a known name, and for other values of that name."""
    if state.params.gap == "rewrite" or state.unread:
        return []
    facts, _ = pool_facts(state.pool)
    values = alternatives(state.asked, facts, state.match, state.alike)
    return gap_queries(state.asked, state.match, values)


def named_gaps(state: State) -> list[Fact]:
    """The open triples with a known name; those that a query can ask for."""
    return [g for g in state.gaps if gap_query(g)]


def ask_next(state: State) -> Part[list[str]]:
    """The next round's queries; none where all of them were asked."""
    params, text = state.params, state.question.text
    queries = template_queries(state)
    if params.gap == "rewrite":
        prompt = prompts.rewrite_prompt(text, [e.text for e in state.pool])
        reply = yield LLM(Request(prompt, params.line_tokens, STOP))
        queries = [prompts.read_query(reply.text)]
    elif params.mode == "llm" and (todo := named_gaps(state)):
        asked = [prompts.gap_prompt(text, state.resolved, g) for g in todo[: params.queries]]
        replies = yield [LLM(Request(p, params.line_tokens, STOP)) for p in asked]
        said = [prompts.read_query(reply.text) for reply in replies]
        own = [gap_query(g) for g in todo]  # in the place of one that is no query, or was asked
        others = [q for q in queries if q not in own]
        said = [
            a if a and fold(a) not in state.queries else b for a, b in zip(said, own, strict=False)
        ]
        queries = said + own[len(said) :] + others
    return state.next_queries([q for q in queries if q])


def answer_from(state: State, library: Library) -> Part[tuple[str, list[Passage]]]:
    """The reader's answer from the pool alone, or the value that answers, and what was shown."""
    order = reading_order(state.pool, bound_items(state.pool, state.match))
    items = [state.pool[i] for i in order]
    titles = {p.docid: p.title for p in library.passages([e.docid for e in items])}
    shown = [Passage(e.docid, titles[e.docid], e.text) for e in items]
    if state.params.reader == "copy":
        return copy_answer(state.asked, state.rule, state.match), shown
    return (yield from read_last(state.question, shown, state.params, library))
