"""Whatever a strategy yields: no counter passes its limit, and each question's end has a reason."""

import random

from hypothesis import given, settings
from hypothesis import strategies as st
from loop_fakes import FakeLLM, FakeSearch, ask, table_bytes

from stages.effects import BudgetSpent, Choice, Hint, Outcome, Question, Search
from stages.loop import Budget, Tools, run_loop

limit = st.none() | st.integers(0, 12)
budgets = st.builds(
    Budget, max_rounds=limit, max_docs=limit, max_llm_calls=limit,
    max_tokens=st.none() | st.integers(0, 90),
)  # fmt: skip


def at_random(question):
    """Effects drawn by a generator of its own; may catch a spent budget, and may crash."""
    rng, seen = random.Random(question.text), []

    def effect():
        word = f"w{rng.randrange(20)}"
        return rng.choice([
            Search(word, rng.randint(1, 6)),
            Search(word, 3, unit="document"),
            ask(f"{word} and so on", rng.randint(1, 6), rng.choice([0.0, 0.9])),
            Choice(f"is it {word}", ["yes", "no"][: rng.randint(1, 2)]),
            Hint(word),
        ])  # fmt: skip

    for _ in range(rng.randint(0, 12)):
        asked = [effect() for _ in range(rng.randint(0, 3))] if rng.random() < 0.4 else effect()
        try:
            seen.append((yield asked))
        except BudgetSpent:
            if rng.random() < 0.5:
                raise
        if rng.random() < 0.03:
            raise LookupError("lost")
    return Outcome(repr(seen))


@settings(deadline=None, max_examples=60)
@given(budgets, st.integers(0, 10**6), st.integers(1, 9), st.integers(1, 5))
def test_no_counter_passes_its_limit_and_every_question_has_a_stop_reason(
    budget, seed, max_active, batch
):
    questions = [Question(f"q{i}", f"{seed} {i}") for i in range(6)]

    def solve(order, **how):
        tools = Tools(generator=FakeLLM(), retriever=FakeSearch(40))
        return run_loop(at_random, order, tools, seed=seed, budget=budget, **how)

    loop = solve(questions, max_active=max_active, batch=batch)
    for a in loop.answered:
        used = a.counts
        for n, most in (
            (used.rounds, budget.max_rounds),
            (used.docs, budget.max_docs),
            (used.llm_calls, budget.max_llm_calls),
            (used.tokens_in + used.tokens_out, budget.max_tokens),
        ):
            assert most is None or n <= most
        assert a.outcome.stop_reason in {
            "fixed", "error", "budget_rounds", "budget_docs", "budget_llm_calls", "budget_tokens",
        }  # fmt: skip
        assert (a.outcome.stop_reason == "error") == bool(a.error)
    assert table_bytes(solve(questions[::-1], max_active=6)) == table_bytes(loop)
    assert table_bytes(solve(questions, replay=loop.effects)) == table_bytes(loop)
