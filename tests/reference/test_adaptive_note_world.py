"""Adaptive-Note's extractive form on the made world with real BM25: what its card says must show.

No model: the reader is a fake, and what is compared is what was found.
"""

from functools import partial
from types import ModuleType
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from index_worlds import built, opened
from ingest_corpora import ingest
from loop_fakes import FakeLLM
from strategy_worlds import params_of

from stages.effects import Question
from stages.loop import Answered, run_loop
from stages.serve.asked import Library
from stages.serve.strategies import adaptive_note, rag
from stages.tools import Tools

HONEST = {"writer": "extractive", "compare": "margin", "passages": 3}


class Wide(FakeLLM):
    context = 10_000


class World:
    """100 questions over their corpus."""

    def __init__(self, folder) -> None:
        corpus = ingest(
            "world", folder / "none", folder / "records", seed=13, entities=300,
            questions={"train": 0, "dev": 100, "test": 0}, dedup={"mode": "off"},
        )  # fmt: skip
        self.passages: pa.Table = corpus.tables["passages"]
        self.asked = corpus.tables["queries"].to_pylist()
        self.support: dict[str, set[str]] = {}
        for row in corpus.tables["qrels"].to_pylist():
            self.support.setdefault(row["qid"], set()).add(f"{row['docid']}#0")
        self.index = opened(built(folder, "bm25", self.passages))

    def serve(self, method: ModuleType, **values: Any) -> list[Answered]:
        llm = Wide()
        library = Library(self.passages, llm.count_tokens)
        strategy = partial(method.strategy, params=params_of(method, **values), library=library)
        questions = [Question(q["qid"], q["text"]) for q in self.asked]
        answered = run_loop(strategy, questions, Tools(llm, self.index)).answered
        assert not any(a.error for a in answered)
        return answered

    def recall(self, answered: list[Answered]) -> np.ndarray:
        """The share of each question's support that was read."""
        return np.array([
            len(self.support[a.qid] & set(a.outcome.docids)) / len(self.support[a.qid])
            for a in answered
        ])  # fmt: skip


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> World:
    return World(tmp_path_factory.mktemp("world"))


def steps(a: Answered) -> int:
    return a.outcome.memory.count("\n")


def test_the_note_finds_more_support_than_one_search_of_as_many_passages(world) -> None:
    loop = world.serve(adaptive_note, **HONEST)
    n = np.mean([len(a.outcome.docids) for a in loop])
    once = world.serve(rag, passages=int(np.ceil(n)))
    assert world.recall(loop).mean() > world.recall(once).mean() + 0.02
    fifteen = world.serve(rag, passages=15)  # all that the budget would allow
    assert n < 9 and world.recall(loop).mean() > world.recall(fifteen).mean()


def test_the_reviewer_stops_it_before_its_steps_are_spent(world) -> None:
    loop = world.serve(adaptive_note, **HONEST)
    assert np.mean([steps(a) for a in loop]) < 3 - 0.2
    assert sum(a.outcome.stop_reason == "fails" for a in loop) > 80
    most = world.serve(adaptive_note, **HONEST | {"compare": "always"}, steps=9)
    assert np.mean([a.counts.rounds for a in most]) > 2 * np.mean([a.counts.rounds for a in loop])


def test_without_steps_it_finds_what_one_search_finds(world) -> None:
    none, once = world.serve(adaptive_note, **HONEST, steps=0), world.serve(rag, passages=3)
    for a, b in zip(none, once, strict=True):
        assert a.outcome.docids == b.outcome.docids[::1] and a.outcome.hits == b.outcome.hits


@pytest.mark.parametrize("stop", ["note", "deepnote", "never"])
def test_a_patient_stop_finds_no_less(world, stop) -> None:
    """Each rule's searches begin with those of a stricter one."""
    note = world.serve(adaptive_note, **HONEST)
    patient = world.serve(adaptive_note, **HONEST, stop=stop)
    for a, b in zip(note, patient, strict=True):
        assert set(a.outcome.docids) <= set(b.outcome.docids)
        assert steps(a) <= steps(b) <= 3
