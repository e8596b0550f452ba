"""Retrieval-augmented generation: retrieve passages once, show them to the reader, answer.

Lewis et al., Retrieval-Augmented Generation for Knowledge-Intensive NLP Tasks, NeurIPS 2020,
with frozen parts: passages stand in the prompt. Two-shot plain prompt (``stages.prompts``),
greedy, one line. A question with options is answered by the likeliest of them. With
``passages: 0`` nothing is retrieved: the closed-book reader, whose run is empty.

The second search ranks documents for the run, deeper than what the reader is shown.
"""

from typing import Literal

from pydantic import NonNegativeInt, PositiveInt

from stages.effects import LLM, Choice, Outcome, Question, Search, Steps
from stages.loop import Budget
from stages.prompts import STOP, Order, cut_passages, rag_prompt
from stages.serve.asked import Library, Named, Served
from stages.types import Hit, Passage, Request

TRACED = True


class Params(Served):
    """One search, one call of the reader."""

    strategy: Literal["rag"]
    triples: Literal["none"]
    model: Named
    passages: NonNegativeInt = 3  # shown to the reader, best first; 0: closed book
    passage_tokens: PositiveInt = 80  # of each, at the most
    order: Order = "best_last"  # of the passages in the prompt
    max_tokens: PositiveInt = 16  # of the answer
    threads: PositiveInt = 1  # of the local generator
    seed: int = 13  # of sampled texts; a greedy answer does not depend on it
    budget: Budget = Budget()  # limits of one question


def strategy(question: Question, params: Params, library: Library) -> Steps:
    """The reader's answer from the best passages, and the question's documents."""
    shown: list[Passage] = []
    run: list[Hit] = []
    if params.passages:
        hits, run = yield [
            Search(question.text, params.passages),
            Search(question.text, params.k, unit="document"),
        ]
        found = library.passages([hit.docid for hit in hits])
        shown = cut_passages(found, params.passage_tokens, library.count_tokens)
    prompt = rag_prompt(question.text, shown, params.order)
    if question.options:
        chosen = yield Choice(prompt, [f" {option}" for option in question.options])
        answer = question.options[chosen]
    else:
        reply = yield LLM(Request(prompt, params.max_tokens, STOP))
        answer = reply.text.strip()
    return Outcome(answer, docids=[p.docid for p in shown], hits=run)
