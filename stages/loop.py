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
from pydantic import NonNegativeInt
from tqdm import tqdm

from stages.digest import digest
from stages.effects import (
    KINDS,
    LLM,
    BudgetSpent,
    Choice,
    Effect,
    Hint,
    Outcome,
    Question,
    Search,
    Steps,
    read_result,
    write_request,
    write_result,
)
from stages.errors import QuarryError, Refused
from stages.params import Entry
from stages.records import RecordStore
from stages.tables import sort_table, table
from stages.tools import Tools, cut_batches
from stages.types import Hit

log = logging.getLogger(__name__)

VERSION = "2"  # of what an effect means and of its record; part of every key
KEEP = 16  # results that are put into the record store at once
Cache = Literal["on", "read_only", "off"]


class Budget(Entry):
    """Limits of one question, kept by the engine; none is no limit."""

    max_rounds: NonNegativeInt | None = None  # yields with a search in them
    max_docs: NonNegativeInt | None = None  # distinct passages
    max_llm_calls: NonNegativeInt | None = None  # generations and choices
    max_tokens: NonNegativeInt | None = None  # read and written by the generator


NO_LIMIT = Budget()


@dataclass(slots=True)
class Counts:
    """What a question used. Results from the cache count like computed ones."""

    rounds: int = 0
    docs: int = 0
    llm_calls: int = 0
    searches: int = 0
    tokens_in: int = 0
    tokens_out: int = 0


class Answered(NamedTuple):
    """One question's end; ``error`` is empty unless it failed."""

    qid: str
    outcome: Outcome
    counts: Counts
    error: str


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
        tools=tools, seed=seed, budget=budget, batch=batch,
        store=store if cache != "off" else None, writes=cache == "on",
        past=_read_log(replay), trace=trace,
    )  # fmt: skip
    waiting, active, done = deque(questions), [], []
    with tqdm(total=len(questions), unit="question", disable=None, delay=2) as bar:
        while waiting or active:
            while waiting and len(active) < max_active:
                question = waiting.popleft()
                active.append(_Open(question.qid, strategy(question)))
                engine.advance(active[-1], next)
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
        sorted((Answered(q.qid, q.end, q.counts, q.error) for q in done), key=lambda a: a.qid),
        sort_table(table("effects", engine.rows), "effects"),
        engine.ticks,
    )


class _Step(NamedTuple):
    """An effect on its way: whose it is, its number there, its content's key."""

    qid: str
    no: int
    effect: Effect
    request: str
    key: str


@dataclass(slots=True)
class _Open:
    """A question that is being worked on."""

    qid: str
    steps: Steps
    effects: list[Effect] = field(default_factory=list)  # what it waits for
    single: bool = True  # it yielded one effect, not a list
    counts: Counts = field(default_factory=Counts)
    n_effects: int = 0  # numbered so far
    seen: set[str] = field(default_factory=set)  # docids of passages
    refused: list[str] = field(default_factory=list)  # limits it ran into
    end: Outcome | None = None
    error: str = ""


@dataclass(slots=True, kw_only=True)
class _Engine:
    tools: Tools
    seed: int
    budget: Budget
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

    def tick(self, active: list[_Open]) -> None:
        """One round trip for every active question."""
        self.n_ticks += bool(active)
        lengths = self._count_tokens(active)
        refusals = {q.qid: e for q in active if (e := self._refusal(q, lengths))}
        asked = {q.qid: self._number(q) for q in active if q.qid not in refusals}
        steps = [s for own in asked.values() for s in own if s is not None]
        known = self._recall(steps)
        for kind in KINDS:
            if group := [s for s in steps if type(s.effect) is kind]:
                self._perform(kind, group, known)
        for q in active:
            if q.qid in refusals:
                self._refuse(q, refusals[q.qid])
            else:
                results = self._deliver(q, asked[q.qid], known, lengths)
                if refused := [r for r in results if isinstance(r, Refused)]:
                    self._refuse(q, refused[0])
                    continue
                sent = results[0] if q.single else results
                self.advance(q, lambda steps, sent=sent: steps.send(sent))

    def advance(self, q: _Open, resume: Callable[[Steps], Any]) -> None:
        """Run a question's strategy to what it asks for next, or to its end."""
        try:
            wanted = resume(q.steps)
            while isinstance(wanted, Hint):
                self._hint([wanted])
                wanted = q.steps.send(None)
            q.single = not isinstance(wanted, list)
            q.effects = [wanted] if q.single else wanted
            _check_effects(q.effects)
            self._hint(q.effects)
        except StopIteration as stop:
            if isinstance(stop.value, Outcome):
                q.end = stop.value
            else:
                q.error = f"TypeError: a strategy returns an Outcome, not {stop.value!r:.60}"
        except BudgetSpent:
            q.end = Outcome()
        except Exception as e:  # whatever went wrong in there fails this question alone
            q.error = f"{type(e).__name__}: {e}"
        if q.error:
            log.warning("question %s failed: %s", q.qid, q.error)
            q.end = Outcome(stop_reason="error")
        elif q.end is not None and q.refused:
            q.end = q.end._replace(stop_reason=f"budget_{q.refused[0]}")

    def _hint(self, effects: list[Effect]) -> None:
        for effect in effects:
            if isinstance(effect, Hint) and self.tools.prefetch is not None:
                self.tools.prefetch(effect.query)

    # -- what a question may ask ----------------------------------------------------------

    def _count_tokens(self, active: list[_Open]) -> dict[str, int]:
        """Tokens of every text that this tick would send to the generator."""
        calls = [e for q in active for e in q.effects if isinstance(e, LLM | Choice)]
        if not calls:
            return {}
        texts = list(dict.fromkeys(t for e in calls for t in _texts(e)))
        counts = self.tools.for_effect(calls[0]).count_tokens(texts)
        return dict(zip(texts, counts, strict=True))

    def _refusal(self, q: _Open, lengths: dict[str, int]) -> Exception | None:
        """What to throw at the question instead of running its effects, if anything."""
        calls = [e for e in q.effects if isinstance(e, LLM | Choice)]
        need = [_most_tokens(e, lengths) for e in calls]
        context = self.tools.generator.context if calls else None
        if context is not None and max(need) > context:
            return QuarryError(
                f"a prompt and its completion may take {max(need)} tokens, the model's context "
                f"has {context}: show fewer or shorter passages."
            )
        units = {e.unit for e in q.effects if isinstance(e, Search)}
        used, budget = q.counts, self.budget
        for name, limit, would_use, asked in (
            ("rounds", budget.max_rounds, used.rounds + 1, units),
            # room for one passage is enough: _deliver leaves out what is too many
            ("docs", budget.max_docs, used.docs + 1, "passage" in units),
            ("llm_calls", budget.max_llm_calls, used.llm_calls + len(calls), calls),
            ("tokens", budget.max_tokens, used.tokens_in + used.tokens_out + sum(need), calls),
        ):
            if asked and limit is not None and would_use > limit:
                return BudgetSpent(name)
        return None

    def _refuse(self, q: _Open, refusal: Exception) -> None:
        """Throw it at the strategy; the second time at the same limit is the question's end."""
        if isinstance(refusal, BudgetSpent):
            if refusal.limit in q.refused:
                q.end = Outcome(stop_reason=f"budget_{q.refused[0]}")
                return
            q.refused.append(refusal.limit)
        self.advance(q, lambda steps: steps.throw(refusal))

    def _number(self, q: _Open) -> list[_Step | None]:
        """The question's effects, numbered on, with their keys; None for a hint."""
        steps: list[_Step | None] = []
        for effect in q.effects:
            if isinstance(effect, Hint):
                steps.append(None)
                continue
            if isinstance(effect, LLM):
                draws = effect.request.temperature > 0
                drawn = digest(str(self.seed), q.qid, str(q.n_effects)) if draws else "0"
                effect = LLM(effect.request._replace(seed=int(drawn, 16) % 2**63))
            kind, request = type(effect).__name__, write_request(effect)
            made_by = self.tools.for_effect(effect).fingerprint
            key = digest("loop", VERSION, kind, made_by, request)
            steps.append(_Step(q.qid, q.n_effects, effect, request, key))
            q.n_effects += 1
        return steps

    # -- results: from a log, from the cache, computed ------------------------------------

    def _recall(self, steps: list[_Step]) -> dict[str, Any]:
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

    def _perform(self, kind: type, group: list[_Step], known: dict[str, Any]) -> None:
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
                for i, value in self.tools.run([todo[k] for k in keys]):
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

    # -- back to the question -------------------------------------------------------------

    def _deliver(
        self, q: _Open, asked: list[_Step | None], known: dict[str, Any], lengths: dict[str, int]
    ) -> list[Any]:
        """The question's results in the order it asked; counted and logged, but for refusals."""
        results: list[Any] = []
        q.counts.rounds += any(isinstance(e, Search) for e in q.effects)
        for step in asked:
            value, tokens = (known[step.key], (0, 0)) if step else (None, (0, 0))
            if isinstance(value, Refused):
                results.append(value)
                continue
            match step.effect if step else None:
                case LLM():
                    tokens = (value.tokens_in, value.tokens_out)
                    q.counts.llm_calls += 1
                case Choice() as choice:
                    tokens = (_most_tokens(choice, lengths), 0)
                    q.counts.llm_calls += 1
                case Search():
                    q.counts.searches += 1
            q.counts.tokens_in += tokens[0]
            q.counts.tokens_out += tokens[1]
            if step and self.trace:
                self.rows.append(_log_row(step, value, *tokens))
            if step and isinstance(step.effect, Search) and step.effect.unit == "passage":
                value = _with_room(value, q.seen, self.budget.max_docs)
                q.counts.docs = len(q.seen)
            results.append(value)
        return results


def _check_effects(effects: list[Any]) -> None:
    """An error for what no tool could run."""
    for effect in effects:
        if not isinstance(effect, Effect):
            raise TypeError(f"a strategy yields effects or lists of them, not {effect!r:.60}")
        if isinstance(effect, Choice) and not effect.options:
            raise ValueError("a choice needs one option or more")
        if isinstance(effect, Search) and effect.k < 1:
            raise ValueError(f"a search needs k of 1 or more, not {effect.k}")


def _texts(call: LLM | Choice) -> list[str]:
    """What the generator reads."""
    return [call.request.prompt] if isinstance(call, LLM) else [call.prompt, *call.options]


def _most_tokens(call: LLM | Choice, lengths: dict[str, int]) -> int:
    """The most tokens that a call can take; of a choice, what it takes."""
    room = call.request.max_tokens if isinstance(call, LLM) else 0
    return sum(lengths[t] for t in _texts(call)) + room


def _with_room(hits: list[Hit], seen: set[str], most: int | None) -> list[Hit]:
    """Hits seen before, and new ones as long as there is room; ``seen`` grows by those."""
    kept = []
    for hit in hits:
        if hit.docid in seen or most is None or len(seen) < most:
            seen.add(hit.docid)
            kept.append(hit)
    return kept


def _log_row(step: _Step, value: Any, tokens_in: int, tokens_out: int) -> dict[str, Any]:
    """A row of the effect log: what the tool gave back, before any budget cut it."""
    return {
        "qid": step.qid, "effect_no": step.no, "kind": type(step.effect).__name__,
        "key": step.key, "request": step.request, "result": write_result(step.effect, value),
        "tokens_in": tokens_in, "tokens_out": tokens_out,
    }  # fmt: skip


def _read_log(effects: pa.Table | None) -> dict[tuple[str, int], tuple[str, str]]:
    """(qid, effect_no) -> (key, result)."""
    columns = ("qid", "effect_no", "key", "result")
    rows = [] if effects is None else effects.select(columns).to_pylist()
    return {(r["qid"], r["effect_no"]): (r["key"], r["result"]) for r in rows}
