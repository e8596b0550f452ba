"""Searching and answering, without HTTP: what the routes call."""

import asyncio
import itertools
import time
from typing import Any

from stages.asking import NO_LIMIT, Answered, Asking
from stages.effects import Question, Search
from stages.errors import QuarryError, Refused
from stages.serve.asked import Served
from stages.serve.http.bodies import AnswerBody, Emit, SearchBody
from stages.serve.http.catalogue import Catalogue, Entry, Opened, Unavailable
from stages.serve.http.driving import Driver
from stages.serve.http.limits import Limits
from stages.serve.http.lookahead import Copies
from stages.serve.http.metrics import Metrics
from stages.serve.http.problems import Problem, dumps
from stages.serve.http.replay import Record, Records
from stages.tools import Tools

TOP = 10  # documents that the end of an answer names


class Service:
    """The catalogue with what a request may do with it."""

    def __init__(self, catalogue: Catalogue, limits: Limits, metrics: Metrics) -> None:
        self.catalogue, self._limits, self._metrics = catalogue, limits, metrics
        self._numbers = itertools.count(1)
        self._records = Records()

    def describe(self) -> list[dict[str, Any]]:
        """The entries, for the page: what each is made of and whether it is open."""
        rows = []
        for name, entry in self.catalogue.entries.items():
            shelf = self.catalogue.shelf(entry)
            rows.append({
                "entry": name, "strategy": entry.values.model_dump().get("strategy"),
                "corpus": entry.values.corpus, "index": entry.values.index,
                "model": entry.values.model, "answers": entry.answers,
                "lookahead": bool(shelf and shelf.ahead),
                "open": name not in self.catalogue.why, "why": self.catalogue.why.get(name, ""),
            })  # fmt: skip
        return rows

    # -- search ---------------------------------------------------------------------------

    async def search(self, body: SearchBody) -> bytes:
        """The k best passages of an index, as JSON.

        Raises:
            Problem: 404 no such index, 503 it is not open, 504 it took too long, 500 it failed.
        """
        start = time.perf_counter()
        with (
            _as_problems(),
            self.catalogue.borrow(self._index(body.index)) as opened,
            opened.shelf.lent() as retriever,
        ):
            tools = Tools(retriever=retriever)
            effect = Search(body.query, body.k)
            found = await opened.searcher.ask(effect, tools, self._limits.search_seconds)
            if isinstance(found, Refused):  # a cluster that cannot be read, say
                raise found
            searched = time.perf_counter()
            hits = opened.shelf.corpus.write(found)
        ended = time.perf_counter()
        timings = {"search_ms": _ms(start, searched), "total_ms": _ms(start, ended)}
        return b'{"hits":' + hits + b',"timings":' + dumps(timings) + b"}"

    def _index(self, name: str | None) -> Entry:
        if (entry := self.catalogue.searching(name)) is not None:
            return entry
        if not (named := self.catalogue.indexes):
            raise Problem(404, "unknown-index", "the catalogue has no index.")
        raise Problem(
            404, "unknown-index", f"no such index in the catalogue; it has: {', '.join(named)}."
        )

    # -- answer ---------------------------------------------------------------------------

    def entry(self, body: AnswerBody) -> Entry:
        """The entry that is to answer.

        Raises:
            Problem: 404 there is no such entry, 422 it cannot do what is asked.
        """
        can = [e for e in self.catalogue.entries.values() if e.answers]
        if body.entry is None and not can:
            raise Problem(404, "unknown-entry", "no entry of the catalogue answers.")
        if body.entry is None:
            entry = next((e for e in can if e.name not in self.catalogue.why), can[0])
        elif body.entry not in self.catalogue.entries:
            names = ", ".join(e.name for e in can)
            raise Problem(
                404, "unknown-entry", f"no such entry in the catalogue; these answer: {names}."
            )
        else:
            entry = self.catalogue.entries[body.entry]
        if not entry.answers:
            raise Problem(
                422, "no-answers", f"entry '{entry.name}' ranks documents and writes no answer; "
                f"ask /search for its index.",
            )  # fmt: skip
        if body.max_tokens is not None and "max_tokens" not in type(entry.values).model_fields:
            raise Problem(422, "max-tokens", f"entry '{entry.name}' takes no max_tokens.")
        return entry

    async def answer(self, entry: Entry, body: AnswerBody, emit: Emit) -> None:
        """Run the question to its end; everything worth telling goes to ``emit``.

        Raises:
            Problem: 503 the entry is not open, 504 it took too long; before or after events.
        """
        record = self._records.of(entry.name, body) if body.comparison else None
        qid = f"http-{record.name if record else next(self._numbers)}"
        with _as_problems(), self.catalogue.borrow(entry) as opened:
            values = entry.values
            if body.max_tokens is not None:
                values = values.model_copy(update={"max_tokens": body.max_tokens})
            cold = {"cold": True} if record else {}
            looks = self._looks(body, opened)
            emit("start", {"id": qid, "entry": entry.name, "lookahead": looks, **cold})
            async with asyncio.timeout(self._limits.answer_seconds):
                if record:
                    await asyncio.to_thread(_forget, opened)
                with opened.shelf.lent() as retriever:
                    await self._run(qid, body, values, opened, retriever, record, emit)

    async def _run(
        self, qid: str, body: AnswerBody, values: Served, opened: Opened, retriever: Any,
        record: Record | None, emit: Emit,
    ) -> None:  # fmt: skip
        loop = asyncio.get_running_loop()
        start = time.perf_counter()
        copies = Copies(retriever, start, emit) if opened.shelf.ahead else None

        def tell(name: str, members: dict[str, Any]) -> None:
            emit(name, members)
            if copies and name == "step":
                copies.tell()

        def prefetch(query: str) -> None:  # called in a worker thread
            loop.call_soon_threadsafe(emit, "hint", {"query": query, "at_ms": _ms(start)})
            retriever.prefetch(query)

        tools = Tools(
            opened.desk.generator if opened.desk else None, retriever,
            prefetch=prefetch if self._looks(body, opened) else None,
        )  # fmt: skip
        asking = Asking(tools, getattr(values, "seed", 0), getattr(values, "budget", NO_LIMIT))
        driver = Driver(opened, tools, asking, tell, start, record)
        question = Question(qid, body.question, tuple(body.options))
        answered = await driver.run(question, opened.strategy(values))
        self._count(answered, driver)
        emit("timings", {"total_ms": driver.now(), **driver.spent})
        if answered.error:
            status = 422 if driver.refused else 500
            raise Problem(status, "question-failed", answered.error)
        outcome, c = answered.outcome, answered.counts
        replayed = {"replayed": driver.replayed} if record else {}
        emit("done", {
            "answer": outcome.answer, "stop_reason": outcome.stop_reason,
            "memory": outcome.memory, "docids": list(outcome.docids),
            "documents": [h._asdict() for h in outcome.hits[:TOP]],
            "counts": {"rounds": c.rounds, "docs": c.docs, "llm_calls": c.llm_calls,
                       "searches": c.searches, "tokens_in": c.tokens_in,
                       "tokens_out": c.tokens_out, **replayed},
        })  # fmt: skip

    def _looks(self, body: AnswerBody, opened: Opened) -> bool:
        return opened.shelf.ahead and body.lookahead

    def _count(self, answered: Answered, driver: Driver) -> None:
        self._metrics.tokens.labels("in").inc(answered.counts.tokens_in)
        self._metrics.tokens.labels("out").inc(answered.counts.tokens_out)
        if (first := driver.spent["first_token_ms"]) is not None:
            self._metrics.first_token.observe(first / 1000)


def _forget(opened: Opened) -> None:
    """What earlier requests left in memory is dropped: vectors, clusters, prompts."""
    if opened.shelf.ahead:
        opened.shelf.retriever.forget()
    if opened.desk:
        opened.desk.forget().wait()


class _as_problems:
    """Errors of the block as problems."""

    def __enter__(self) -> None: ...

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        match error:
            case Unavailable():
                raise Problem(503, "unavailable", str(error), retry_after=5) from error
            case TimeoutError():
                raise Problem(504, "timeout", "it took longer than is allowed.") from error
            case QuarryError() | OSError():
                raise Problem(500, "failed", str(error)) from error


def _ms(start: float, end: float | None = None) -> float:
    """Milliseconds from start to end, or to now."""
    return round(1000 * ((end or time.perf_counter()) - start), 3)
