"""Retrieval-augmented generation: retrieve passages once, show them to the reader, answer.

Lewis et al., Retrieval-Augmented Generation for Knowledge-Intensive NLP Tasks, NeurIPS 2020,
with frozen parts: passages stand in the prompt. Two-shot plain prompt (``stages.prompts``),
greedy, one line. A question with options is answered by the likeliest of them. With
``passages: 0`` nothing is retrieved: the closed-book reader, whose run is empty.

The second search ranks documents for the run, deeper than what the reader is shown.
"""

from typing import Literal

from pydantic import NonNegativeInt

from stages.effects import Outcome, Question, Steps
from stages.serve.asked import Library
from stages.serve.reading import Reads, read_last, searches, show
from stages.types import Hit, Passage

TRACED = True


class Params(Reads):
    """One search, one call of the reader."""

    strategy: Literal["rag"]
    passages: NonNegativeInt = 3  # shown to the reader, best first; 0: closed book


def strategy(question: Question, params: Params, library: Library) -> Steps:
    """The reader's answer from the best passages, and the question's documents."""
    passages: list[Passage] = []
    run: list[Hit] = []
    if params.passages:
        hits, run = yield searches(question.text, params)
        passages = show(hits, params, library)
    answer, shown = yield from read_last(question, passages, params, library)
    return Outcome(answer, docids=[p.docid for p in shown], hits=run)
