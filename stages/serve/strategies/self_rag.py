"""Self-RAG's first decision: does this question need retrieval at all?

Asai et al., Self-RAG: Learning to Retrieve, Generate, and Critique through Self-Reflection, ICLR
2024. There a trained model emits a token for it, and the paper retrieves where its probability is
above delta = 0.2; here an untrained one chooses between " yes" and " no" in a two-shot prompt,
which is delta = 0.5. Critique tokens and the beam over segments need the trained model and are
not here. Always to retrieve is RAG; never, the closed-book reader.

The query is the question, so that a prefetch during the decision misses nothing.
"""

from typing import Literal

from stages.effects import Choice, Hint, Outcome, Question, Steps
from stages.prompts import NO_YES, look_up_prompt
from stages.serve.asked import Library
from stages.serve.reading import Reads, read, searches, show
from stages.types import Hit, Passage

TRACED = True


class Params(Reads):
    """One choice, a search or none, one call of the reader."""

    strategy: Literal["self_rag"]
    retrieve: Literal["choose", "always", "never"] = "choose"  # the last two ask nobody


def strategy(question: Question, params: Params, library: Library) -> Steps:
    """The reader's answer, with passages or without; without, the run is empty."""
    passages: list[Passage] = []
    run: list[Hit] = []
    wanted = params.retrieve == "always"
    if params.retrieve == "choose":
        yield Hint(question.text)
        wanted = (yield Choice(look_up_prompt(question.text), NO_YES)) == 1
    if wanted:
        hits, run = yield searches(question.text, params)
        passages = show(hits, params, library)
    answer, shown = yield from read(question, passages, params, library)
    memory = "retrieved" if wanted else "not retrieved"
    return Outcome(answer, memory, [p.docid for p in shown], run)
