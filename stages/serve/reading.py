"""What strategies with a reader share: their values, a round's searches, what is shown, the answer.

One reader answers for all of them, so that what differs between two strategies is what they found.
"""

import re
from collections.abc import Generator, Sequence
from typing import Any, Literal, TypeVar

from pydantic import PositiveInt

from stages.effects import LLM, BudgetSpent, Choice, Effect, Question, Search
from stages.loop import Budget
from stages.prompts import STOP, Order, cut_passages, fit_passages, rag_prompt
from stages.serve.asked import Library, Named, Served
from stages.text import split_sentences
from stages.types import Hit, Passage, Query, Request, Span

T = TypeVar("T")
Part = Generator[Effect | list[Effect], Any, T]  # of a strategy, for ``yield from``
RRF_K = 60.0  # as in fuse


class Reads(Served):
    """The keys of a strategy with a reader."""

    triples: Literal["none"]
    model: Named
    passages: PositiveInt = 3  # of a search, best first
    passage_tokens: PositiveInt = 80  # of each, at the most
    prompt_tokens: PositiveInt = 1536  # of a prompt; beyond, its last passages are left out
    order: Order = "best_last"  # of the passages in a prompt
    max_tokens: PositiveInt = 16  # of the answer
    threads: PositiveInt = 1  # of the local generator
    seed: int = 13  # of sampled texts; a greedy text does not depend on it
    budget: Budget = Budget()  # limits of one question


def searches(query: Query, params: Reads) -> list[Search]:
    """The searches of a round: passages to show; documents for the run, which goes deeper."""
    return [Search(query, params.passages), Search(query, params.k, unit="document")]


def show(hits: Sequence[Hit], params: Reads, library: Library) -> list[Passage]:
    """The passages found, each cut to its tokens."""
    found = library.passages([hit.docid for hit in hits])
    return cut_passages(found, params.passage_tokens, library.count_tokens)


def read(
    question: Question, passages: Sequence[Passage], params: Reads, library: Library
) -> Part[tuple[str, list[Passage]]]:
    """The reader's answer, and the passages it was shown; of several options the likeliest.

    ``passages`` are those that matter most first: what is too much for the prompt is left out at
    the end.
    """

    def prompt(shown: Sequence[Passage]) -> str:
        return rag_prompt(question.text, shown, params.order)

    shown = fit_passages(passages, params.prompt_tokens, library.count_tokens, prompt)
    return (yield from say(question, prompt(shown), params)), shown


def say(question: Question, prompt: str, params: Reads) -> Part[str]:
    """The line that follows the prompt, or the likeliest option."""
    if question.options:
        chosen = yield Choice(prompt, [f" {option}" for option in question.options])
        return question.options[chosen]
    reply = yield LLM(Request(prompt, params.max_tokens, STOP))
    return reply.text.strip()


def read_last(
    question: Question, passages: Sequence[Passage], params: Reads, library: Library
) -> Part[tuple[str, list[Passage]]]:
    """What ``read`` gives; nothing where that is beyond the budget: what was found stays found."""
    try:
        return (yield from read(question, passages, params, library))
    except BudgetSpent:
        return "", []


def rank_together(runs: Sequence[Sequence[Hit]], k: int) -> Sequence[Hit]:
    """The k best of several rankings by Σ 1 / (60 + rank); of one ranking, its own first k.

    Ties by docid descending. Cormack, Clarke & Büttcher, SIGIR 2009.
    """
    if len(runs) == 1:
        return runs[0][:k]
    scores: dict[str, float] = {}
    for run in runs:
        for rank, hit in enumerate(run, start=1):
            scores[hit.docid] = scores.get(hit.docid, 0.0) + 1 / (RRF_K + rank)
    ranked = sorted(scores.items(), key=lambda x: (x[1], x[0].encode()), reverse=True)
    return [Hit(docid, score) for docid, score in ranked[:k]]


# -- reasoned answers -------------------------------------------------------------------------

_STATED = re.compile(r"\banswer is:?\s+(.+?)[.\s]*$", re.IGNORECASE)


def first_sentence(text: str) -> Span:
    """Where the first sentence of a generated text is; nothing but blanks has an empty one."""
    return next(iter(split_sentences(text)), (0, 0))


def stated_answer(sentence: str) -> str | None:
    """What a sentence says that the answer is. For newly generated text: evidence may quote it."""
    found = _STATED.search(sentence)
    return found[1] if found else None
