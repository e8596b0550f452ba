"""Every loop strategy: no neighbour shows, no limit is passed, no text of a model breaks it."""

import random
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
from facts_worlds import WordVectors, facts_of
from hypothesis import given, settings
from hypothesis import strategies as st
from loop_fakes import FakeLLM, FakeSearch, table_bytes
from strategies import AWKWARD
from strategy_worlds import LOOPS, library_of, name_of, params_of

from stages.digest import uniform
from stages.effects import Question
from stages.loop import Budget, run_loop
from stages.serve.strategies import adaptive_note, freeson, hyde, kirag, rar2, rfm_rag
from stages.tables import table
from stages.tools import Tools
from stages.types import Generation

N = 30  # passages
TEXTS = {f"d{i}": (AWKWARD[-i % len(AWKWARD)], AWKWARD[i % len(AWKWARD)]) for i in range(N)}
FACTS = {f"{name}#0": [(title, "says", text)] * (n % 3) for n, (name, (title, text)) in
         enumerate(TEXTS.items())}  # fmt: skip
TRIPLES = table("triples", [
    dict(docid=docid, seq=i, subj=s, rel=r, obj=o, text_hash="")
    for docid, own in FACTS.items() for i, (s, r, o) in enumerate(own)
])  # fmt: skip
LIBRARY = library_of(TEXTS, FakeLLM().count_tokens, facts=facts_of(FACTS), triples=TRIPLES)
SAID = (
    "", " ", ".", "?", "Who? Where? Who?", "A was b. And c", "So the answer is 7.",
    "The answer is: it moved to the U.S. in 1903.", "I do not know", *AWKWARD,
)  # fmt: skip
STOPS = {
    "fixed", "judge", "no_query", "converged", "empty_gen", "end_of_text", "answer_marker", "error",
    "fails", "no_hits", "budget_rounds", "budget_docs", "budget_llm_calls", "budget_tokens",
}  # fmt: skip


def variant(method, **values):
    """A strategy with other values than its own: what the studies run."""
    return SimpleNamespace(
        __name__=f"{method.__name__} {'-'.join(values.values())}", strategy=method.strategy,
        Params=lambda **given: method.Params(**(given | {"strategy": name_of(method)} | values)),
    )  # fmt: skip


VARIANTS = (
    variant(adaptive_note, writer="extractive", compare="margin"),
    variant(kirag, constructor="llm_choice"),
    variant(kirag, constructor="aligner"),
    variant(rar2, mode="parallel", fuse="rrf"),
    variant(rar2, mode="iterative"),
    variant(rfm_rag, mode="symbolic", distil="offline", judge="cross_encoder", triples="t"),
)
every = pytest.mark.parametrize("method", [*LOOPS, *VARIANTS], ids=name_of)


class Judge:
    """Scores of pairs, by their texts."""

    fingerprint = "judge"

    def score(self, pairs):
        return np.array([uniform(*pair) for pair in pairs], dtype=np.float32)


def speak(prompt: str) -> str:
    """One of the texts, by the prompt."""
    return SAID[int(uniform(prompt) * len(SAID))]


class Endless(FakeLLM):
    """A model that never stops: as many words as it may write, always the next ones."""

    def _text(self, r):
        words = [f"w{int(uniform(r.prompt, str(i)) * 99)}" for i in range(r.max_tokens)]
        doubts = tuple(((0, 2),) for _ in r.doubt_below)
        return Generation(" ".join(words), len(r.prompt.split()), r.max_tokens, "length", doubts)


class Nothing(FakeSearch):
    def search(self, queries, k):
        return [[] for _ in queries]


def serve(method, questions, tools=None, *, values=None, **how):
    params = params_of(method, **{"prompt_tokens": 600, **(values or {})})
    strategy = partial(method.strategy, params=params, library=LIBRARY)
    tools = (tools or Tools(FakeLLM(speak), FakeSearch(N)))._replace(
        encoder=WordVectors(), reranker=Judge()
    )
    return run_loop(strategy, questions, tools, **how)


def many(n: int) -> list[Question]:
    options = ("yes", "no", "perhaps")
    return [Question(f"q{i:02}", f"who is {i}?", options if i % 5 == 0 else ()) for i in range(n)]


@every
@pytest.mark.parametrize("max_active", [1, 2, 7, 64])
def test_lock_step_is_one_by_one_in_any_order(method, max_active) -> None:
    expected = serve(method, many(40), max_active=1, batch=1)
    questions = random.Random(max_active).sample(many(40), 40)
    loop = serve(method, questions, max_active=max_active)
    assert table_bytes(loop) == table_bytes(expected)
    assert not any(a.error for a in loop.answered)
    assert {a.outcome.stop_reason for a in loop.answered} <= STOPS
    assert len({a.outcome.answer for a in loop.answered}) > 3


@every
def test_sixty_four_questions_need_a_fifth_of_the_batches(method) -> None:
    """Batches of generations and choices against the calls of one at a time."""
    loop = serve(method, many(64), max_active=64)
    calls = sum(a.counts.llm_calls for a in loop.answered)
    assert calls >= 5 * sum(t.n_batches for t in loop.ticks if t.kind in ("LLM", "Choice"))


@pytest.mark.parametrize("method", [m for m in LOOPS if m is not freeson], ids=name_of)
def test_hints_change_nothing(method) -> None:
    """FREESON walks an index in memory: there is nothing to fetch ahead."""
    heard: list[str] = []
    quiet = serve(method, many(9))
    tools = Tools(FakeLLM(speak), FakeSearch(N), prefetch=heard.append)
    assert table_bytes(serve(method, many(9), tools)) == table_bytes(quiet)
    assert heard


limit = st.none() | st.integers(0, 9)
budgets = st.builds(
    Budget, max_rounds=limit, max_docs=limit, max_llm_calls=limit,
    max_tokens=st.none() | st.integers(0, 900),
)  # fmt: skip


@every
@settings(deadline=None, max_examples=25)
@given(budgets, st.sampled_from([FakeLLM(speak), Endless()]), st.integers(1, 5))
def test_no_counter_passes_its_limit(method, budget, generator, max_active) -> None:
    tools = Tools(generator, FakeSearch(N))
    loop = serve(method, many(7), tools, budget=budget, max_active=max_active)
    for a in loop.answered:
        used = a.counts
        for n, most in (
            (used.rounds, budget.max_rounds),
            (used.docs, budget.max_docs),
            (used.llm_calls, budget.max_llm_calls),
            (used.tokens_in + used.tokens_out, budget.max_tokens),
        ):
            assert most is None or n <= most
        assert a.outcome.stop_reason in STOPS and a.error == ""


@every
@pytest.mark.parametrize("budget", [Budget(max_rounds=1), Budget(max_docs=2)])
def test_out_of_searches_a_strategy_answers_from_what_it_has(method, budget) -> None:
    """As far as one search brings it: the answer is not lost with the budget."""
    loop = serve(method, many(12), budget=budget)
    spent = [a for a in loop.answered if a.outcome.stop_reason.startswith("budget_")]
    for a in spent:
        assert a.outcome.hits and a.counts.rounds == 1 and a.counts.llm_calls >= 1


@every
@pytest.mark.parametrize("n", range(1, 6))
def test_out_of_calls_a_strategy_keeps_what_it_found(method, n) -> None:
    values = {"hypotheses": 1} if method is hyde else {}  # eight at once are refused at once
    loop = serve(method, many(12), values=values, budget=Budget(max_llm_calls=n))
    spent = [a for a in loop.answered if a.outcome.stop_reason == "budget_llm_calls"]
    for a in spent:
        assert a.counts.llm_calls == n and a.error == ""
        assert bool(a.outcome.hits) == (a.counts.searches > 0)


@every
@settings(deadline=None, max_examples=30)
@given(st.lists(st.text(max_size=40) | st.sampled_from(SAID), min_size=1, max_size=4), st.data())
def test_whatever_the_model_says_the_question_ends(method, texts, data) -> None:
    """Malformed, empty, of any script: no error, a reason, passages that exist."""
    generator = FakeLLM(lambda prompt: texts[int(uniform(prompt) * len(texts))])
    question = Question("q", data.draw(st.sampled_from(AWKWARD[:-3]) | st.text(max_size=30)))
    (a,) = serve(method, [question], Tools(generator, FakeSearch(N))).answered
    assert a.error == "" and a.outcome.stop_reason in STOPS
    assert {d.removesuffix("#0") for d in a.outcome.docids} <= set(TEXTS)
    assert len(set(a.outcome.docids)) == len(a.outcome.docids)
    ranked = [hit.docid for hit in a.outcome.hits]
    assert len(set(ranked)) == len(ranked)


@every
@pytest.mark.parametrize(
    ("generator", "retriever"),
    [
        (FakeLLM(speak), Nothing()),
        (FakeLLM(speak), FakeSearch(1)),
        (Endless(), FakeSearch(N)),
        (FakeLLM(lambda prompt: ""), FakeSearch(N)),
        (FakeLLM(lambda prompt: ""), Nothing()),
    ],
    ids=["nothing is found", "one passage", "never stops", "says nothing", "neither"],
)
def test_a_poor_corpus_or_model_is_an_ordinary_case(method, generator, retriever) -> None:
    loop = serve(method, [*many(6), Question("empty", ""), Question("he", "מי כתב את פאוסט?")],
                 Tools(generator, retriever))  # fmt: skip
    assert not any(a.error for a in loop.answered)
    assert all(a.counts.llm_calls <= 40 for a in loop.answered)
    assert all(len(a.outcome.docids) <= retriever.n for a in loop.answered)


@every
def test_a_question_over_the_context_fails_alone(method) -> None:
    long = Question("long", "word " * FakeLLM.context)
    both = {a.qid: a for a in serve(method, [*many(3), long]).answered}
    assert "the model's context has 1000" in both["long"].error
    assert both["long"].outcome.stop_reason == "error"
    alone = {a.qid: a for a in serve(method, many(3)).answered}
    assert {qid: a for qid, a in both.items() if qid != "long"} == alone
