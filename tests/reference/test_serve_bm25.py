"""Reductions on real BM25: what a strategy must equal when a part of it is switched off."""

from functools import partial
from pathlib import Path

import bm25s
import pytest
import Stemmer
from language_models import tiny_lm
from rooms import run_room, write_params

from stages.effects import LLM, Outcome, Question, Search
from stages.index import open_index
from stages.lm import open_generator
from stages.loop import run_loop
from stages.prompts import STOP, rag_prompt
from stages.serve import asked, written
from stages.serve.strategies import rag, search
from stages.tables import read_table, table, write_table
from stages.tools import Tools
from stages.types import Request

CITIES = {
    "Lyon": "France", "Turin": "Italy", "Porto": "Portugal", "Graz": "Austria", "Bergen": "Norway",
    "Gdansk": "Poland", "Ghent": "Belgium", "Basel": "Switzerland", "Malaga": "Spain",
}  # fmt: skip
SLOTS = dict(corpus="c", index="words", encoder="none", triples="none", split="all")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """(tools, library, questions): nine cities in two passages each, BM25, a tiny random reader."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("world"))
        folder = Path("data/ingest/c")
        folder.mkdir(parents=True)
        rows = [
            dict(docid=f"{city}#{i}", parent=city, seq=i, title=city, text=text, start=0,
                 end=len(text), text_hash=f"{city}{i}")
            for city, country in CITIES.items()
            for i, text in enumerate([f"{city} is a city in {country}.", f"{city} has a river."])
        ]  # fmt: skip
        write_table(table("passages", rows), folder, "passages")
        entry = {"kind": "bm25", "corpus": "c", "model": "none", "centroids": "none"}
        write_params(index={"words": entry})
        run_room("index", "words")
        index = open_index(Path("data/index/words"))
        tools = Tools(open_generator(tiny_lm(Path("lm"), context=2048)), index)
        library = asked.Library(read_table(folder, "passages"), tools.generator.count_tokens)
        questions = [Question(c, f"In which country is the city of {c}?") for c in CITIES]
        yield tools, library, questions


def serve(world, strategy, questions=None):
    tools, _, all_questions = world
    return run_loop(strategy, questions or all_questions, tools)


def use(world, method, **values):
    fixed = {"strategy": method.__name__.rpartition(".")[2], **SLOTS}
    return partial(method.strategy, params=method.Params(**fixed, **values), library=world[1])


def test_search_gives_bm25s_own_ranking_collapsed_to_documents(world):
    run = written.write_run(serve(world, use(world, search, model="none", k=3)).answered, 3)
    rows = world[1]._table.to_pylist()
    stemmer = Stemmer.Stemmer("english")
    words = partial(bm25s.tokenize, stopwords="en", stemmer=stemmer, show_progress=False)
    peer = bm25s.BM25(k1=1.2, b=0.75)
    peer.index(words([f"{r['title']} {r['text']}" for r in rows]), show_progress=False)
    for question in world[2]:
        ours = [r for r in run.to_pylist() if r["qid"] == question.qid]
        scores = peer.get_scores(words([question.text], return_ids=False)[0])
        best = {r["docid"].partition("#")[0]: 0.0 for r in rows}
        for r, score in zip(rows, scores, strict=True):
            best[r["docid"].partition("#")[0]] = max(score, best[r["docid"].partition("#")[0]])
        ranked = sorted(best.items(), key=lambda x: (x[1], x[0]), reverse=True)[:3]
        assert [r["docid"] for r in ours] == [doc for doc, _ in ranked]
        assert [r["score"] for r in ours] == pytest.approx([s for _, s in ranked], rel=1e-5)


def test_the_run_of_rag_is_the_run_of_search(world):
    searched = serve(world, use(world, search, model="none", k=5)).answered
    answered = serve(world, use(world, rag, model="lm", k=5, passages=2)).answered
    assert written.write_run(answered, 5).equals(written.write_run(searched, 5))


def test_rag_without_passages_is_the_reader_alone(world):
    closed = serve(world, use(world, rag, model="lm", passages=0, max_tokens=12))
    prompts = [rag_prompt(q.text, []) for q in sorted(world[2])]
    alone = world[0].generator.generate([Request(p, 12, STOP) for p in prompts])
    assert [a.outcome.answer for a in closed.answered] == [g.text.strip() for g in alone]
    assert [a.counts.tokens_out for a in closed.answered] == [g.tokens_out for g in alone]
    assert written.write_run(closed.answered, 5).num_rows == 0


def iterative(question, *, rounds, world):
    """ITER-RETGEN's loop (Shao et al., 2023): search with the question and the last answer."""
    query, answer, shown = question.text, "", []
    for _ in range(rounds):
        hits = yield Search(query, 2)
        shown = world[1].passages([h.docid for h in hits])
        reply = yield LLM(Request(rag_prompt(question.text, shown), 12, STOP))
        answer = reply.text.strip()
        query = f"{question.text} {answer}"
    return Outcome(answer, docids=[p.docid for p in shown])


def test_one_round_of_a_loop_is_one_shot_rag(world):
    looped = serve(world, partial(iterative, rounds=1, world=world)).answered
    once = serve(world, use(world, rag, model="lm", passages=2, max_tokens=12)).answered
    for a, b in zip(looped, once, strict=True):
        assert (a.outcome.answer, a.outcome.docids) == (b.outcome.answer, b.outcome.docids)


def test_a_loop_on_64_questions_makes_5_times_fewer_batches_than_calls(world):
    questions = [Question(f"{q.qid}{i}", f"{q.text} {i}") for i in range(8) for q in world[2]][:64]
    loop = serve(world, partial(iterative, rounds=3, world=world), questions)
    llm = [t for t in loop.ticks if t.kind == "LLM"]
    assert sum(t.n_requests for t in llm) == 64 * 3
    assert sum(t.n_batches for t in llm) == 3 <= 64 * 3 / 5
