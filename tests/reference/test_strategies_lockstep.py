"""Lock-step: a strategy gives in a batch what it gives alone, with a model that reads and writes.

Texts, chosen options, samples, rankings, costs and stop reasons: the answers and the whole effect
log, for batches of 1, 4 and 16 and for any order. Once with a tiny random model, whose texts
wander; once, slowly, with SmolLM2.
"""

import functools
import random
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from language_models import smollm2
from strategy_worlds import LOOPS, name_of
from test_strategies_reductions import CHOICES, QUESTIONS, World

from stages.effects import LLM, Choice, Question
from stages.index import Inputs, layout, open_index, suffixes
from stages.loop import Loop
from stages.serve.strategies import freeson
from stages.serve.traverse.retriever import walking
from stages.serve.traverse.walk import Walk
from stages.tools import Tools

# The second question, the fourth ... have options.
ALTERNATING = [pair[i % 2] for i, pair in enumerate(zip(QUESTIONS, CHOICES, strict=True))]
ASKED = ALTERNATING[:5]
SIXTEEN = ALTERNATING + [
    q._replace(qid=f"{q.qid}'s river", text=f"What flows through {q.qid}?") for q in QUESTIONS[:7]
]
SHORT = {  # two rounds or three, and few words: the sums over all of this are minutes else
    "adaptive_note": {"steps": 1, "note_tokens": 32, "proposal_tokens": 16},
    "flare": {"sentences": 2, "sentence_tokens": 32},
    "freeson": {"max_search": 2, "thought_tokens": 24},
    "hyde": {"hypotheses": 2, "hypothesis_tokens": 30},
    "ircot": {"sentences": 2, "sentence_tokens": 32},
    "iterative": {"rounds": 2},
    "kirag": {"rounds": 2, "choices": 8, "item_tokens": 24},
    "subquestions": {"subquestion_tokens": 48},
}
WALKS, SEAL = "freeson that walks", "freeson that walks, ranked by SEAL's scores"
METHODS = {name_of(m): m for m in LOOPS} | {WALKS: freeson, SEAL: freeson}
BATCHES = [(1, 1), (4, 3), (16, 64)]  # requests of a call, questions at once
WALK = Walk(simulations=3, granularity=3, depth=3, verify_tokens=8)


class Lockstep:
    """The nine cities with a model, and what every strategy does when all questions are asked."""

    def __init__(
        self, folder: Path, model: Path | None = None, *, asked: Sequence[Question] = ASKED,
        **values: Any,
    ) -> None:  # fmt: skip
        self.world, self.asked, self.values = World(folder, model), asked, values
        slots = dict(kind="suffixes", corpus="c", model="m", centroids="none", triples="none")
        made = suffixes.build(
            self.world.passages, suffixes.Params(**slots), Inputs(None, self.world.model)
        )
        self.suffixes = folder / "suffixes"
        self.suffixes.mkdir()
        layout.write_index(self.suffixes, "suffixes", made)
        self.expected = functools.cache(self.serve)

    def tools(self, name: str) -> Tools:
        """Tools that remember no walk."""
        if name not in (WALKS, SEAL):
            return self.world.tools
        tools = self.world.tools._replace(retriever=open_index(self.suffixes))
        walk = WALK.model_copy(update={"doc_score": "seal" if name == SEAL else "maxq"})
        return walking(tools, walk, None, seed=13)

    def serve(self, name: str, **how: Any) -> Loop:
        method: ModuleType = METHODS[name]
        values = SHORT.get(name_of(method), {}) | self.values
        questions = how.pop("questions", self.asked)
        tools = how.pop("tools", None) or self.tools(name)
        return self.world.serve(method, questions, tools=tools, **how, **values)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Lockstep:
    return Lockstep(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def real(tmp_path_factory) -> Lockstep:
    short = {"prompt_tokens": 400, "max_tokens": 6}
    return Lockstep(tmp_path_factory.mktemp("real"), smollm2(), **short)


def assert_equal_in(lockstep: Lockstep, name: str, batch: int, at_once: int) -> Loop:
    expected = lockstep.expected(name)
    shuffled = random.Random(batch).sample(lockstep.asked, len(lockstep.asked))
    assert shuffled != lockstep.asked
    loop = lockstep.serve(name, questions=shuffled, batch=batch, max_active=at_once)
    assert loop.answered == expected.answered
    assert loop.effects.equals(expected.effects)
    return loop


@pytest.mark.parametrize(("batch", "at_once"), BATCHES, ids=[str(b) for b, _ in BATCHES])
@pytest.mark.parametrize("name", METHODS)
def test_any_batch_and_any_order_give_what_all_at_once_gives(tiny, name, batch, at_once) -> None:
    loop = assert_equal_in(tiny, name, batch, at_once)
    assert all(a.error == "" and a.outcome.stop_reason for a in loop.answered)
    kinds = set(loop.effects["kind"].to_pylist())
    assert {LLM.__name__, Choice.__name__} <= kinds, "texts and options are compared"
    sizes = [t.n_unique / t.n_batches for t in loop.ticks if t.n_batches]
    assert max(sizes) <= batch and (max(sizes) > 1 or batch == 1)


def assert_equal_among_sixteen(lockstep: Lockstep, name: str) -> None:
    expected = lockstep.expected(name)
    loop = lockstep.serve(name, questions=SIXTEEN, batch=16)
    own = {q.qid for q in lockstep.asked}
    assert [a for a in loop.answered if a.qid in own] == expected.answered
    among = [qid in own for qid in loop.effects["qid"].to_pylist()]
    assert loop.effects.filter(among).equals(expected.effects)
    assert max(t.n_unique / t.n_batches for t in loop.ticks if t.n_batches) == 16


@pytest.mark.parametrize("name", METHODS)
def test_a_full_batch_of_sixteen_questions_gives_what_five_give(tiny, name) -> None:
    assert_equal_among_sixteen(tiny, name)


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_so_does_one_with_smollm2(real, name) -> None:
    assert_equal_among_sixteen(real, name)


@pytest.mark.slow
@pytest.mark.parametrize(("batch", "at_once"), BATCHES, ids=[str(b) for b, _ in BATCHES])
@pytest.mark.parametrize("name", METHODS)
def test_so_it_is_with_smollm2(real, name, batch, at_once) -> None:
    loop = assert_equal_in(real, name, batch, at_once)
    assert all(a.error == "" for a in loop.answered)


@pytest.mark.parametrize("name", METHODS)
def test_a_full_log_replays_without_a_call_of_model_or_index(tiny, name) -> None:
    class Silent:
        def __init__(self, tool: Any) -> None:
            self.fingerprint, self.context = tool.fingerprint, getattr(tool, "context", None)
            self.count_tokens = getattr(tool, "count_tokens", None)

    first = tiny.expected(name)
    silent = Tools(*map(Silent, tiny.tools(name)[:3]))
    again = tiny.serve(name, tools=silent, replay=first.effects)
    assert again.answered == first.answered and again.effects.equals(first.effects)
