"""Reductions on shipped text: FanOutQA's corpus and questions, real BM25, every prompt in the log.

The model is a fake whose reply is a passage's title, drawn by the digest of its prompt: a query
that it writes finds something, and two logs are equal only where every prompt is, to the letter.
The same cases with a model that samples and chooses stand in ``test_strategies_reductions``, over
nine cities.
"""

from collections.abc import Mapping
from functools import partial
from types import ModuleType
from typing import Any

import pyarrow as pa
import pytest
from index_worlds import built, opened
from ingest_corpora import ingest
from loop_fakes import FakeLLM
from strategy_worlds import name_of, params_of

from stages.digest import uniform
from stages.loop import Loop, run_loop
from stages.serve.asked import Library, pick_questions
from stages.serve.strategies import (
    adaptive_note,
    freeson,
    hyde,
    ircot,
    iter_retgen,
    iterative,
    rag,
    rar2,
    rfm_rag,
    self_rag,
)
from stages.thoughts import think_prompt
from stages.tools import Tools

PASSAGES = 4


class Wide(FakeLLM):
    context = 100_000


class World:
    """Twelve of FanOutQA's questions over its corpus."""

    def __init__(self, folder) -> None:
        corpus = ingest(
            "fanoutqa", folder / "none", folder / "records", chunk={"mode": "none"},
            dedup={"mode": "off"},
        )  # fmt: skip
        self.passages: pa.Table = corpus.tables["passages"]
        self.questions = pick_questions(corpus.tables["queries"], "all", 12)
        self.index = opened(built(folder, "bm25", self.passages))
        self.titles = self.passages["title"].to_pylist()

    def serve(self, method: ModuleType, *, says: Mapping[str, str] = {}, **values: Any) -> Loop:
        """``says``: what the model replies to these prompts."""

        def reply(prompt: str) -> str:
            return says.get(prompt, self.titles[int(uniform(prompt) * len(self.titles))])

        llm = Wide(reply)
        library = Library(self.passages, llm.count_tokens)
        params = params_of(method, **{"passages": PASSAGES, "k": 20, **values})
        strategy = partial(method.strategy, params=params, library=library)
        loop = run_loop(strategy, self.questions, Tools(llm, self.index))
        assert not any(a.error for a in loop.answered)
        return loop


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> World:
    return World(tmp_path_factory.mktemp("fanoutqa"))


@pytest.fixture(scope="module")
def one_shot(world) -> Loop:
    loop = world.serve(rag)
    assert all(len(a.outcome.docids) == PASSAGES and a.outcome.hits for a in loop.answered)
    assert len({a.outcome.answer for a in loop.answered}) > 9 and world.passages.num_rows > 2000
    return loop


def found(loop: Loop) -> list[tuple]:
    """Answer, what was shown, ranked documents."""
    return [
        (a.outcome.answer, list(a.outcome.docids), [h.docid for h in a.outcome.hits])
        for a in loop.answered
    ]


OFF = [
    (freeson, {"max_search": 1}),
    (rar2, {"n": 0}),
    (rar2, {"n": 0, "mode": "iterative"}),
    (rar2, {"n": 0, "mode": "parallel", "fuse": "rrf"}),
    (iter_retgen, {"rounds": 1}),
    (iterative, {"rounds": 0}),
    (ircot, {"sentences": 0, "one_per_title": False}),
    (hyde, {"hypotheses": 0, "combine": "text"}),
    (self_rag, {"delta": 0.0}),
]
ON = [
    (freeson, {"max_search": 2}),
    (rar2, {"n": 1}),
    (rfm_rag, {"rounds": 2, "mode": "symbolic", "judge": "always_continue"}),
    (iter_retgen, {"rounds": 2}),
]


@pytest.mark.parametrize(("method", "off"), OFF, ids=[name_of(m) for m, _ in OFF])
def test_switched_off_it_is_one_shot_rag(world, one_shot, method, off) -> None:
    loop = world.serve(method, **off)
    assert loop.effects.equals(one_shot.effects)
    for a, b in zip(loop.answered, one_shot.answered, strict=True):
        assert a.outcome._replace(memory="") == b.outcome


@pytest.mark.parametrize(("method", "on"), ON, ids=[name_of(m) for m, _ in ON])
def test_switched_on_it_is_not(world, one_shot, method, on) -> None:
    """What the reductions above would miss: a method that never does more than one search."""
    loop = world.serve(method, **on)
    assert not loop.effects.equals(one_shot.effects) and found(loop) != found(one_shot)


def test_freeson_without_a_search_is_the_closed_book_reader(world) -> None:
    never, closed = world.serve(freeson, max_search=0), world.serve(rag, passages=0)
    assert never.effects.equals(closed.effects)
    assert [a.outcome.hits for a in never.answered] == [[]] * len(world.questions)


def test_rfm_rag_of_one_round_is_one_shot_rag_but_for_what_says_the_same_twice(
    world, one_shot
) -> None:
    """Two passages of nearly the same words are one piece of evidence; the corpus has some."""
    loop = world.serve(rfm_rag, rounds=1, mode="symbolic", judge="coverage")
    same = []
    for a, b in zip(loop.answered, one_shot.answered, strict=True):
        assert a.outcome.hits == b.outcome.hits and a.counts.searches == b.counts.searches == 2
        assert list(a.outcome.docids) == [d for d in b.outcome.docids if d in a.outcome.docids]
        same.append(len(a.outcome.docids) == PASSAGES)
        assert not same[-1] or (a.outcome.answer == b.outcome.answer and a.counts == b.counts)
    assert sum(same) >= 8 and not all(same)


@pytest.mark.parametrize("judge", ["coverage", "llm"])
@pytest.mark.parametrize("mode", ["symbolic", "llm"])
def test_rfm_rag_at_tau_0_is_one_round(world, mode, judge) -> None:
    how = {"mode": mode, "judge": judge}
    at_once, one = world.serve(rfm_rag, tau=0.0, **how), world.serve(rfm_rag, rounds=1, **how)
    assert at_once.effects.equals(one.effects)
    assert {a.outcome.stop_reason for a in at_once.answered} == {"judge"}
    assert all(a.counts.rounds == 1 for a in at_once.answered)


def test_rfm_rag_above_tau_1_stops_for_no_judgement(world) -> None:
    """Then the coverage of a pool never ends it: it goes on as if nobody judged."""
    strict = world.serve(rfm_rag, mode="symbolic", judge="coverage", tau=1.5, patience=99)
    never = world.serve(rfm_rag, mode="symbolic", judge="always_continue", patience=99)
    assert strict.effects.equals(never.effects) and found(strict) == found(never)
    assert max(a.counts.rounds for a in strict.answered) > 1
    assert "judge" not in {a.outcome.stop_reason for a in strict.answered}


@pytest.mark.parametrize("writer", ["llm", "extractive"])
def test_adaptive_note_without_a_step_reads_a_note_of_the_one_search(
    world, one_shot, writer
) -> None:
    """The same search; a written note is one call more, an extractive one none."""
    loop = world.serve(adaptive_note, steps=0, writer=writer, compare="margin", temperature=0.0)
    for a, b in zip(loop.answered, one_shot.answered, strict=True):
        assert (a.outcome.docids, a.outcome.hits) == (b.outcome.docids, b.outcome.hits)
        assert a.counts.llm_calls == b.counts.llm_calls + (writer == "llm")
        assert a.outcome.memory and a.outcome.stop_reason == "fixed"
    searched = [e for e in loop.effects.to_pylist() if e["kind"] == "Search"]
    assert [e["result"] for e in searched] == [
        e["result"] for e in one_shot.effects.to_pylist() if e["kind"] == "Search"
    ]


def test_adaptive_note_with_no_room_for_a_step_takes_none(world) -> None:
    how = {"writer": "extractive", "compare": "margin"}
    none = world.serve(adaptive_note, steps=0, **how)
    full = world.serve(adaptive_note, steps=3, most_passages=PASSAGES, **how)
    assert full.effects.equals(none.effects) and found(full) == found(none)
    assert {a.outcome.stop_reason for a in full.answered} == {"budget_docs"}
    more = world.serve(adaptive_note, steps=3, **how)
    assert found(more) != found(none)


@pytest.mark.parametrize(
    "how",
    [
        {},
        {"mode": "parallel", "n": 3, "fuse": "rrf"},
    ],
    ids=["one thought", "three, fused"],
)
def test_rar2_that_thinks_the_question_is_one_shot_rag(world, one_shot, how) -> None:
    """Equal thoughts give equal rankings, and their fusion is the ranking."""
    thinks = {think_prompt(q.text, [], [], "best_last"): q.text for q in world.questions}
    loop = world.serve(rar2, says=thinks, **how)
    assert found(loop) == found(one_shot)
    assert all(a.counts.llm_calls == how.get("n", 1) + 1 for a in loop.answered)


def test_rar2_whose_thoughts_say_nothing_is_one_shot_rag(world, one_shot) -> None:
    silent = {think_prompt(q.text, [], [], "best_last"): " " for q in world.questions}
    loop = world.serve(rar2, says=silent)
    assert found(loop) == found(one_shot)
    assert {a.outcome.stop_reason for a in loop.answered} == {"no_query"}
