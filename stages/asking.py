"""One question on its way: what it asks for, what it may still ask, what it is told.

The part of the loop engine that knows nothing of batches. ``stages.loop`` moves all questions
in ticks; a service moves each one when its results are there. Budgets, keys, seeds and counts
are the same in both.
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from pydantic import NonNegativeInt

from stages.digest import digest
from stages.effects import (
    LLM,
    BudgetSpent,
    Choice,
    Effect,
    Hint,
    Outcome,
    Search,
    Steps,
    Walked,
    write_request,
)
from stages.errors import QuarryError, Refused
from stages.params import Entry
from stages.tools import Tools
from stages.types import Hit

log = logging.getLogger(__name__)

VERSION = "2"  # of what an effect means and of its record; part of every key


class Budget(Entry):
    """Limits of one question, kept by the engine; none is no limit."""

    max_rounds: NonNegativeInt | None = None  # yields with a search in them
    max_docs: NonNegativeInt | None = None  # distinct passages
    max_llm_calls: NonNegativeInt | None = None  # generations and choices
    max_tokens: NonNegativeInt | None = None  # read and written by the generator, in walks too


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


class Step(NamedTuple):
    """An effect on its way: whose it is, its number there, its content's key.

    Effects that were yielded together share ``turn``, the number of the first of them.
    """

    qid: str
    no: int
    turn: int
    effect: Effect
    request: str
    key: str


@dataclass(slots=True)
class OpenQuestion:
    """A question that is being worked on."""

    qid: str
    steps: Steps
    effects: list[Effect] = field(default_factory=list)  # what it waits for
    single: bool = True  # it yielded one effect, not a list
    counts: Counts = field(default_factory=Counts)
    n_effects: int = 0  # numbered so far
    seen: set[str] = field(default_factory=set)  # docids of passages
    refused: list[str] = field(default_factory=list)  # limits it ran into; walk: of a search
    end: Outcome | None = None
    error: str = ""

    @property
    def answered(self) -> Answered:
        """Its end, once there is one."""
        return Answered(self.qid, self.end or Outcome(), self.counts, self.error)


class Asking(NamedTuple):
    """What all questions of a run have in common."""

    tools: Tools
    seed: int = 0
    budget: Budget = NO_LIMIT

    def advance(self, q: OpenQuestion, resume: Callable[[Steps], Any]) -> None:
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

    def count_tokens(self, effects: list[Effect]) -> dict[str, int]:
        """Tokens of every text that these effects would send to the generator."""
        calls = [e for e in effects if isinstance(e, LLM | Choice)]
        if not calls:
            return {}
        texts = list(dict.fromkeys(t for e in calls for t in _texts(e)))
        counts = self.tools.for_effect(calls[0]).count_tokens(texts)
        return dict(zip(texts, counts, strict=True))

    def refusal(self, q: OpenQuestion, lengths: Mapping[str, int]) -> Exception | None:
        """What to throw at the question instead of running its effects, if anything."""
        calls = [e for e in q.effects if isinstance(e, LLM | Choice)]
        need = [_most_tokens(e, lengths) for e in calls]
        context = self.tools.generator.context if calls else None
        if context is not None and max(need) > context:
            return QuarryError(
                f"a prompt and its completion may take {max(need)} tokens, the model's context "
                f"has {context}: show fewer or shorter passages."
            )
        units = [e.unit for e in q.effects if isinstance(e, Search)]
        walks = self.tools.search_tokens * units.count("passage")
        used, budget = q.counts, self.budget
        tokens = used.tokens_in + used.tokens_out + sum(need) + walks
        for name, limit, would_use, asked in (
            ("rounds", budget.max_rounds, used.rounds + 1, units),
            # room for one passage is enough: ``deliver`` leaves out what is too many
            ("docs", budget.max_docs, used.docs + 1, "passage" in units),
            ("llm_calls", budget.max_llm_calls, used.llm_calls + len(calls), calls),
            ("tokens", budget.max_tokens, tokens, calls or walks),
        ):
            if asked and limit is not None and would_use > limit:
                return BudgetSpent(name)
        return None

    def refuse(self, q: OpenQuestion, refusal: Exception) -> None:
        """Throw it at the strategy; the third time at the same limit is the question's end."""
        if isinstance(refusal, BudgetSpent):
            if q.refused.count(refusal.limit) == 2:
                q.end = Outcome(stop_reason=f"budget_{q.refused[0]}")
                return
            q.refused.append(refusal.limit)
        self.advance(q, lambda steps: steps.throw(refusal))

    def number(self, q: OpenQuestion) -> list[Step | None]:
        """The question's effects, numbered on, with their keys; None for a hint."""
        steps: list[Step | None] = []
        turn = q.n_effects
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
            steps.append(Step(q.qid, q.n_effects, turn, effect, request, key))
            q.n_effects += 1
        return steps

    def deliver(
        self, q: OpenQuestion, asked: list[Step | None], known: Mapping[str, Any],
        lengths: Mapping[str, int],
    ) -> None:  # fmt: skip
        """Count what the question's effects gave, and send it the results in its own order.

        A call that the model's server refused is not counted; the refusal is thrown instead.
        """
        results: list[Any] = []
        q.counts.rounds += any(isinstance(e, Search) for e in q.effects)
        for step in asked:
            value = known[step.key] if step else None
            if step and not isinstance(value, Refused):
                tokens_in, tokens_out = tokens_of(step, value, lengths)
                q.counts.llm_calls += isinstance(step.effect, LLM | Choice)
                q.counts.searches += isinstance(step.effect, Search)
                q.counts.tokens_in += tokens_in
                q.counts.tokens_out += tokens_out
                if isinstance(step.effect, Search) and step.effect.unit == "passage":
                    if isinstance(value, Walked) and value.cost.cut:
                        q.refused.append("walk")
                    value = _with_room(value, q.seen, self.budget.max_docs)
                    q.counts.docs = len(q.seen)
            results.append(value)
        if refused := [r for r in results if isinstance(r, Refused)]:
            self.refuse(q, refused[0])
        else:
            sent = results[0] if q.single else results
            self.advance(q, lambda steps: steps.send(sent))


def tokens_of(step: Step, value: Any, lengths: Mapping[str, int]) -> tuple[int, int]:
    """Tokens that an effect read and wrote."""
    match step.effect:
        case LLM():
            return value.tokens_in, value.tokens_out
        case Choice() as choice:
            return _most_tokens(choice, lengths), 0
        case Search(unit="passage") if isinstance(value, Walked):
            return value.cost.tokens, 0
    return 0, 0


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


def _most_tokens(call: LLM | Choice, lengths: Mapping[str, int]) -> int:
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
