"""A recorded run again, for its time alone: what was said and found then, the seconds of now.

The trace of a run is its effect log (``effects.parquet``). The strategy's own code is run once
more, question by question, and told what it was told then; so its hints come where they came. The
language model reads the recorded prompts and writes the recorded numbers of tokens, the engine
searches the recorded queries, and neither's result goes anywhere: conditions differ in time only.

A request reads every prompt from its first token: what an earlier condition read of the same
prompt would be a present to the next one. A search is that for the passages; the deeper one for
the ranking that is measured is no part of serving, and the same query.

Lin et al., TeleRAG, arXiv:2502.20969, §5: traces are recorded once, and replayed with prompts and
outputs of the same lengths. Running the strategy again, in place of a table of rounds, is ours.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from stages.asking import Asking, OpenQuestion, Step
from stages.clusters import Ints
from stages.effects import KINDS, LLM, Choice, Question, Search, Steps, read_result
from stages.errors import QuarryError
from stages.lm import LocalGenerator
from stages.serve.prefetch.budget import needed_bytes
from stages.serve.prefetch.engine import PrefetchEngine
from stages.types import Generation, Generator, Query, Request

Clock = Callable[[], float]


class Recorded:
    """What a run's questions asked for, and what they were told."""

    def __init__(self, name: str, effects: pa.Table) -> None:
        columns = ("qid", "effect_no", "request", "result")
        rows = effects.select(columns).to_pylist()
        self.name = name
        self.qids = sorted({row["qid"] for row in rows})
        self._told = {(r["qid"], r["effect_no"]): (r["request"], r["result"]) for r in rows}

    def result(self, step: Step) -> Any:
        """
        Raises:
            QuarryError: this was not asked in the run: code or values have changed since.
        """
        request, result = self._told.get((step.qid, step.no), (None, ""))
        if request != step.request:
            raise QuarryError(
                f"replay: question {step.qid} asks for something else than in the run "
                f"'{self.name}' (effect {step.no}): code, values or corpus have changed since it "
                f"was recorded. Make the run again."
            )
        return read_result(step.effect, result)


class Round(NamedTuple):
    """One search of a request and the calls before it; its last one has the calls after it too."""

    qid: str
    round: int  # from 0; a request that never searched has one row without queries
    n_queries: int = 0
    hits: int = 0  # probed clusters that were resident; hits + misses = queries x nprobe
    misses: int = 0
    bytes_copied: int = 0  # since the search before; of a micro-batch each request has its share
    bytes_missed: int = 0  # read when the query was known; of a micro-batch its share
    depth: int = 0  # ranks of the hint's list that were copied as a whole
    window_s: float = 0.0  # 0: no window was open
    t_sched: float = 0.0  # what is left of the wall time: counting tokens, waiting for neighbours
    t_pre: float = 0.0  # the model, since the search before
    t_ret: float = 0.0  # from the query to its passages
    t_post: float = 0.0  # the model, after the last search
    topk_ids: tuple[str, ...] = ()  # passages, query after query

    @property
    def seconds(self) -> float:
        """All of it."""
        return self.t_sched + self.t_pre + self.t_ret + self.t_post


def replay(
    questions: Sequence[Question],
    strategy: Callable[[Question], Steps],
    asking: Asking,
    engine: PrefetchEngine,
    recorded: Recorded,
    *,
    clock: Clock = time.perf_counter,
) -> list[Round]:
    """The rounds of one micro-batch: requests that start together and move in lock-step.

    Their hints share a window, their searches a call. ``asking.tools`` has the generator, the
    engine as retriever, and its ``prefetch``.

    Raises:
        QuarryError: the run asks for something that is not replayed, or has changed.
    """
    engine.begin()
    try:
        batch = _MicroBatch(asking, engine, recorded, clock, [], engine.stats()["copied_bytes"])
        for q in questions:
            batch.requests.append(_Request(OpenQuestion(q.qid, strategy(q)), clock()))
        for r in batch.requests:
            asking.advance(r.question, next)
        while active := [r for r in batch.requests if r.is_open(clock)]:
            batch.tick(active)
    finally:
        engine.end_request()
    return [row for r in batch.requests for row in r.finished()]


@dataclass(slots=True)
class _Request:
    """A request on its way, and its rounds so far."""

    question: OpenQuestion
    started: float
    rounds: list[Round] = field(default_factory=list)
    model_s: float = 0.0  # since the last search
    wall_s: float = 0.0  # once it has ended

    def is_open(self, clock: Clock) -> bool:
        """Whether it goes on; the first time that it does not is its end."""
        if self.question.end is not None and not self.wall_s:
            self.wall_s = clock() - self.started
        return self.question.end is None

    def finished(self) -> list[Round]:
        """Its rounds, with what came after the last search and what is left of the wall time."""
        if not self.rounds:
            self.rounds.append(Round(self.question.qid, 0))
        known = sum(row.seconds for row in self.rounds) + self.model_s
        rest = max(0.0, self.wall_s - known)
        self.rounds[-1] = self.rounds[-1]._replace(t_post=self.model_s, t_sched=rest)
        return self.rounds


@dataclass(slots=True)
class _MicroBatch:
    """Requests that move together, and what they move on."""

    asking: Asking
    engine: PrefetchEngine
    recorded: Recorded
    clock: Clock
    requests: list[_Request]
    copied: float  # bytes, up to the last search

    def tick(self, active: list[_Request]) -> None:
        """What all active requests wait for, kind by kind; then they are told what was recorded."""
        lengths = self.asking.count_tokens([e for r in active for e in r.question.effects])
        going: list[tuple[_Request, list[Step | None]]] = []
        for r in active:
            if refusal := self.asking.refusal(r.question, lengths):
                self.asking.refuse(r.question, refusal)
            else:
                going.append((r, self.asking.number(r.question)))
        known = {s.key: self.recorded.result(s) for _, own in going for s in own if s}
        for kind in KINDS:
            own = [(r, [s for s in steps if s and type(s.effect) is kind]) for r, steps in going]
            if own := [(r, steps) for r, steps in own if steps]:
                self._perform(kind, own, known)
        for r, steps in going:
            self.asking.deliver(r.question, steps, known, lengths)

    def _perform(
        self, kind: type, own: list[tuple[_Request, list[Step]]], known: dict[str, Any]
    ) -> None:
        if kind is Search:
            self._search(own)
            return
        steps = {s.key: s.effect for _, mine in own for s in mine}
        generator, begun = self.asking.tools.generator, self.clock()
        if kind is LLM:
            rewrite(generator, [again(e.request, known[key]) for key, e in steps.items()])
        elif kind is Choice:
            choose_anew(generator, list(steps.values()))
        else:
            raise QuarryError(
                f"replay: '{self.recorded.name}' asks for {kind.__name__}, which is not replayed. "
                f"Name a run of a strategy that asks a model and an index, no more."
            )
        took = self.clock() - begun
        for r, _ in own:
            r.model_s += took

    def _search(self, own: list[tuple[_Request, list[Step]]]) -> None:
        """One call for all queries of a tick; each request gets its round."""
        queries: list[Query] = []
        places: list[slice] = []
        for _, steps in own:
            mine = list(dict.fromkeys(s.effect.query for s in steps))
            places.append(slice(len(queries), len(queries) + len(mine)))
            queries += mine
        k = max(min(s.effect.k for s in steps) for _, steps in own)
        begun = self.clock()
        found = self.engine.search(queries, k)
        took = self.clock() - begun
        seen = self.engine.observed[-1]
        copied = self.engine.stats()["copied_bytes"]
        new, self.copied = int(copied - self.copied), copied
        depth = 0
        if seen.ranked is not None:
            depth = reached(seen.ranked, self.engine.file.nbytes, seen.copied_bytes)
        for i, ((r, _), place) in enumerate(zip(own, places, strict=True)):
            hits, misses = (
                int(counts[place].sum()) for counts in (seen.stats.hits, seen.stats.misses)
            )
            r.rounds.append(
                Round(
                    r.question.qid, len(r.rounds), len(queries[place]), hits, misses,
                    _share(new, i, len(own)), _share(seen.stats.nbytes, i, len(own)), depth,
                    seen.window_s, t_pre=r.model_s, t_ret=took,
                    topk_ids=tuple(hit.docid for hits_ in found[place] for hit in hits_),
                )
            )  # fmt: skip
            r.model_s = 0.0


def rewrite(generator: Generator, requests: Sequence[Request]) -> None:
    """Read these prompts from their first token, and write; the texts are dropped."""
    if isinstance(generator, LocalGenerator):
        generator.forget()
    generator.generate(requests)


def again(request: Request, done: Generation) -> Request:
    """The same prompt to the same number of tokens, wherever its text ended."""
    return request._replace(max_tokens=max(1, done.tokens_out), stop=())


def choose_anew(generator: Generator, choices: Sequence[Choice]) -> None:
    """Read the prompts of these choices, and all options; the likeliest is dropped."""
    if isinstance(generator, LocalGenerator):
        generator.forget()
    generator.choose([c.prompt for c in choices], [list(c.options) for c in choices])


def _share(amount: int, i: int, n: int) -> int:
    """The i-th of n parts of about one size; their sum is the amount."""
    return amount * (i + 1) // n - amount * i // n


def reached(ranked: Ints, nbytes: Ints, copied: int) -> int:
    """Ranks of (q, depth) lists that ``copied`` bytes hold as a whole, from an empty tier."""
    needed = needed_bytes(ranked, ranked, nbytes).reshape(ranked.shape)
    return int(np.cumprod((needed <= copied).all(0)).sum())
