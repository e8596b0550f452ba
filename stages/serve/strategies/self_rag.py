"""Self-RAG's first decision: does this question need retrieval at all?

Asai et al., Self-RAG: Learning to Retrieve, Generate, and Critique through Self-Reflection, ICLR
2024. There a trained model emits a token for it, and retrieves where p(yes) / (p(yes) + p(no)) is
above delta; here an untrained one has a two-shot prompt and the choice " yes" or " no", by the
same rule. Critique tokens and the beam over segments need the trained model and are not here.
delta = 0 always retrieves and is RAG; delta = 1 never does and is the closed-book reader.

The query is the question, so that a prefetch during the decision misses nothing.
"""

from typing import Literal

from pydantic import Field

from stages.effects import Choice, Hint, Outcome, Question, Steps
from stages.prompts import NO_YES, look_up_prompt
from stages.serve.asked import Library
from stages.serve.reading import Reads, read_last, searches, show
from stages.types import Hit, Passage

TRACED = True


class Params(Reads):
    """One choice, a search or none, one call of the reader."""

    strategy: Literal["self_rag"]
    delta: float = Field(0.2, ge=0, le=1)  # retrieve above it; at 0 and 1 the model is not asked


def strategy(question: Question, params: Params, library: Library) -> Steps:
    """The reader's answer, with passages or without; without, the run is empty."""
    passages: list[Passage] = []
    run: list[Hit] = []
    wanted = params.delta == 0
    if 0 < params.delta < 1:
        yield Hint(question.text)
        weights = (params.delta, 1 - params.delta)
        wanted = (yield Choice(look_up_prompt(question.text), NO_YES, weights)) == 1
    if wanted:
        hits, run = yield searches(question.text, params)
        passages = show(hits, params, library)
    answer, shown = yield from read_last(question, passages, params, library)
    memory = "retrieved" if wanted else "not retrieved"
    return Outcome(answer, memory, [p.docid for p in shown], run)
