"""ITER-RETGEN: search with the question and the last answer, answer again, T times.

Shao et al., Enhancing Retrieval-Augmented Large Language Models with Iterative Retrieval-Generation
Synergy, Findings of EMNLP 2023. y_t = LM(q, R(q + " " + y_{t-1})): a whole answer says more about
what is needed than the question does. The passages of a round replace those before. T = 1 is RAG.

The paper's model reasons before it answers; ours answers in a line, as the reader of all
strategies does.
"""

from collections.abc import Sequence
from typing import Literal

from pydantic import PositiveInt

from stages.effects import BudgetSpent, Hint, Outcome, Question, Steps
from stages.serve.asked import Library
from stages.serve.reading import Reads, read, searches, show
from stages.types import Hit, Passage

TRACED = True


class Params(Reads):
    """A round is a search and a call of the reader."""

    strategy: Literal["iter_retgen"]
    passages: PositiveInt = 5  # of a round
    rounds: PositiveInt = 3  # T; TeleRAG's number; the paper goes up to 7 and gains most by the 2nd


def strategy(question: Question, params: Params, library: Library) -> Steps:
    """The answer of the last round, and that round's documents."""
    query, drafts = question.text, []
    shown: list[Passage] = []
    run: Sequence[Hit] = ()
    try:
        for t in range(params.rounds):
            hits, run = yield searches(query, params)
            if t + 1 < params.rounds:
                yield Hint(query)
            passages = show(hits, params, library)
            draft, shown = yield from read(question, passages, params, library)
            drafts.append(draft)
            query = f"{question.text} {draft}".rstrip()
    except BudgetSpent:
        pass  # the last answer stands
    answer = drafts[-1] if drafts else ""
    return Outcome(answer, "\n".join(drafts), [p.docid for p in shown], run)
