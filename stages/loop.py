"""One engine for every multi-step strategy: lock-step ticks over all active questions.

In a tick the engine takes what each active question is waiting for, groups it by kind, asks
for equal requests once, looks up what is known, runs the rest in batches, and sends every
question its results. Questions may be in different phases: a tick groups effects, not rounds.
A question that ends makes room for the next, so batches stay full. Nothing that a question
sees depends on its neighbours: results are equal for any ``max_active``, batch size and order.

Results go into the record store under their content's key while a tick is running: a killed
run, run again, finds them there. Generators cannot be pickled; they are run again.
The kinds of a tick run one after the other: a search takes milliseconds, a generation seconds.

FlashRAG's active pipelines (Jin et al., WWW 2025) batch some methods round by round and run
the rest item by item; effects sent to a scheduler as data are ours.
"""

import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import pyarrow as pa
from tqdm import tqdm

from stages.asking import (
    NO_LIMIT,
    Answered,
    Asking,
    Budget,
    Counts,
    OpenQuestion,
    Step,
    tokens_of,
)
from stages.effects import KINDS, LLM, Effect, Question, Steps, read_result, write_result
from stages.errors import QuarryError, Refused
from stages.records import RecordStore
from stages.tables import sort_table, table
from stages.tools import Tools, cut_batches

__all__ = ["NO_LIMIT", "Answered", "Budget", "Counts", "Loop", "Tick", "run_loop"]

log = logging.getLogger(__name__)

KEEP = 16  # results that are put into the record store at once
Cache = Literal["on", "read_only", "off"]


class Tick(NamedTuple):
    """A measurement: one kind of effect in one tick."""

    tick: int
    kind: str
    n_requests: int
    n_unique: int
    n_cached: int  # of the unique ones: from the cache or from a log
    n_batches: int
    tokens: int  # read and written by the generations that were computed
    ms: float
    ms_reused: float = 0.0  # what results from the cache took when they were computed


class Loop(NamedTuple):
    """What a run of the engine gives: by qid, by (qid, effect_no), by tick."""

    answered: list[Answered]
    effects: pa.Table
    ticks: list[Tick]


def run_loop(
    strategy: Callable[[Question], Steps],
    questions: Sequence[Question],
    tools: Tools,
    *,
    seed: int = 0,
    budget: Budget = NO_LIMIT,
    max_active: int = 256,
    batch: int | None = None,
    store: RecordStore | None = None,
    cache: Cache = "on",
    replay: pa.Table | None = None,
    trace: bool = True,
) -> Loop:
    """Every question run to its end, with a stop reason for each.

    At most ``max_active`` questions are open at once, and at most ``batch`` requests go into
    one call of a tool (None: all of a tick). An exception in a strategy, a prompt over the
    model's context, or a request that the model's server refuses, fails its question alone.
    Without a ``store`` the cache is off. ``replay`` is an effect log of an earlier run: as long
    as a question asks what it asked then, it is told what it was told then; at the first
    difference the rest of its log is discarded, with a warning. ``trace=False`` leaves the
    effect table empty.

    Raises:
        QuarryError: a qid occurs twice, or a strategy asks for a tool that is not there.
    """
    if len({q.qid for q in questions}) < len(questions):
        raise QuarryError("loop: a qid occurs twice among the questions; give each its own.")
    engine = _Engine(
        asking=Asking(tools, seed, budget), batch=batch,
        store=store if cache != "off" else None, writes=cache == "on",
        past=_read_log(replay), trace=trace,
    )  # fmt: skip
    waiting, active, done = deque(questions), [], []
    with tqdm(total=len(questions), unit="question", disable=None, delay=2) as bar:
        while waiting or active:
            while waiting and len(active) < max_active:
                question = waiting.popleft()
                active.append(OpenQuestion(question.qid, strategy(question)))
                engine.asking.advance(active[-1], next)
            done += [q for q in active if q.end is not None]
            active = [q for q in active if q.end is None]
            engine.tick(active)
            bar.update(len(done) - bar.n)
    engine.warn_diverged()
    n_asked, n_unique, n_cached = (
        sum(getattr(t, n) for t in engine.ticks) for n in ("n_requests", "n_unique", "n_cached")
    )
    log.info(
        "%d questions in %d ticks: %d effects, %d of them distinct, %d reused",
        len(done), engine.n_ticks, n_asked, n_unique, n_cached,
    )  # fmt: skip
    return Loop(
        sorted((q.answered for q in done), key=lambda a: a.qid),
        sort_table(table("effects", engine.rows), "effects"),
        engine.ticks,
    )


@dataclass(slots=True, kw_only=True)
class _Engine:
    asking: Asking
    batch: int | None
    store: RecordStore | None
    writes: bool
    past: dict[tuple[str, int], tuple[str, str]]  # (qid, effect_no) -> (key, result)
    trace: bool
    rows: list[dict[str, Any]] = field(default_factory=list)
    ticks: list[Tick] = field(default_factory=list)
    diverged: set[str] = field(default_factory=set)
    took: dict[str, float] = field(default_factory=dict)  # by key: ms of what the cache gave
    n_ticks: int = 0

    def tick(self, active: list[OpenQuestion]) -> None:
        """One round trip for every active question."""
        self.n_ticks += bool(active)
        lengths = self.asking.count_tokens([e for q in active for e in q.effects])
        refusals = {q.qid: e for q in active if (e := self.asking.refusal(q, lengths))}
        asked = {q.qid: self.asking.number(q) for q in active if q.qid not in refusals}
        steps = [s for own in asked.values() for s in own if s is not None]
        known = self._recall(steps)
        for kind in KINDS:
            if group := [s for s in steps if type(s.effect) is kind]:
                self._perform(kind, group, known)
        if self.trace:
            told = [s for s in steps if not isinstance(known[s.key], Refused)]
            self.rows += [
                _log_row(s, known[s.key], *tokens_of(s, known[s.key], lengths)) for s in told
            ]
        for q in active:
            if q.qid in refusals:
                self.asking.refuse(q, refusals[q.qid])
            else:
                self.asking.deliver(q, asked[q.qid], known, lengths)

    # -- results: from a log, from the cache, computed ------------------------------------

    def _recall(self, steps: list[Step]) -> dict[str, Any]:
        """Values by key, from the replayed log and the cache."""
        found: dict[str, str] = {}
        for s in steps:
            key, result = self.past.get((s.qid, s.no), (s.key, None))
            if key != s.key:
                self.diverged.add(s.qid)
            elif result is not None and s.qid not in self.diverged:
                found[s.key] = result
        if self.store is not None:
            unknown = [s.key for s in steps if s.key not in found]
            for key, record in self.store.get_many(unknown).items():
                ms, found[key] = record.decode().split("\n", 1)
                self.took[key] = float(ms)
        return {s.key: read_result(s.effect, found[s.key]) for s in steps if s.key in found}

    def warn_diverged(self) -> None:
        if self.diverged:
            log.warning(
                "%d questions asked for something else than in the log (first: %s): code or "
                "prompt has changed; the rest of their logs is discarded",
                len(self.diverged), min(self.diverged),
            )  # fmt: skip

    def _perform(self, kind: type, group: list[Step], known: dict[str, Any]) -> None:
        """Compute what is not known, each distinct request once, and keep it on the way."""
        start, n_batches, tokens = time.perf_counter(), 0, 0
        unique = {s.key: s.effect for s in group}
        todo = {k: e for k, e in unique.items() if k not in known}
        bar = tqdm(
            total=len(todo), unit=kind.__name__, desc=f"tick {self.n_ticks}", leave=False,
            disable=None, delay=2,
        )  # fmt: skip
        fresh: dict[str, Effect] = {}  # done, not yet in the store
        kept = start
        with bar:
            for keys in cut_batches(todo, self.batch):
                for i, value in self.asking.tools.run([todo[k] for k in keys]):
                    known[keys[i]] = value
                    bar.update()
                    if isinstance(value, Refused):
                        continue  # asked again by the next run: the server may be another then
                    fresh[keys[i]] = todo[keys[i]]
                    tokens += value.tokens_in + value.tokens_out if kind is LLM else 0
                    if len(fresh) == KEEP:
                        kept = self._keep(fresh, known, kept)
                kept = self._keep(fresh, known, kept)
                n_batches += 1
        sizes = (len(group), len(unique), len(unique) - len(todo), n_batches, tokens)
        ms = 1000 * (time.perf_counter() - start)
        ms_reused = sum(self.took.pop(key, 0.0) for key in unique)
        self.ticks.append(Tick(self.n_ticks, kind.__name__, *sizes, ms, ms_reused))

    def _keep(self, fresh: dict[str, Effect], known: dict[str, Any], since: float) -> float:
        """Put results into the cache, each with its share of the time; now, ``fresh`` empty."""
        now = time.perf_counter()
        if self.store is not None and self.writes and fresh:
            ms = 1000 * (now - since) / len(fresh)
            self.store.put_many(
                {k: f"{ms:.3f}\n{write_result(e, known[k])}".encode() for k, e in fresh.items()}
            )
        fresh.clear()
        return now


def _log_row(step: Step, value: Any, tokens_in: int, tokens_out: int) -> dict[str, Any]:
    """A row of the effect log: what the tool gave back, before any budget cut it."""
    return {
        "qid": step.qid, "effect_no": step.no, "turn": step.turn,
        "kind": type(step.effect).__name__, "key": step.key, "request": step.request,
        "result": write_result(step.effect, value), "tokens_in": tokens_in,
        "tokens_out": tokens_out,
    }  # fmt: skip


def _read_log(effects: pa.Table | None) -> dict[tuple[str, int], tuple[str, str]]:
    """(qid, effect_no) -> (key, result)."""
    columns = ("qid", "effect_no", "key", "result")
    rows = [] if effects is None else effects.select(columns).to_pylist()
    return {(r["qid"], r["effect_no"]): (r["key"], r["result"]) for r in rows}
