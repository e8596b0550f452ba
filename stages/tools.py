"""What the loop engine's effects run on: which tool, which requests go together, one call.

A batch holds requests of one form: a search by its depth and unit, an encoding by its role.
Generations of any length go together, as one stream: the generator admits a request whenever
one ends, so a batch never waits for its longest text, and each text is there as it ends.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from stages.effects import LLM, Choice, Effect, Encode, Search, pick
from stages.errors import QuarryError, Refused
from stages.runs import search_documents
from stages.types import Encoder, Generation, Generator, Request, Reranker, Retriever

CHOICES = 64  # in one call: what a killed run can lose


class Tools(NamedTuple):
    """The models and the index of a run; ``prefetch`` is told every hint.

    ``search_tokens`` is the most that the generator reads for one search, where it is the
    retriever.
    """

    generator: Generator | None = None
    retriever: Retriever | None = None
    encoder: Encoder | None = None
    reranker: Reranker | None = None
    prefetch: Callable[[str], None] | None = None
    search_tokens: int = 0

    def for_effect(self, effect: Effect) -> Any:
        """The tool that this effect runs on.

        Raises:
            QuarryError: there is none.
        """
        slots = {LLM: "generator", Choice: "generator", Search: "retriever", Encode: "encoder"}
        slot = slots.get(type(effect), "reranker")
        if (tool := getattr(self, slot)) is None:
            raise QuarryError(
                f"loop: a strategy asks for {type(effect).__name__} and there is no {slot}. Name "
                f"one in the entry (index: the retriever, model: the generator, encoder)."
            )
        return tool

    def run(self, effects: Sequence[Any]) -> Iterator[tuple[int, Any]]:
        """(position, value) of effects of one form, as they get ready: one call of their tool.

        What a generator or an index refused has a ``Refused`` as its value.
        """
        tool = self.for_effect(effects[0])
        match effects[0]:
            case LLM():
                return _generate(tool, [e.request for e in effects])
            case Choice():
                values = _but_refused(partial(_choose, tool), effects)
            case Search(k=k, unit="document"):
                queries = [e.query for e in effects]
                values = _but_refused(partial(search_documents, tool, k=k), queries)
            case Search(k=k):
                values = _but_refused(partial(tool.search, k=k), [e.query for e in effects])
            case Encode(role=role):
                rows = tool.encode([t for e in effects for t in e.texts], role)
                values = _split(rows, [len(e.texts) for e in effects])
            case _:
                scores = tool.score([p for e in effects for p in e.pairs])
                values = _split(scores, [len(e.pairs) for e in effects])
        return enumerate(values)


class _Pending:
    """``stages.types.Inbox`` over a fixed list of requests."""

    def __init__(self, requests: Sequence[Request]) -> None:
        # Long ones first, so that none is left running alone; equal beginnings side by side.
        order = sorted(
            range(len(requests)),
            key=lambda i: (-len(requests[i].prompt) // 512, requests[i].prompt, i),
        )
        self._todo = deque((str(i), requests[i]) for i in order)

    def admit(self, room: int) -> Iterable[tuple[str, Request]]:
        return [self._todo.popleft() for _ in range(min(room, len(self._todo)))]

    def cancelled(self) -> Iterable[str]:
        return ()

    def closed(self) -> bool:
        return not self._todo


def _generate(
    generator: Generator, requests: Sequence[Request]
) -> Iterator[tuple[int, Generation | Refused]]:
    for event in generator.stream(_Pending(requests)):
        if event.done is not None:
            yield int(event.request_id), event.done


def _choose(generator: Generator, choices: Sequence[Choice]) -> list[int]:
    """The option of each."""
    logps = generator.choose([c.prompt for c in choices], [list(c.options) for c in choices])
    return [pick(of_one, c.weights) for of_one, c in zip(logps, choices, strict=True)]


def _but_refused(call: Callable[[Sequence[Any]], Sequence[Any]], asked: Sequence[Any]) -> list[Any]:
    """What the call gives for each; one that is refused is found by halving, the others go on."""
    try:
        return list(call(asked))
    except Refused as refusal:
        if len(asked) == 1:
            return [refusal]
        half = len(asked) // 2
        return _but_refused(call, asked[:half]) + _but_refused(call, asked[half:])


def cut_batches(todo: Mapping[str, Effect], batch: int | None) -> Iterator[list[str]]:
    """The keys of requests that go into one call: alike in form, ``batch`` at the most."""
    forms: dict[Any, list[str]] = {}
    for key, effect in todo.items():
        forms.setdefault(_form(effect), []).append(key)
    for (kind, *_), keys in forms.items():
        size = batch or (CHOICES if kind is Choice else len(keys))
        for at in range(0, len(keys), size):
            yield keys[at : at + size]


def _form(effect: Effect) -> tuple[Any, ...]:
    match effect:
        case Search(k=k, unit=unit):
            return (Search, k, unit)
        case Encode(role=role):
            return (Encode, role)
    return (type(effect),)


def _split(rows: np.ndarray, sizes: list[int]) -> list[np.ndarray]:
    return np.split(rows, np.cumsum(sizes)[:-1])
