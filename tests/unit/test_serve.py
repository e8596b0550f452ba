"""The serve room: which questions, what each strategy asks for, what is written. Fakes only."""

import re
import sys
from functools import partial
from pathlib import Path

import pytest
from loop_fakes import FakeLLM, FakeSearch

from stages import shell
from stages.digest import uniform
from stages.effects import Outcome, Question
from stages.errors import QuarryError
from stages.loop import Answered, Counts, Loop, Tick, run_loop
from stages.prompts import STOP, rag_prompt
from stages.serve import STRATEGIES, __main__, asked, written
from stages.serve.strategies import rag, search
from stages.tables import empty_table, table
from stages.tools import Tools
from stages.types import Hit, Passage, Request

ROOT = Path(__file__).resolve().parents[2]
SLOTS = dict(corpus="c", index="i", encoder="none", triples="none", split="test")
N = 50  # passages


def rag_params(**values) -> rag.Params:
    return rag.Params(strategy="rag", model="m", **SLOTS, **values)


def passages():
    return table("passages", [
        dict(docid=f"d{i}#0", parent=f"d{i}", seq=0, title=f"T{i}", text=f"fact {i} " + "x " * 99,
             start=0, end=1, text_hash="h")
        for i in range(N)
    ])  # fmt: skip


def queries(n, **others):
    row = dict(split="test", answers=["a"], options=[], meta="{}") | others
    return table("queries", [row | dict(qid=f"q{i}", text=f"who is {i}?") for i in range(n)])


def serve(method, params, questions, tools=None):
    tools = tools or Tools(generator=FakeLLM(), retriever=FakeSearch(N))
    library = asked.Library(passages(), FakeLLM().count_tokens)
    loop = run_loop(partial(method.strategy, params=params, library=library), questions, tools)
    return loop, tools


# -- which questions --------------------------------------------------------------------------


def test_a_sample_is_the_questions_of_smallest_hash_in_order_of_qid():
    table_ = queries(40)
    picked = [q.qid for q in asked.pick_questions(table_, "test", 7)]
    smallest = sorted((f"q{i}" for i in range(40)), key=uniform)[:7]
    assert picked == sorted(smallest)
    assert asked.pick_questions(table_.take(list(range(39, -1, -1))), "test", 7) == (
        asked.pick_questions(table_, "test", 7)
    )
    assert set(picked) < {q.qid for q in asked.pick_questions(table_, "test", 8)}


def test_a_split_takes_its_own_and_all_takes_every_question():
    table_ = table("queries", [
        *queries(2).to_pylist(), *(r | {"qid": "t"} for r in queries(1, split="train").to_pylist()),
        *(r | {"qid": "u"} for r in queries(1, split="").to_pylist()),
    ])  # fmt: skip
    assert [q.qid for q in asked.pick_questions(table_, "train", None)] == ["t"]
    assert [q.qid for q in asked.pick_questions(table_, "all", None)] == ["q0", "q1", "t", "u"]


def test_a_split_has_any_name_and_an_unknown_one_says_which_there_are():
    table_ = table("queries", [
        *queries(2, split="validation").to_pylist(),
        *(r | {"qid": "u"} for r in queries(1, split="").to_pylist()),
    ])  # fmt: skip
    params = rag_params(passages=0).model_copy(update={"split": "validation"})
    assert rag.Params.model_validate(params.model_dump()) == params
    assert [q.qid for q in asked.pick_questions(table_, "validation", None)] == ["q0", "q1"]
    with pytest.raises(QuarryError, match=r": \(no split\) 1, validation 2; .*all 3"):
        asked.pick_questions(table_, "dev", None)
    assert asked.pick_questions(queries(0), "dev", None) == []


# -- search and rag ---------------------------------------------------------------------------


def test_search_asks_for_all_questions_at_once_and_is_not_traced():
    params = search.Params(strategy="search", model="none", k=3, **SLOTS)
    loop, tools = serve(search, params, asked.pick_questions(queries(9), "test", None))
    assert [len(b) for b in tools.retriever.batches] == [9]
    run = written.write_run(loop.answered, params.k)
    assert run.num_rows == 9 * 3 and "#" not in run["docid"][0].as_py()
    assert not search.TRACED


def test_rag_shows_the_best_passages_cut_and_ranks_documents_deeper():
    question = Question("q", "who?")
    loop, tools = serve(rag, rag_params(passages=2, passage_tokens=5, k=7), [question])
    (a,) = loop.answered
    best = [h.docid for h in tools.retriever.search(["who?"], 7)[0]]
    assert a.outcome.docids == best[:2]
    assert [h.docid for h in a.outcome.hits] == [d.removesuffix("#0") for d in best]
    shown = [Passage(d, f"T{d[1:-2]}", f"fact {d[1:-2]} x x x") for d in best[:2]]
    assert tools.generator.batches == [[Request(rag_prompt("who?", shown), 16, STOP)]]
    assert a.counts == Counts(
        rounds=1, docs=2, llm_calls=1, searches=2,
        tokens_in=len(rag_prompt("who?", shown).split()), tokens_out=1,
    )  # fmt: skip


def test_rag_without_passages_is_the_closed_book_reader():
    questions = asked.pick_questions(queries(5), "test", None)
    loop, tools = serve(rag, rag_params(passages=0), questions, Tools(generator=FakeLLM()))
    prompts = [r.prompt for b in tools.generator.batches for r in b]
    assert sorted(prompts) == sorted(rag_prompt(q.text, []) for q in questions)
    assert all(not a.outcome.hits and a.counts.searches == 0 for a in loop.answered)


def test_rag_with_an_empty_index_answers_as_the_closed_book_reader_does():
    class Nothing(FakeSearch):
        def search(self, queries, k):
            return [[] for _ in queries]

    question = [Question("q", "who?")]
    loop, _ = serve(rag, rag_params(), question, Tools(FakeLLM(), Nothing()))
    closed, _ = serve(rag, rag_params(passages=0), question)
    assert loop.answered[0].outcome == closed.answered[0].outcome


def test_rag_chooses_among_options_and_generates_nothing():
    loop, tools = serve(rag, rag_params(), [Question("q", "is it?", ("yes", "no", "maybe"))])
    prompt = tools.generator.choices[0]
    best = max(("yes", "no", "maybe"), key=lambda o: -uniform(prompt, f" {o}"))
    assert loop.answered[0].outcome.answer == best and tools.generator.batches == []


@pytest.mark.parametrize("text", ["", "שלום?", "a\nb", "word " * 2000])
def test_awkward_questions_end_with_a_reason(text):
    loop, _ = serve(rag, rag_params(), [Question("q", text), Question("r", "plain")])
    odd, plain = loop.answered
    assert plain.error == "" and plain.outcome.stop_reason == "fixed"
    assert odd.outcome.stop_reason == ("error" if len(text) > 2000 else "fixed")
    assert ("context" in odd.error) == (len(text) > 2000)


# -- what is written --------------------------------------------------------------------------


def answered(qid="q", error="", **outcome):
    reason = "error" if error else "fixed"
    return Answered(qid, Outcome(stop_reason=reason, **outcome), Counts(1, 2, 3, 4, 5, 6), error)


def test_answers_carry_counts_and_errors():
    rows = written.write_answers([answered(answer="x", docids=["d#0"]), answered("r", "oh")])
    assert rows.to_pylist() == [
        dict(qid="q", answer="x", memory="", docids=["d#0"], rounds=1, llm_calls=3, searches=4,
             tokens_in=5, tokens_out=6, stop_reason="fixed", error=""),
        dict(qid="r", answer="", memory="", docids=[], rounds=1, llm_calls=3, searches=4,
             tokens_in=5, tokens_out=6, stop_reason="error", error="oh"),
    ]  # fmt: skip


def test_counts_add_up_over_questions():
    loop = Loop([answered(hits=[Hit("d", 1.0)]), answered("r", "oh")], empty_table("effects"), [])
    assert written.count(loop) == {
        "questions": 2, "without_hits": 1, "stop_reasons": {"fixed": 1, "error": 1},
        "used": dict(rounds=2, docs=4, llm_calls=6, searches=8, tokens_in=10, tokens_out=12),
    }  # fmt: skip


def test_half_of_the_questions_may_fail_and_no_more():
    written.check_failures([answered(), answered("r", "oh")])
    written.check_failures([])
    with pytest.raises(QuarryError, match="2 of 3 questions failed; the first, r: oh"):
        written.check_failures([answered(), answered("r", "oh"), answered("s", "no")])


def test_a_reused_result_costs_what_it_took_when_it_was_computed():
    fresh = Tick(1, "LLM", 8, 6, 0, 2, 300, 1500.0)
    assert written.measure([fresh], 4, 2.0) == dict(
        effects_reused=0, ms_per_query=1000 * 2.0 / 4, tokens_per_s=300 / 1.5, llm_batches=2,
        requests_per_batch=6 / 2,
    )  # fmt: skip
    reused = Tick(1, "LLM", 8, 6, 6, 0, 0, 1.0, ms_reused=1500.0)
    assert written.measure([reused], 4, 0.5) == {"effects_reused": 6, "ms_per_query": 2000.0 / 4}


# -- the shell --------------------------------------------------------------------------------


def test_every_strategy_has_the_same_entry_function():
    for module in STRATEGIES.values():
        path = ROOT / "stages" / "serve" / f"{module.replace('.', '/')}.py"
        text = path.read_text(encoding="utf-8")
        assert (
            "def strategy(question: Question, params: Params, library: Library) -> Steps:" in text
        )
        assert re.search(r"^class Params\((Served|Reads)\):", text, re.M) and "TRACED = " in text


ENTRY = "strategy: search, corpus: c, index: i, encoder: none, triples: none, model: none"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (f"{ENTRY}, split: test, kk: 3", "serve.s.kk: unknown key. Did you mean 'k'?"),
        (f"{ENTRY}, split: 3", "serve.s.split: Input should be a valid string, got 3"),
        (f"{ENTRY}, split: test, k: 0", "serve.s.k: Input should be greater than 0, got 0"),
        (
            f"{ENTRY}, split: test",
            "input data/ingest/c is missing. Make it with: dvc repro ingest@c",
        ),
        (ENTRY.replace("search", "serach"), "serve.s.strategy is 'serach'. Did you mean 'search'?"),
    ],
)
def test_a_bad_entry_is_one_message_and_nothing_is_written(
    tmp_path, monkeypatch, capsys, values, message
):
    (tmp_path / "params.yaml").write_text(f"serve:\n  s: {{{values}}}\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["serve", "s"])
    with pytest.raises(SystemExit) as stopped:
        shell.run("serve", "", __main__.make, out=__main__.run_folder)
    assert stopped.value.code == 2 and message in capsys.readouterr().err
    assert not [p for p in tmp_path.rglob("*") if p.is_file() and p.name != "params.yaml"]
