"""Adaptive-Note: one note grows by retrieval; a new one must be judged better than the best so far.

Wang et al., Retriever-and-Memory: Towards Adaptive Note-Enhanced Retrieval-Augmented Generation,
arXiv:2410.08821; its follow-up is DeepNote, EMNLP 2025 Findings. A step proposes two new questions
from the best note, searches with them and the question (500 characters, the proposal first),
refines the best note by what is found, and compares the two. Rejections add up (cumulative, not in
a row). The best note alone answers.

The published stopping rules: ``note`` ends at 1 rejection, and at R unique passages; ``deepnote``
at 2, and *above* R: with exactly R there its code reads a room of 0 as no limit, and searches once
more in full. ``never`` minds no rejection. A step whose search finds nothing, or whose note is
empty, is a rejection without a comparison. 2 + 3 steps calls of the model otherwise.

Ours: verdicts by log-probability, both orders, ``margin``, split queries, the writer of sentences
(``extractive``, adaptive_note_sentences.py) for models that cannot write or judge notes, and the
reader, which is that of all strategies: it is shown the note as its only passage (and the passages
found where there is no note).
"""

import math
from collections.abc import Sequence
from typing import Literal

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from stages.effects import LLM, BudgetSpent, Choice, Encode, Hint, Outcome, Question, Score, Steps
from stages.prompts import NO_YES, STOP, fit_passages
from stages.serve.asked import Library
from stages.serve.reading import Part, Reads, rank_together, read_last, searches, show
from stages.serve.strategies.adaptive_note_prompts import (
    compare_prompt,
    init_prompt,
    parse_verdict,
    propose_prompt,
    refine_prompt,
    split_questions,
)
from stages.serve.strategies.adaptive_note_sentences import (
    Note,
    Sentence,
    coverage,
    next_entities,
    note_of,
    note_text,
    overlap,
    sentences_of,
    weigh_words,
)
from stages.shell import NONE
from stages.types import Hit, Passage, Request

TRACED = True
FAILS = {"note": 1, "deepnote": 2, "never": math.inf}


class Params(Reads):
    """A step is a proposal, a search, a refined note and a comparison; the reader comes last."""

    strategy: Literal["adaptive_note"]
    passages: PositiveInt = 5  # k, of a search
    steps: NonNegativeInt = 3  # S; 0: the first note answers
    most_passages: PositiveInt = 15  # R, unique ones, of all searches
    stop: Literal["note", "deepnote", "never"] = "note"
    fails: PositiveInt | None = None  # rejections that end it; none: 1 of note, 2 of deepnote
    queries: Literal["joint", "split"] = "joint"  # a proposal's questions: one text, or RRF of each
    query_chars: PositiveInt = 500
    compare: Literal["choice", "text", "margin", "always"] = "choice"  # always: no reviewer
    both_orders: bool = False  # of choice and text: accepted if both orders of the notes agree
    verdicts: Literal["strict", "published"] = "strict"  # how a text is read
    margin: float = Field(0.05, ge=0, le=1)  # coverage that a better note has more, at the least
    writer: Literal["llm", "extractive"] = "llm"
    relevance: Literal["words", "encoder", "reranker"] = "words"  # of extractive; two by scorer
    note_sentences: PositiveInt = 12  # of an extractive note, at the most
    step_sentences: PositiveInt = 4  # that a step adds to it, at the most; ours
    note_tokens: PositiveInt = 96  # of a written note; the paper: 1,280
    proposal_tokens: PositiveInt = 48  # ours
    temperature: float = Field(0.1, ge=0)  # of notes, proposals and verdicts
    top_p: float = Field(0.9, gt=0, le=1)

    @model_validator(mode="after")
    def _has_scorer(self) -> "Params":
        if self.relevance != "words" and self.scorer == NONE:
            raise ValueError(f"relevance: {self.relevance} needs a scorer: name a finetune entry")
        return self


def strategy(question: Question, params: Params, library: Library) -> Steps:
    """The reader's answer from the best note. The memory: that note, then a line per step."""
    seen: dict[str, Passage] = {}
    runs: list[Sequence[Hit]] = []
    best: Note = ()
    asked: list[str] = []
    log: list[str] = []
    fails, stop_reason = 0, "fixed"
    most_fails = params.fails or FAILS[params.stop]
    try:
        refs = yield from find([question.text], runs, params, library)
        refs = refs[: params.most_passages]
        seen |= {p.docid: p for p in refs}
        if refs:
            best = yield from write(question, refs, best, "", seen, params, library)
        for _ in range(params.steps):
            room = params.most_passages - len(seen)
            if room < 0 or (room == 0 and params.stop != "deepnote"):
                stop_reason = "budget_docs"
                break
            yield Hint(note_text(best)[-params.query_chars :] or question.text)
            proposal = yield from propose(question, best, asked, params)
            if not proposal and params.writer == "extractive":
                stop_reason = "no_query"
                break
            asked.append(proposal)
            refs = yield from find(write_queries(proposal, question, params), runs, params, library)
            if 0 < room < params.passages:
                refs = [p for p in refs if p.docid not in seen][:room]
            new: Note = ()
            pool = seen | {p.docid: p for p in refs}
            if refs:
                new = yield from write(question, refs, best, proposal, pool, params, library)
            verdict: bool | None = False
            if new:
                verdict = yield from judge(question, best, new, asked, pool, params)
            seen = pool
            said = {True: "accepted", False: "rejected", None: "malformed"}[verdict]
            log.append(f"{said if new else 'empty'}: {' '.join(proposal.split())}")
            if verdict:
                best = new
            else:
                fails += 1
            if fails >= most_fails:
                stop_reason = "fails"
                break
    except BudgetSpent:
        pass  # answer from the best note there is
    evidence = [Passage("", "Notes", note_text(best))] if best else list(seen.values())
    answer, _ = yield from read_last(question, evidence, params, library)
    return Outcome(
        answer, "\n".join([note_text(best), *log]), list(seen), rank_together(runs, params.k),
        stop_reason,
    )  # fmt: skip


def find(
    queries: Sequence[str], runs: list[Sequence[Hit]], params: Params, library: Library
) -> Part[list[Passage]]:
    """What the queries find together; the documents of each join the runs."""
    found = yield [search for query in queries for search in searches(query, params)]
    runs.extend(found[1::2])
    return show(rank_together(found[0::2], params.passages), params, library)


def write_queries(proposal: str, question: Question, params: Params) -> list[str]:
    """What to search for: the proposal and then the question, or each of its questions alone."""
    if params.queries == "split" and proposal:
        return [text[: params.query_chars] for text in split_proposal(proposal)]
    text = f"{proposal}\n{question.text}" if proposal else question.text
    return [text[: params.query_chars]]  # a long proposal leaves no room for the question


def split_proposal(proposal: str) -> list[str]:
    """Its lines (an extractive one has a name in each), or the questions of its one line."""
    lines = proposal.split("\n")
    return lines if len(lines) > 1 else split_questions(proposal)


def propose(
    question: Question, best: Note, asked: Sequence[str], params: Params
) -> Part[str]:  # fmt: skip
    """What the note lacks, as a text to search for."""
    if params.writer == "extractive":
        return "\n".join(next_entities(best, question.text, asked))
    prompt = propose_prompt(question.text, note_text(best), asked)
    reply = yield ask(prompt, params.proposal_tokens, params)
    return reply.text.strip()


def write(
    question: Question, passages: Sequence[Passage], best: Note, proposal: str,
    pool: dict[str, Passage], params: Params, library: Library,
) -> Part[Note]:  # fmt: skip
    """The best note with what the passages add to it; the first one where there is none."""
    if params.writer == "extractive":
        return (yield from extend(question, passages, best, proposal, pool, params))

    def prompt(shown: Sequence[Passage]) -> str:
        if not best:
            return init_prompt(question.text, shown, params.order)
        return refine_prompt(question.text, shown, note_text(best), params.order)

    shown = fit_passages(passages, params.prompt_tokens, library.count_tokens, prompt)
    reply = yield ask(prompt(shown), params.note_tokens, params)
    return note_of(reply.text)


def extend(
    question: Question, passages: Sequence[Passage], best: Note, proposal: str,
    pool: dict[str, Passage], params: Params,
) -> Part[Note]:  # fmt: skip
    """The best note, and then the sentences most relevant to question and proposal, best last."""
    new = list(dict.fromkeys(s for s in sentences_of(passages) if s not in best))
    queries = [question.text, *proposal.split("\n")] if proposal else [question.text]
    texts = [s.whole for s in new]
    if not new:
        relevance: Sequence[float] = ()
    elif params.relevance == "words":
        idf = weigh_words(sentences_of(pool.values()))
        relevance = [sum(overlap(query, text, idf) for query in queries) for text in texts]
    elif params.relevance == "encoder":
        query_vecs, text_vecs = yield [Encode(queries, "query"), Encode(texts, "passage")]
        relevance = (text_vecs @ query_vecs.T).sum(axis=1).tolist()
    else:
        scores = yield Score([(query, text) for text in texts for query in queries])
        relevance = scores.reshape(len(texts), len(queries)).sum(axis=1).tolist()
    order = sorted((i for i, r in enumerate(relevance) if r > 0), key=lambda i: (-relevance[i], i))
    room = min(params.step_sentences, params.note_sentences - len(best))
    added: list[Sentence] = [new[i] for i in order[: max(0, room)]]
    return (*best, *reversed(added))  # the most relevant is the newest: it is asked about next


def judge(
    question: Question, best: Note, new: Note, asked: Sequence[str], pool: dict[str, Passage],
    params: Params,
) -> Part[bool | None]:  # fmt: skip
    """Whether the new note is clearly better; None where the model said neither."""
    if params.compare == "always":
        return True
    if params.compare == "margin":
        idf = weigh_words(sentences_of(pool.values()))
        old, now = (coverage(note, question.text, asked, idf) for note in (best, new))
        return now > old and now - old >= params.margin
    first, second = note_text(best), note_text(new)
    orders = [(first, second), (second, first)] if params.both_orders else [(first, second)]
    prompts = [compare_prompt(question.text, *notes, params.compare) for notes in orders]
    if params.compare == "choice":
        said: list[bool | None] = [v == 1 for v in (yield [Choice(p, NO_YES) for p in prompts])]
    else:
        replies = yield [ask(prompt, params.max_tokens, params) for prompt in prompts]
        said = [parse_verdict(reply.text, params.verdicts) for reply in replies]
    if None in said:
        return None
    return said == [True, False][: len(said)]


def ask(prompt: str, max_tokens: int, params: Params) -> LLM:
    """A call of the model for one line."""
    return LLM(Request(prompt, max_tokens, STOP, params.temperature, params.top_p))
