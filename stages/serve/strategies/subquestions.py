"""Sub-questions: split the question into several, search all of them at once, answer.

The pipeline "parallel" (SubQ) of Lin et al., TeleRAG, arXiv:2502.20969, after LlamaIndex's
sub-question engine: for questions that need several facts that do not build on each other. The
rankings of the sub-questions are merged by reciprocal rank, passages and documents alike.

A reply without a sub-question in it leaves the question itself to search with (``no_query``).
"""

from typing import Literal

from pydantic import PositiveInt

from stages.effects import LLM, Hint, Outcome, Question, Steps
from stages.prompts import STOP, subquestions_prompt
from stages.serve.asked import Library
from stages.serve.reading import Reads, rank_together, read_last, searches, show
from stages.text import split_sentences
from stages.types import Request

TRACED = True
MARKS = ("?", "？", "؟")  # that end a question


class Params(Reads):
    """One call that splits, one search for each part, one call of the reader."""

    strategy: Literal["subquestions"]
    subquestions: PositiveInt = 4  # at the most; ours: TeleRAG leaves it to the model
    subquestion_tokens: PositiveInt = 96  # of all of them together; ours


def strategy(question: Question, params: Params, library: Library) -> Steps:
    """The reader's answer from what the sub-questions find together."""
    yield Hint(question.text)
    reply = yield LLM(Request(subquestions_prompt(question.text), params.subquestion_tokens, STOP))
    parts = read_subquestions(reply.text)[: params.subquestions]
    queries = parts or [question.text]
    found = yield [search for query in queries for search in searches(query, params)]
    hits = rank_together(found[0::2], params.passages)
    run = rank_together(found[1::2], params.k)
    passages = show(hits, params, library)
    answer, shown = yield from read_last(question, passages, params, library)
    stop_reason = "fixed" if parts else "no_query"
    return Outcome(answer, "\n".join(queries), [p.docid for p in shown], run, stop_reason)


def read_subquestions(text: str) -> list[str]:
    """The sentences of a reply that end as questions do, each once."""
    sentences = (text[start:end] for start, end in split_sentences(text))
    return list(dict.fromkeys(s for s in sentences if s.endswith(MARKS)))
