"""Reductions on real BM25: with a part of it switched off, a strategy is a simpler one.

Equal means the whole effect log: what was asked of index and model, and what came back.
"""

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from facts_worlds import WordVectors, facts_of
from index_worlds import built, opened, passages_of
from language_models import tiny_lm
from strategy_worlds import params_of

from stages.effects import LLM, Question
from stages.errors import QuarryError
from stages.lm import open_generator
from stages.loop import Loop, run_loop
from stages.serve.asked import Library
from stages.serve.strategies import (
    flare,
    hyde,
    ircot,
    iter_retgen,
    iterative,
    kirag,
    rag,
    rar2,
    rfm_rag,
    self_rag,
)
from stages.tools import Tools

CITIES = {
    "Lyon": "France", "Turin": "Italy", "Porto": "Portugal", "Graz": "Austria", "Bergen": "Norway",
    "Gdansk": "Poland", "Ghent": "Belgium", "Basel": "Switzerland", "Malaga": "Spain",
}  # fmt: skip
QUESTIONS = [Question(city, f"In which country is the city of {city}?") for city in CITIES]
CHOICES = [q._replace(options=("Italy", "Spain", "Norway", "a river")) for q in QUESTIONS]


class World:
    """Nine cities in two passages each, BM25, a tiny random model that wanders, or another."""

    def __init__(self, folder: Path, model: Path | None = None) -> None:
        self.passages = passages_of({
            f"{city}#{i}": (city, text)
            for city, country in CITIES.items()
            for i, text in enumerate([f"{city} is a city in {country}.", f"{city} has a river."])
        })  # fmt: skip
        self.folder = folder
        index = opened(built(folder, "bm25", self.passages))
        self.model = model or tiny_lm(folder / "lm", context=4096)
        generator = open_generator(self.model)
        self.tools = Tools(generator, index, WordVectors())
        self.facts = facts_of({
            f"{city}#{i}": [[(city, "is a city in", country)], [(city, "has", "river")]][i]
            for city, country in CITIES.items()
            for i in range(2)
        })  # fmt: skip
        self.library = Library(self.passages, generator.count_tokens, facts=self.facts)

    def serve(
        self, method: Any, questions=QUESTIONS, *, tools=None, library=None, replay=None,
        batch=None, max_active=64, **values,
    ) -> Loop:  # fmt: skip
        # one token is one byte here
        params = params_of(method, **{"k": 5, "prompt_tokens": 3000, **values})
        strategy = partial(method.strategy, params=params, library=library or self.library)
        how = {"replay": replay, "batch": batch, "max_active": max_active}
        return run_loop(strategy, questions, tools or self.tools, **how)


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> World:
    return World(tmp_path_factory.mktemp("world"))


@pytest.mark.parametrize("questions", [QUESTIONS, CHOICES], ids=["free", "options"])
@pytest.mark.parametrize(
    ("method", "off"),
    [
        (iter_retgen, {"rounds": 1}),
        (iterative, {"rounds": 0}),
        (ircot, {"sentences": 0, "one_per_title": False}),
        (rfm_rag, {"rounds": 1, "mode": "symbolic", "judge": "coverage"}),
        (hyde, {"hypotheses": 0, "combine": "text"}),
        (self_rag, {"delta": 0.0}),
        (rar2, {"n": 0}),
    ],
    ids=lambda x: getattr(x, "__name__", "").rpartition(".")[2],
)
def test_switched_off_it_is_one_shot_rag(world, method, off, questions) -> None:
    simple = world.serve(rag, questions, passages=4)
    loop = world.serve(method, questions, passages=4, **off)
    assert loop.effects.equals(simple.effects)
    for a, b in zip(loop.answered, simple.answered, strict=True):
        assert a.outcome._replace(memory="") == b.outcome and a.error == ""
    assert all(a.outcome.docids and a.outcome.hits and a.outcome.answer for a in loop.answered)


def test_self_rag_that_never_retrieves_is_the_closed_book_reader(world) -> None:
    never, closed = world.serve(self_rag, delta=1.0), world.serve(rag, passages=0)
    assert never.effects.equals(closed.effects)
    assert [a.outcome.hits for a in never.answered] == [[]] * len(CITIES)


def test_hyde_without_passages_is_dense_retrieval_with_the_question(world) -> None:
    made = built(world.folder, "flat", world.passages, max_tokens=32)
    tools = world.tools._replace(retriever=opened(made))
    dense = world.serve(rag, tools=tools, encoder="e")
    none = world.serve(hyde, tools=tools, encoder="e", combine="mean", hypotheses=0)
    assert none.effects.equals(dense.effects)
    some = world.serve(
        hyde, tools=tools, encoder="e", combine="mean", hypotheses=2, hypothesis_tokens=40
    )
    assert [a.outcome.hits for a in some.answered] != [a.outcome.hits for a in dense.answered]
    assert not any(a.error for a in some.answered)


def test_hyde_by_vectors_on_a_word_index_says_what_to_do(world) -> None:
    with pytest.raises(QuarryError, match="bm25 searches by words.*combine: text"):
        world.serve(
            hyde, QUESTIONS[:1], encoder="e", combine="mean", hypotheses=1, hypothesis_tokens=9
        )


@pytest.mark.parametrize("constructor", ["llm", "llm_choice", "aligner"])
def test_kirag_without_facts_is_one_shot_rag(world, constructor) -> None:
    none = facts_of({docid: [] for docid in world.passages["docid"].to_pylist()})
    library = Library(world.passages, world.tools.generator.count_tokens, facts=none)
    simple = world.serve(rag, passages=4)
    loop = world.serve(kirag, library=library, passages=4, found=4, constructor=constructor)
    for a, b in zip(loop.answered, simple.answered, strict=True):
        assert (a.outcome.answer, a.outcome.docids) == (b.outcome.answer, b.outcome.docids)
        ranked = [hit.docid for hit in b.outcome.hits]
        assert [hit.docid for hit in a.outcome.hits] == ranked and ranked
        assert a.outcome.stop_reason == "no_query" and a.counts.rounds == 1


def test_kirag_of_one_round_without_a_bonus_reranks_by_the_best_fact(world) -> None:
    """``aligner`` and not ``llm``: neither says anything that could change this ranking."""
    found = world.tools.retriever.search([q.text for q in QUESTIONS], 6)
    cosine = {}
    for question, hits in zip(QUESTIONS, found, strict=True):
        (u,) = WordVectors().encode([question.text], "query")
        scores = {h.docid: world.facts.score(u, world.facts.of([h.docid])).max() for h in hits}
        docs = {}
        for docid, score in scores.items():
            docs[docid[:-2]] = max(float(score), docs.get(docid[:-2], -1.0))
        cosine[question.qid] = sorted(((s, d) for d, s in docs.items()), reverse=True)
    for constructor in ("aligner", "llm"):
        values = {"constructor": constructor, "rounds": 1, "bonus": 0.0, "top": 99, "found": 6}
        for a in world.serve(kirag, k=9, **values).answered:
            best = [(h.score, h.docid) for h in a.outcome.hits[: len(cosine[a.qid])]]
            assert best == cosine[a.qid] and len(best) > 2


def sentences_asked(loop: Loop, qid: str) -> int:
    """How many look-aheads and sentences anew there were."""
    rows = loop.effects.select(["qid", "kind", "request"]).to_pylist()
    asked = [json.loads(r["request"]) for r in rows if (r["qid"], r["kind"]) == (qid, LLM.__name__)]
    return sum("doubt_below" in request for request in asked)


def test_flare_at_theta_0_searches_once_with_the_question(world) -> None:
    once = world.serve(rag, k=5)
    loop = world.serve(flare, theta=0.0, sentence_tokens=48, sentences=4)
    for a, b in zip(loop.answered, once.answered, strict=True):
        assert (a.counts.rounds, a.outcome.hits, a.outcome.docids) == (
            1, b.outcome.hits, b.outcome.docids
        )  # fmt: skip
    assert sum(sentences_asked(loop, a.qid) for a in loop.answered) > len(QUESTIONS)


def test_flare_above_theta_1_searches_at_every_sentence(world) -> None:
    """Every look-ahead but an empty one is followed by a search and its sentence anew."""
    loop = world.serve(flare, theta=1.5, sentence_tokens=48, sentences=3)
    for a in loop.answered:
        assert a.counts.rounds == 1 + sentences_asked(loop, a.qid) // 2 > 1
        n_said = 2 * (a.counts.rounds - 1)
        assert sentences_asked(loop, a.qid) in (n_said, n_said + 1)
