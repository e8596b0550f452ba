"""HyDE: search with the passages that a model makes up for the question.

Gao, Ma, Lin & Callan, Precise Zero-Shot Dense Retrieval without Relevance Labels, ACL 2023. The
model writes N passages that would answer the question; what they say may be wrong, what they look
like is what a relevant passage looks like. The query vector is v = (Σ_i f(h_i) + f(q)) / (N + 1),
with the query side of the encoder for all of them, as in the authors' code. N = 0 is retrieval
with the question.

An index that searches by words has no mean of vectors: there (``combine: text``) question and
passages are one long query.
"""

from typing import Literal

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from stages.effects import LLM, Hint, Outcome, Question, Steps
from stages.prompts import STOP, hypothesis_prompt
from stages.serve.asked import Library
from stages.serve.reading import Reads, read_last, searches, show
from stages.shell import NONE
from stages.types import Request

TRACED = True


class Params(Reads):
    """N passages made up, one search, one call of the reader."""

    strategy: Literal["hyde"]
    combine: Literal["mean", "text"] = "mean"  # of vectors (dense index), or one text
    hypotheses: NonNegativeInt = 8  # N passages
    temperature: float = Field(0.7, ge=0)  # at which they are drawn
    hypothesis_tokens: PositiveInt = 512  # of each, at the most; it ends with its line

    @model_validator(mode="after")
    def _has_vectors(self) -> "Params":
        if self.combine == "mean" and self.encoder == NONE:
            raise ValueError("combine: mean needs a dense index and its encoder; or say text")
        return self


def strategy(question: Question, params: Params, library: Library) -> Steps:
    """The reader's answer from what the made-up passages find."""
    yield Hint(question.text)
    request = Request(
        hypothesis_prompt(question.text), params.hypothesis_tokens, STOP, params.temperature
    )
    replies = yield [LLM(request)] * params.hypotheses
    made_up = [text for reply in replies if (text := reply.text.strip())]
    query = (question.text, *made_up)
    hits, run = yield searches(
        query if params.combine == "mean" and made_up else " ".join(query), params
    )
    passages = show(hits, params, library)
    answer, shown = yield from read_last(question, passages, params, library)
    return Outcome(answer, "\n".join(made_up), [p.docid for p in shown], run)
