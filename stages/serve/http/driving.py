"""One question from its first effect to its end, and what a client is told on the way.

The strategy runs in worker threads; what it asks for runs in the threads of the model and of the
index, side by side. A question that fails, or whose client has gone, takes nothing with it: its
calls are given up and its rows are free after the next token step.
"""

import asyncio
import contextlib
import time
from collections.abc import Callable
from typing import Any

from stages.asking import Answered, Asking, OpenQuestion, Step
from stages.effects import LLM, BudgetSpent, Choice, Question, Search, Steps
from stages.errors import Refused
from stages.serve.http.bodies import Emit
from stages.serve.http.catalogue import Opened
from stages.serve.http.generation import Desk, Said
from stages.serve.http.replay import Record, Retold, as_long
from stages.tools import Tools
from stages.types import Generation, Query

SHOWN = 4_000  # characters of a prompt that an event repeats


class Driver:
    """Runs one question. Events carry milliseconds since ``start`` (of ``perf_counter``)."""

    def __init__(
        self, opened: Opened, tools: Tools, asking: Asking, emit: Emit, start: float,
        record: Record | None = None,
    ) -> None:  # fmt: skip
        self._opened, self._tools, self._asking, self._emit = opened, tools, asking, emit
        self._start, self._record = start, record
        self.replayed = 0  # calls of the model that gave what they gave before
        self.spent: dict[str, Any] = {"llm_ms": 0.0, "search_ms": 0.0, "first_token_ms": None}
        self.refused = False  # what it asked was too much for the model: no fault of ours

    def now(self) -> float:
        """Milliseconds since the start."""
        return round(1000 * (time.perf_counter() - self._start), 3)

    async def run(self, question: Question, strategy: Callable[[Question], Steps]) -> Answered:
        """The question's end; an error in it is in the answer, not raised."""
        q = OpenQuestion(question.qid, strategy(question))
        await asyncio.to_thread(self._asking.advance, q, next)
        while q.end is None:
            lengths, refusal, steps = await asyncio.to_thread(self._next, q)
            if refusal is not None:
                await asyncio.to_thread(self._asking.refuse, q, refusal)
                continue
            known = await self._perform_all([s for s in steps if s is not None])
            failed = [v for v in known.values() if isinstance(v, _Failed)]
            if failed:
                await asyncio.to_thread(self._asking.refuse, q, failed[0].error)
            else:
                await asyncio.to_thread(self._asking.deliver, q, steps, known, lengths)
        return q.answered

    def _next(self, q: OpenQuestion) -> tuple[dict[str, int], Exception | None, list[Step | None]]:
        """Lengths of what it asks for, and either why it may not or its numbered effects."""
        try:
            lengths = self._asking.count_tokens(q.effects)
            if refusal := self._asking.refusal(q, lengths):
                self.refused |= not isinstance(refusal, BudgetSpent)
                return lengths, refusal, []
            return lengths, None, self._asking.number(q)
        except Exception as error:  # a tool that is not there, a server that does not answer
            return {}, error, []

    async def _perform_all(self, steps: list[Step]) -> dict[str, Any]:
        """Values by key; equal effects of the question are one."""
        unique = {s.key: s for s in steps}
        values = await asyncio.gather(*(self._perform(s) for s in unique.values()))
        return dict(zip(unique, values, strict=True))

    async def _perform(self, step: Step) -> Any:
        kind, began = type(step.effect).__name__, self.now()
        self._emit("begin", {"no": step.no, "kind": kind, "start_ms": began, **_asked(step.effect)})
        try:
            if isinstance(step.effect, LLM | Choice):
                value = await self._call(step)
            else:
                value = await self._opened.searcher.ask(step.effect, self._tools)
                self._show_evidence(step, value)
        except Exception as error:
            value = _Failed(error)
        ended = self.now()
        spent = "llm_ms" if isinstance(step.effect, LLM | Choice) else "search_ms"
        self.spent[spent] += ended - began
        times = {"no": step.no, "kind": kind, "start_ms": began, "end_ms": ended}
        self._emit("step", {**times, **_gave(step.effect, value)})
        return value

    async def _call(self, step: Step) -> Any:
        """What the generator gives, its text told as it comes."""
        desk: Desk | None = self._opened.desk
        self._tools.for_effect(step.effect)  # an error if there is none
        loop, ended = asyncio.get_running_loop(), asyncio.Queue()

        def hear(said: Said) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody listens
                loop.call_soon_threadsafe(ended.put_nowait, said)

        asked = step.effect.request if isinstance(step.effect, LLM) else step.effect
        known = self._record.known(step.key) if self._record else None
        text = known if isinstance(known, Generation) else None
        retold = Retold(text) if text else None
        call = desk.submit(as_long(asked, text) if text else asked, hear)
        try:
            while isinstance(said := await ended.get(), str):
                self._tell_token(step, retold.piece(said) if retold else said)
        finally:
            desk.give_up(call)
        if isinstance(said, Refused):
            self.refused = True
            return said
        if isinstance(said, Exception):
            raise said
        if known is not None:
            self.replayed += 1
            if retold and retold.rest():
                self._tell_token(step, retold.rest())
            return known
        if self._record:
            self._record.keep(step.key, said)
        return said

    def _tell_token(self, step: Step, text: str) -> None:
        if self.spent["first_token_ms"] is None:
            self.spent["first_token_ms"] = self.now()
        if text:
            self._emit("token", {"no": step.no, "text": text, "at_ms": self.now()})

    def _show_evidence(self, step: Step, value: Any) -> None:
        shown = isinstance(step.effect, Search) and step.effect.unit == "passage"
        if shown and not isinstance(value, Refused):
            hits = self._opened.shelf.corpus.describe(value)
            query = _one_text(step.effect.query)
            self._emit("evidence", {"no": step.no, "query": query, "hits": hits})


class _Failed:
    """An effect that raised: thrown into its question."""

    def __init__(self, error: Exception) -> None:
        self.error = error


def _asked(effect: Any) -> dict[str, Any]:
    match effect:
        case LLM(request=r):
            return {"asked": r.prompt[-SHOWN:], "max_tokens": r.max_tokens}
        case Choice(prompt=prompt, options=options):
            return {"asked": prompt[-SHOWN:], "options": list(options)}
        case Search(query=query, k=k, unit=unit):
            return {"asked": _one_text(query)[:SHOWN], "k": k, "unit": unit}
    return {"asked": ""}


def _one_text(query: Query) -> str:
    return query if isinstance(query, str) else "\n".join(query)


def _gave(effect: Any, value: Any) -> dict[str, Any]:
    if isinstance(value, _Failed | Refused):
        return {"failed": str(getattr(value, "error", value))}
    match effect:
        case LLM() if isinstance(value, Generation):
            tokens = {"tokens_in": value.tokens_in, "tokens_out": value.tokens_out}
            return {"gave": value.text, "finish": value.finish, **tokens}
        case Choice(options=options):
            return {"gave": options[value]}
        case Search(unit=unit):
            return {"gave": f"{len(value)} {unit}s"}
    return {"gave": ""}
