"""The words between a strategy and the loop engine: what a question asks for, and its end.

A strategy is a generator function: it yields an effect, or a list of effects that may run side
by side, and is sent the result, or the list of results in the same order. It returns an
``Outcome``. Straight-line code for one question; ``stages.loop`` batches all of them::

    def rag(question):
        hits = yield Search(question.text, 3)
        reply = yield LLM(Request(prompt(question, hits), max_tokens=16))
        return Outcome(reply.text, docids=[h.docid for h in hits])

A strategy draws no random number and reads no clock: sampling is the engine's (``LLM``).
"""

import json
import math
from collections.abc import Generator as Coroutine
from collections.abc import Iterable, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from stages.types import Generation, Hit, Query, Request, Role

TIE = 1e-4  # log-probabilities differ by up to 2e-5 between batch shapes
# Fields that older logs lack are written only where they say something: the keys stay the same.
ADDED = {"doubt_below": (), "doubts": (), "weights": ()}


class Question(NamedTuple):
    """What is asked; with ``options``, one of them is the answer."""

    qid: str
    text: str
    options: Sequence[str] = ()


class LLM(NamedTuple):
    """Result: a ``Generation``.

    Where the temperature is above 0 the engine sets the seed, from the run's seed, the
    question's id and the effect's number: the text is the same alone and in any batch.
    """

    request: Request


class Choice(NamedTuple):
    """Result: the index (int) of the likeliest option; within ``TIE`` of it, the smallest.

    Each option's probability counts ``weights`` times (none: once): of two, the second is chosen
    where its share of their probability is above delta, with weights (delta, 1 - delta).
    """

    prompt: str
    options: Sequence[str]
    weights: tuple[float, ...] = ()  # above 0, as many as options


class Search(NamedTuple):
    """Result: up to k ``Hit``\\ s, best first.

    A query of several texts is the mean of their vectors (dense indexes alone). ``passage`` hits
    are what a reader is shown and count as the question's docs; ``document`` hits are parents,
    from as many passages as that takes: the ranking that is measured. What a generator reads for
    a search counts as the question's tokens, once: with its passages.
    """

    query: Query
    k: int
    unit: Literal["passage", "document"] = "passage"


class Encode(NamedTuple):
    """Result: an (n, d) float32 array of unit vectors."""

    texts: Sequence[str]
    role: Role = "query"


class Score(NamedTuple):
    """Result: an (n,) float32 array, one relevance per (query, passage) pair."""

    pairs: Sequence[tuple[str, str]]


class Hint(NamedTuple):
    """Result: None. A guess of a later query for a prefetching layer; it changes no result.

    It has no number, is not logged and costs no tick.
    """

    query: str


Effect = LLM | Choice | Search | Encode | Score | Hint
KINDS: tuple[type, ...] = (LLM, Choice, Search, Encode, Score)  # the order within a tick


class Cost(NamedTuple):
    """What a search cost that a generator made, by reading through the corpus."""

    tokens: int  # read
    rollouts: int
    cut: bool  # there were rollouts left, but no tokens


class Walked(list[Hit]):
    """Hits of such a search: the result of a ``Search`` for passages, with its ``cost``."""

    def __init__(self, hits: Iterable[Hit], cost: Cost) -> None:
        super().__init__(hits)
        self.cost = cost


class Outcome(NamedTuple):
    """How a question ended: ``hits`` are its run (documents), ``docids`` the passages read."""

    answer: str = ""
    memory: str = ""  # the note, the chain, the draft: what the method kept, as text
    docids: Sequence[str] = ()
    hits: Sequence[Hit] = ()
    stop_reason: str = "fixed"  # judge, answer_marker, empty_gen, fails, converged, no_query ...


Steps = Coroutine[Effect | list[Effect], Any, Outcome]


class BudgetSpent(Exception):
    """Thrown into a strategy at the yield that would exceed a limit.

    Uncaught, it ends the question. A strategy may catch it twice per limit: to leave its loop and
    answer from what it has, and, if that is too much as well, to end with what it found. In any
    case the question's stop reason is ``budget_<limit>``.
    """

    def __init__(self, limit: str) -> None:
        super().__init__(limit)
        self.limit = limit


def pick(logps: Sequence[float], weights: Sequence[float] = ()) -> int:
    """The index of the largest log-probability; among those within ``TIE`` of it, the first.

    With weights, of the largest log(weight x probability).
    """
    if weights:
        logps = [logp + math.log(w) for logp, w in zip(logps, weights, strict=True)]
    best = max(logps)
    return next(i for i, logp in enumerate(logps) if logp > best - TIE)


def dumps(value: Any) -> str:
    """Canonical JSON on one line."""
    return json.dumps(value, ensure_ascii=False, sort_keys=True, default=float)


def write_request(effect: Effect) -> str:
    """What was asked, as JSON."""
    return dumps(_fields(effect.request if isinstance(effect, LLM) else effect))


def _fields(record: Any) -> dict[str, Any]:
    return {k: v for k, v in record._asdict().items() if k not in ADDED or v != ADDED[k]}


def write_result(effect: Effect, value: Any) -> str:
    """What came back, as JSON; of a choice the index alone, never a log-probability."""
    match effect:
        case LLM():
            return dumps(_fields(value))
        case Search() if isinstance(value, Walked):
            return dumps({"hits": list(value), **value.cost._asdict()})
        case Search():
            return dumps(list(value))
        case Encode() | Score():
            return dumps(value.tolist())
    return dumps(value)


def read_result(effect: Effect, text: str) -> Any:
    """The value that ``write_result`` wrote; float32 and float64 come back bit for bit."""
    value = json.loads(text)
    match effect:
        case LLM():
            doubts = tuple(tuple(map(tuple, spans)) for spans in value.pop("doubts", ()))
            return Generation(**value, doubts=doubts)
        case Search() if isinstance(value, dict):
            return Walked((Hit(*hit) for hit in value.pop("hits")), Cost(**value))
        case Search():
            return [Hit(*hit) for hit in value]
        case Encode() | Score():
            return np.array(value, dtype=np.float32)
    return value
