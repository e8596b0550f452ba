"""RAR²: thoughts as queries, modes that agree at one thought, letters, and additive BM25."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from index_worlds import built, opened, passages_of
from loop_fakes import FakeLLM, FakeSearch, table_bytes
from pydantic import ValidationError
from strategy_worlds import TEXTS, count_words, library_of, params_of, passage, play

from stages.digest import uniform
from stages.effects import LLM, Choice, Hint, Question, Search
from stages.loop import Loop, run_loop
from stages.prompts import STOP, rag_prompt
from stages.serve.strategies import rag, rar2
from stages.thoughts import (
    letter_options,
    letter_prompt,
    names_option,
    read_letter,
    read_thought,
    think_prompt,
)
from stages.tools import Tools
from stages.types import Generation, Passage, Request

Q = "Who composed Aida?"
OPTIONS = ("Puccini", "Verdi", "Rossini")
DRAWN = {"temperature": 0.8, "top_p": 0.95}


# -- what it asks for -------------------------------------------------------------------------


def test_a_thought_is_the_query_and_its_passages_are_read() -> None:
    played = play(
        rar2, Q, says=[" It is an opera by Verdi. ", " Verdi"],
        finds={"It is an opera by Verdi.": "aida verdi"}, passages=1, k=2,
    )  # fmt: skip
    z = "It is an opera by Verdi."
    assert played.asked == [
        Hint(Q), LLM(Request(think_prompt(Q, ()), 64, STOP, **DRAWN)),
        Search(z, 1), Search(z, 2, unit="document"),
        LLM(Request(rag_prompt(Q, [passage("aida")]), 16, STOP)),
    ]  # fmt: skip
    assert (played.outcome.answer, played.outcome.memory) == ("Verdi", z)
    assert [h.docid for h in played.outcome.hits] == ["aida", "verdi"]
    assert played.outcome.stop_reason == "fixed"


def test_parallel_thoughts_are_one_query_or_rankings_that_are_fused() -> None:
    finds = {"Italy. An opera.": "lyon", "Italy.": "verdi rhine", "An opera.": "aida rhine"}
    values = {"mode": "parallel", "n": 2, "passages": 1, "k": 3, "finds": finds}
    one = play(rar2, Q, says=["Italy.", "An opera.", "x"], **values)
    assert one.queries == ["Italy. An opera."] and one.outcome.docids == ["lyon#0"]
    rrf = play(rar2, Q, says=["Italy.", "An opera.", "x"], fuse="rrf", **values)
    assert rrf.queries == ["Italy.", "An opera."]
    # rhine 1/(60+2) + 1/(60+2); verdi and aida 1/(60+1)
    assert [h.docid for h in rrf.outcome.hits] == ["rhine", "verdi", "aida"]
    assert rrf.outcome.memory == "Italy.\nAn opera."


def test_iterative_thoughts_see_the_last_passages_which_replace_those_before() -> None:
    played = play(
        rar2, Q, says=["z1", "z2", "z3", "x"], mode="iterative", n=3, passages=1,
        finds={"z1": "aida", "z2": "verdi", "z3": "rhine"},
    )  # fmt: skip
    assert played.queries == ["z1", "z2", "z3"]
    assert played.prompts == [
        think_prompt(Q, ()), think_prompt(Q, (), [passage("aida")]),
        think_prompt(Q, (), [passage("verdi")]), rag_prompt(Q, [passage("rhine")]),
    ]  # fmt: skip
    assert played.outcome.docids == ["rhine#0"]
    assert [h.docid for h in played.outcome.hits] == ["rhine"]


@pytest.mark.parametrize(
    ("says", "finds", "queries", "reason"),
    [
        (["  "], {Q: "aida"}, [Q], "no_query"),
        (["zz"], {Q: "aida"}, ["zz", Q], "no_hits"),
        (["zz"], {}, ["zz", Q], "no_hits"),
        (["  "], {}, [Q], "no_query"),
    ],
)
def test_the_question_stands_in_for_a_thought_that_is_or_finds_nothing(
    says, finds, queries, reason
) -> None:
    played = play(rar2, Q, says=[*says, "x"], finds=finds)
    assert played.queries == queries and played.outcome.stop_reason == reason
    assert played.outcome.docids == (["aida#0"] if finds else [])


def test_the_answer_may_see_the_thought() -> None:
    played = play(
        rar2, Q, says=["z1", "z2", "x"], mode="iterative", n=2, finds={"z2": "aida"},
        answer_sees_thought=True,
    )  # fmt: skip
    assert played.prompts[-1] == rag_prompt(Q, [Passage("", "Thought", "z2"), passage("aida")])
    assert played.outcome.docids == ["aida#0"], "a thought is no passage"


def test_an_option_is_chosen_by_its_text_or_its_letter() -> None:
    finds = {"z": "aida"}
    asked = {"says": ["z"], "finds": finds, "chooses": [1], "options": OPTIONS}
    by_text = play(rar2, Q, **asked).asked[-1]
    assert by_text == Choice(rag_prompt(Q, [passage("aida")]), [f" {o}" for o in OPTIONS])
    by_letter = play(rar2, Q, answer="letters", **asked)
    prompt = letter_prompt(Q, OPTIONS, [passage("aida")])
    assert by_letter.asked[-1] == Choice(prompt, [" A", " B", " C"])
    assert by_letter.outcome.answer == "Verdi"
    assert by_letter.prompts[0] == think_prompt(Q, OPTIONS)


@pytest.mark.parametrize(
    ("reply", "answer"), [(" B", "Verdi"), ("The answer is (C).", "Rossini"), ("D", ""), ("", "")]
)
def test_a_letter_that_is_generated_is_read_or_the_answer_is_empty(reply, answer) -> None:
    played = play(
        rar2, Q, says=["z", reply], finds={"z": "aida"}, options=OPTIONS, answer="text"
    )  # fmt: skip
    assert played.outcome.answer == answer and played.outcome.docids == ["aida#0"]


# -- thoughts and letters ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reply", "at"),
    [
        ("The answer is (B).", 1), ("B", 1), (" B\n", 1), ("(B)", 1), ("B) Verdi wrote it", 1),
        ("B. Verdi", 1), ("So the answer is B because A fever", 1), ("Answer: C", 2),
        ("A or B", None), ("The answer is A or B", None), ("The answer is (A) and (B).", None),
        ("The answer is A. No, the answer is B.", None), ("D", None), ("The answer is (D).", None),
        ("A fever of unknown origin", None), ("I think so", None), ("", None), ("🦠", None),
        ("b", None), ("Verdi", None),
    ],
)  # fmt: skip
def test_a_letter_is_read_only_where_one_is_chosen(reply, at) -> None:
    assert read_letter(reply, 3) == at


def test_letters_end_with_the_options() -> None:
    assert read_letter("D", 4) == 3 and read_letter("D", 3) is None
    assert letter_options(OPTIONS) == [" A", " B", " C"]


@pytest.mark.parametrize(
    ("reply", "thought"),
    [
        ("Aida is by (B). It is an opera.", "It is an opera."),
        ("It is an opera. The answer is B.", "It is an opera."),
        ("Option C is an opera. He was born\n in Italy.", "He was born in Italy."),
        ("Vitamin A and hepatitis B are known.", "Vitamin A and hepatitis B are known."),
        ("C.", ""), ("(B) Verdi", ""), ("(d) is none of three.", "(d) is none of three."), ("", ""),
    ],
)  # fmt: skip
def test_a_thought_names_no_option(reply, thought) -> None:
    assert read_thought(reply, 3) == thought and not names_option(thought, 3)
    assert read_thought(reply, 0) == " ".join(reply.split()), "nothing to commit to"


def test_prompts_keep_to_lines_and_show_no_letter_before_the_answer() -> None:
    odd = Passage("d#0", "T\n\nT", "a\n\nb")
    for prompt in (
        think_prompt("q\n\nq", OPTIONS, [odd]), think_prompt("q\n\n", ()),
        letter_prompt("q\n\n", ("a\n\nb", "c"), [odd], "t\n\nt"), letter_prompt("", (), []),
    ):  # fmt: skip
        assert prompt.count("\n\n") == 2 and not prompt.endswith((" ", "\n"))
    demos = think_prompt("q", OPTIONS).split("Thought: ")[1:]
    assert not any(names_option(d.split("\n")[0], 3) for d in demos)


# -- real BM25 --------------------------------------------------------------------------------

WORDS = (
    "aida verdi opera italy born river rhine city lyon volcano etna fuji composer score " * 3
).split()


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    rng = np.random.default_rng(5)
    texts = {
        f"d{i:03}#0": ("", " ".join(rng.choice(WORDS, rng.integers(3, 20)))) for i in range(200)
    }
    return opened(built(tmp_path_factory.mktemp("bm25"), "bm25", passages_of(texts)))


def test_bm25_adds_up_over_thoughts_also_where_they_repeat_words(index) -> None:
    """Query words are neither saturated nor deduplicated here: score(z1 + z2) is the sum."""

    def scores(text: str) -> dict[str, float]:
        return {h.docid: h.score for h in index.search([text], 200)[0]}

    rng = np.random.default_rng(7)
    for _ in range(20):
        one, two = (" ".join(rng.choice(WORDS, 6)) for _ in range(2))
        two = f"{two} {one.split()[0]} {one.split()[0]}"
        a, b, both = scores(one), scores(two), scores(f"{one} {two}")
        assert both.keys() == a.keys() | b.keys()
        for docid, score in both.items():
            assert score == pytest.approx(a.get(docid, 0) + b.get(docid, 0), rel=1e-5)
    twice = scores("aida aida")
    assert twice == pytest.approx({d: 2 * s for d, s in scores("aida").items()}, rel=1e-6)


def test_parallel_thoughts_rank_as_the_sum_of_their_scores(index) -> None:
    one, two = "aida opera verdi verdi", "verdi italy etna"
    total: dict[str, float] = {}
    for text in (one, two):
        for hit in index.search([text], 200)[0]:
            total[hit.docid] = total.get(hit.docid, 0.0) + hit.score
    best = sorted(total, key=total.get, reverse=True)
    found = [h.docid for h in index.search([f"{one} {two}"], 10)[0]]
    # ties of float32 sums apart: what is found has the best sums
    assert [round(total[d], 4) for d in found] == [round(total[d], 4) for d in best[:10]]


# -- n = 1, n = 0, z := q ---------------------------------------------------------------------


def run(method: Any, llm: FakeLLM, questions: list[Question], **values: Any) -> Loop:
    how = {k: values.pop(k) for k in ("max_active", "batch") if k in values}
    tools = Tools(llm, values.pop("retriever", None) or FakeSearch(len(TEXTS)))
    params = params_of(method, **values)
    texts = {f"d{i}": text for i, text in enumerate(TEXTS.values())}
    library = library_of(texts, count_words)
    return run_loop(
        partial(method.strategy, params=params, library=library), questions, tools, **how
    )


def asked_of(n: int) -> list[Question]:
    return [Question(f"q{i:02}", f"who wrote {i}?", OPTIONS if i % 2 else ()) for i in range(n)] + [
        Question("empty", ""),
        Question("he", "מי כתב?", OPTIONS),
    ]


@pytest.mark.parametrize("values", [{}, {"answer": "letters"}, {"answer_sees_thought": True}])
def test_with_one_thought_all_modes_are_one(values) -> None:
    """Same prompts, seeds, searches: the whole log, byte for byte."""
    single = run(rar2, FakeLLM(), asked_of(9), **values)
    for mode in ({"mode": "parallel"}, {"mode": "parallel", "fuse": "rrf"}, {"mode": "iterative"}):
        assert table_bytes(run(rar2, FakeLLM(), asked_of(9), n=1, **mode, **values)) == table_bytes(
            single
        )
    two = run(rar2, FakeLLM(), asked_of(9), n=2, mode="iterative", **values)
    assert two.effects.num_rows > single.effects.num_rows


@pytest.mark.parametrize("mode", ["single", "parallel", "iterative"])
def test_without_a_thought_it_is_rag(mode) -> None:
    plain = run(rag, FakeLLM(), asked_of(9), passages=4)
    none = run(rar2, FakeLLM(), asked_of(9), passages=4, n=0, mode=mode)
    assert table_bytes(none) == table_bytes(plain)


def test_a_thought_that_is_the_question_finds_and_answers_as_rag_does() -> None:
    texts = {q.text for q in asked_of(9)}

    def echo(prompt: str) -> str | None:
        block = prompt.rpartition("\n\n")[2]
        question = block.partition("Question: ")[2].split("\n")[0]
        return question if block.endswith("Thought:") and question in texts else None

    plain = run(rag, FakeLLM(), asked_of(9), passages=4)
    same = run(rar2, FakeLLM(echo), asked_of(9), passages=4)
    for a, b in zip(same.answered, plain.answered, strict=True):
        assert a.outcome._replace(memory="", stop_reason="") == b.outcome._replace(stop_reason="")


# -- lock-step and poor worlds ----------------------------------------------------------------

VARIANTS = {
    "single": {},
    "parallel": {"mode": "parallel", "n": 3},
    "rrf": {"mode": "parallel", "n": 3, "fuse": "rrf", "answer": "letters"},
    "iterative": {"mode": "iterative", "n": 3, "answer": "text", "answer_sees_thought": True},
}
variants = pytest.mark.parametrize("values", VARIANTS.values(), ids=VARIANTS)
SAID = (
    "",
    "The answer is (B).",
    "B",
    "A or B",
    "An opera. It is by (C).",
    "東京は首都です。",
    "w1 w2",
)


def speak(prompt: str) -> str:
    return SAID[int(uniform(prompt) * len(SAID))]


class Endless(FakeLLM):
    def _text(self, r):
        return Generation("word " * r.max_tokens, len(r.prompt.split()), r.max_tokens, "length")


class Nothing(FakeSearch):
    def search(self, queries, k):
        return [[] for _ in queries]


@variants
@pytest.mark.parametrize("max_active", [1, 4, 16])
def test_lock_step_is_one_by_one(values, max_active) -> None:
    values = {**values, "thought_tokens": 40}
    for llm in (FakeLLM, partial(FakeLLM, speak)):
        alone = run(rar2, llm(), asked_of(20), **values, max_active=1, batch=1)
        loop = run(rar2, llm(), asked_of(20)[::-1], **values, max_active=max_active)
        assert table_bytes(loop) == table_bytes(alone)
        assert not any(a.error for a in loop.answered)


@variants
def test_poor_models_and_corpora_are_ordinary(values) -> None:
    values = {**values, "thought_tokens": 40}
    for llm in (FakeLLM(speak), Endless(), FakeLLM(lambda prompt: "")):
        for retriever in (Nothing(), FakeSearch(1)):
            loop = run(rar2, llm, asked_of(6), retriever=retriever, **values)
            for a in loop.answered:
                assert a.error == "" and len(a.outcome.docids) <= 1
                assert a.outcome.stop_reason in ("fixed", "no_query", "no_hits")
                assert a.counts.llm_calls == values.get("n", 1) + 1


@variants
def test_a_question_over_the_context_fails_alone(values) -> None:
    values = {**values, "thought_tokens": 40}
    long = Question("long", "word " * FakeLLM.context)
    both = {a.qid: a for a in run(rar2, FakeLLM(), [*asked_of(3), long], **values).answered}
    assert "the model's context has 1000" in both.pop("long").error
    assert list(both.values()) == run(rar2, FakeLLM(), asked_of(3), **values).answered


def test_values_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(ValidationError, match="single has one thought"):
        params_of(rar2, n=2)
    with pytest.raises(ValidationError, match=r"fuse: rrf"):
        params_of(rar2, n=2, mode="parallel", encoder="minilm")
    params_of(rar2, n=2, mode="parallel", encoder="minilm", fuse="rrf")


def test_a_real_index_serves_a_thought(index: Any, tmp_path: Path) -> None:
    """Options of PubMedQA's kind, abstracts of words, letters by log-probability."""
    library = library_of({f"d{i:03}": ("", "aida verdi opera") for i in range(200)}, count_words)
    params = params_of(rar2, answer="letters", passages=2, thought_tokens=8)
    strategy = partial(rar2.strategy, params=params, library=library)
    question = Question("p", "Is it an opera?", ("yes", "no", "maybe"))
    llm = FakeLLM(lambda prompt: "The etna volcano, not option B.")
    (a,) = run_loop(strategy, [question], Tools(llm, index)).answered
    assert a.outcome.stop_reason == "no_query", "all of it named an option"
    llm = FakeLLM(lambda prompt: "The etna volcano. Not option B.")
    (a,) = run_loop(strategy, [question], Tools(llm, index)).answered
    assert a.outcome.memory == "The etna volcano." and len(a.outcome.docids) == 2
    assert a.outcome.answer in question.options
