"""The loop engine: lock-step ticks, replay, cache, budgets, isolation. Models here are fakes."""

import math
import random

import numpy as np
import pytest
from loop_fakes import FakeLLM, FakeSearch, ask, note_taking, table_bytes

from stages.digest import digest
from stages.effects import (
    BudgetSpent,
    Choice,
    Encode,
    Hint,
    Outcome,
    Question,
    Score,
    Search,
    pick,
    read_result,
    write_request,
    write_result,
)
from stages.errors import QuarryError, Refused
from stages.loop import Budget, Counts, Tools, run_loop
from stages.records import RecordStore
from stages.types import Generation, Hit, Request

STEPS = [1, 3, 2, 0]  # the card's example
QUESTIONS = [Question(f"q{i}", str(n)) for i, n in enumerate(STEPS)]


def tools(**others) -> Tools:
    return Tools(generator=FakeLLM(), retriever=FakeSearch(), **others)


@pytest.fixture
def store(tmp_path):
    with RecordStore(tmp_path) as s:
        yield s


# -- lock-step --------------------------------------------------------------------------------


def test_lock_step_turns_26_calls_and_10_searches_into_11_and_4_batches_in_15_ticks():
    t = tools()
    loop = run_loop(note_taking, QUESTIONS, t)
    assert t.generator.n_calls == sum(2 + 3 * s for s in STEPS) == 26
    assert t.retriever.n_calls == sum(1 + s for s in STEPS) == 10
    assert len(t.generator.batches) == 2 + 3 * max(STEPS) == 11
    assert len(t.retriever.batches) == 1 + max(STEPS) == 4
    assert loop.ticks[-1].tick == 15


def test_batches_of_at_most_two_make_16_and_6():
    t = tools()
    loop = run_loop(note_taking, QUESTIONS, t, batch=2)
    # still open, by tick of an LLM: 4 4 | 3 3 3 | 2 2 2 | 1 1 1, and of a search: 4 | 3 | 2 | 1
    assert len(t.generator.batches) == 2 * 2 + 3 * 2 + 3 * 1 + 3 * 1 == 16
    assert len(t.retriever.batches) == 2 + 2 + 1 + 1 == 6
    assert max(map(len, t.generator.batches)) == 2
    assert sum(x.n_batches for x in loop.ticks) == 16 + 6


def mixed(question):
    """Yields lists, samples, chooses and hints, in an order that depends on what came back."""
    first, _, drawn = yield [
        Search(question.text, 3), Hint("later"), ask(question.text, temperature=0.7),
    ]  # fmt: skip
    yield Hint("alone")
    which = yield Choice(f"{question.text} {drawn.text}", ["yes", "no", "maybe"])
    for i in range(which):
        first += yield Search(f"{drawn.text} {i}", 2)
    assert (yield []) == []
    found = yield Search(question.text, 5, unit="document")
    return Outcome(drawn.text, memory=str(which), docids=[h.docid for h in first], hits=found)


@pytest.mark.parametrize("strategy", [note_taking, mixed])
@pytest.mark.parametrize("max_active", [1, 2, 7, 64])
@pytest.mark.parametrize("batch", [1, 4, None])
def test_results_and_trace_do_not_depend_on_neighbours(strategy, max_active, batch):
    questions = [Question(f"q{i}", str(i % 4)) for i in range(20)]
    expected = run_loop(strategy, questions, tools(), max_active=1, batch=1)
    random.Random(max_active).shuffle(questions)
    loop = run_loop(strategy, questions, tools(), max_active=max_active, batch=batch)
    assert table_bytes(loop) == table_bytes(expected)


def test_a_finished_question_makes_room_for_the_next():
    t = tools()
    run_loop(note_taking, [Question(f"q{i}", "0") for i in range(6)], t, max_active=2)
    assert [len(b) for b in t.generator.batches] == [2] * 6  # two calls each, never one alone


def test_phases_may_differ_within_a_tick():
    def one_more(question):
        if question.text == "late":
            yield Search("x", 1)
        yield ask(question.text)
        yield Search(question.text, 1)
        return Outcome()

    loop = run_loop(one_more, [Question("a", "early"), Question("b", "late")], tools())
    kinds = [(t.tick, t.kind, t.n_requests) for t in loop.ticks]
    assert kinds == [
        (1, "LLM", 1), (1, "Search", 1), (2, "LLM", 1), (2, "Search", 1), (3, "Search", 1),
    ]  # fmt: skip


def test_searches_of_another_depth_or_unit_are_other_calls():
    def three(question):
        yield [Search("a", 1), Search("b", 2), Search("c", 2), Search("d", 2, unit="document")]
        return Outcome()

    t = tools()
    run_loop(three, [Question("q", "")], t)
    assert t.retriever.batches == [["a"], ["b", "c"], ["d"]]


def test_encode_and_score_are_batched_and_split():
    class Lengths:
        fingerprint = "lengths"

        def encode(self, texts, role):
            return np.array([[len(t), role == "query"] for t in texts], dtype=np.float32)

        def score(self, pairs):
            return np.array([len(q) - len(p) for q, p in pairs], dtype=np.float32)

    def both(question):
        vecs, scores = yield [Encode((question.text, "xx")), Score((("abc", question.text),))]
        return Outcome(memory=f"{vecs.tolist()} {scores.tolist()}")

    t = Tools(encoder=Lengths(), reranker=Lengths())
    loop = run_loop(both, [Question("a", "1"), Question("b", "4444")], t)
    assert [a.outcome.memory for a in loop.answered] == [
        "[[1.0, 1.0], [2.0, 1.0]] [2.0]", "[[4.0, 1.0], [2.0, 1.0]] [-1.0]",
    ]  # fmt: skip


def test_no_questions_give_empty_tables():
    loop = run_loop(note_taking, [], tools())
    assert loop.answered == [] and loop.effects.num_rows == 0 and loop.ticks == []


def test_a_qid_that_occurs_twice_is_an_error():
    with pytest.raises(QuarryError, match="occurs twice"):
        run_loop(note_taking, [Question("q", "1")] * 2, tools())


def test_a_tool_that_is_not_there_is_named():
    with pytest.raises(QuarryError, match="asks for Search and there is no retriever"):
        run_loop(note_taking, QUESTIONS, Tools(generator=FakeLLM()))


# -- dedupe, cache, replay --------------------------------------------------------------------


def same_for_all(question):
    hits = yield Search("who", 3)
    reply = yield ask(f"who? {hits}")
    which = yield Choice(reply.text, ["yes", "no"])
    return Outcome(reply.text, memory=str(which))


def test_100_identical_questions_cost_the_calls_of_one():
    t = tools()
    loop = run_loop(same_for_all, [Question(f"q{i}", "who") for i in range(100)], t)
    assert (t.generator.n_calls, t.retriever.n_calls, len(t.generator.choices)) == (1, 1, 1)
    assert {a.counts.llm_calls for a in loop.answered} == {2}, "each question counts its own"
    assert [(x.n_requests, x.n_unique) for x in loop.ticks] == [(100, 1)] * 3


def test_samples_are_never_shared_between_questions():
    def draw(question):
        return Outcome((yield ask("say something", temperature=1.0)).text)

    loop = run_loop(draw, [Question(f"q{i}", "") for i in range(10)], tools())
    assert len({a.outcome.answer for a in loop.answered}) == 10


def test_a_sample_depends_on_run_seed_question_and_effect_number_alone():
    def draw_twice(question):
        one, two = yield [ask("p", temperature=1.0), ask("p", temperature=1.0)]
        return Outcome(one.text, memory=two.text)

    t = tools()
    alone = run_loop(draw_twice, [Question("q1", "")], t, seed=13).answered[0]
    seeds = [int(digest("13", "q1", str(n)), 16) % 2**63 for n in (0, 1)]
    assert sorted(r.seed for r in t.generator.batches[0]) == sorted(seeds)
    among = run_loop(draw_twice, [Question(f"q{i}", "") for i in range(9)], tools(), seed=13)
    assert among.answered[1] == alone
    assert alone.outcome.answer != alone.outcome.memory
    assert run_loop(draw_twice, [Question("q1", "")], tools(), seed=14).answered[0] != alone


@pytest.mark.parametrize("strategy", [note_taking, mixed])
def test_a_second_run_finds_everything_in_the_cache_and_counts_it_alike(strategy, store):
    first = run_loop(strategy, QUESTIONS, tools(), store=store)
    t = tools()
    second = run_loop(strategy, QUESTIONS, t, store=store)
    assert table_bytes(second) == table_bytes(first)
    assert t.generator.n_calls == t.retriever.n_calls == len(t.generator.choices) == 0
    assert all(x.n_cached == x.n_unique for x in second.ticks)
    took = sum(x.ms for x in first.ticks)
    assert 0 < sum(x.ms_reused for x in second.ticks) <= took
    assert not any(x.ms_reused for x in first.ticks)


def test_the_cache_can_be_read_only_or_off(store):
    run_loop(note_taking, QUESTIONS, tools(), store=store, cache="read_only")
    assert store.size_bytes() == 0
    run_loop(note_taking, QUESTIONS, tools(), store=store)
    t = tools()
    run_loop(note_taking, QUESTIONS, t, store=store, cache="read_only")
    assert t.generator.n_calls == 0
    run_loop(note_taking, QUESTIONS, t, store=store, cache="off")
    assert t.generator.n_calls == 26


def test_another_model_shares_no_result(store):
    run_loop(note_taking, QUESTIONS, tools(), store=store)
    t = tools()
    t.generator.fingerprint = "another"
    run_loop(note_taking, QUESTIONS, t, store=store)
    assert (t.generator.n_calls, t.retriever.n_calls) == (26, 0)


@pytest.mark.parametrize("n", [7, 43, 99])
def test_a_run_that_died_computes_only_the_rest(store, monkeypatch, n):
    """Twelve questions of 11 calls; what ended is kept in fours here."""

    class Dies(FakeLLM):
        def stream(self, inbox):
            for event in super().stream(inbox):
                if self.n_calls > n:
                    raise KeyboardInterrupt
                yield event

    monkeypatch.setattr("stages.loop.KEEP", 4)
    questions = [Question(f"q{i:02}", "3") for i in range(12)]
    with pytest.raises(KeyboardInterrupt):
        run_loop(note_taking, questions, tools()._replace(generator=Dies()), store=store)
    t = tools()
    loop = run_loop(note_taking, questions, t, store=store)
    assert t.generator.n_calls == 12 * 11 - n // 4 * 4
    assert table_bytes(loop) == table_bytes(run_loop(note_taking, questions, tools()))


def cut(effects, n):
    return effects.filter([no < n for no in effects["effect_no"].to_pylist()])


def test_a_full_log_replays_with_no_call():
    first = run_loop(note_taking, QUESTIONS, tools())
    t = tools()
    second = run_loop(note_taking, QUESTIONS, t, replay=first.effects)
    assert table_bytes(second) == table_bytes(first)
    assert t.generator.n_calls == t.retriever.n_calls == 0


def test_a_log_cut_after_3_effects_leaves_18_calls_and_6_searches_in_9_and_3_batches():
    first = run_loop(note_taking, QUESTIONS, tools())
    t = tools()
    second = run_loop(note_taking, QUESTIONS, t, replay=cut(first.effects, 3))
    assert table_bytes(second) == table_bytes(first)
    assert (t.generator.n_calls, t.retriever.n_calls) == (26 - 4 * 2, 10 - 4 * 1) == (18, 6)
    assert (len(t.generator.batches), len(t.retriever.batches)) == (11 - 2, 4 - 1) == (9, 3)


def test_a_question_that_asks_something_else_loses_the_rest_of_its_log(caplog):
    def changed(question):
        if question.qid == "q1":
            yield Search("q1", 2)
            yield ask("a new prompt")
            return Outcome((yield Search("q1", 2))[0].docid)
        return (yield from note_taking(question))

    def before(question):
        if question.qid == "q1":
            yield Search("q1", 2)
            yield ask("the old prompt")
            return Outcome((yield Search("q1", 2))[0].docid)
        return (yield from note_taking(question))

    first = run_loop(before, QUESTIONS, tools())
    t = tools()
    loop = run_loop(changed, QUESTIONS, t, replay=first.effects)
    assert [r.prompt for b in t.generator.batches for r in b] == ["a new prompt"]
    assert t.retriever.batches == [["q1"]], "effect 2 was logged, after the difference"
    assert table_bytes(loop) == table_bytes(run_loop(changed, QUESTIONS, tools()))
    assert "1 questions asked for something else than in the log (first: q1)" in caplog.text


# -- budgets ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("budget", "reason", "counts"),
    [
        # q1 takes 3 steps: searches 4 times 2 passages and calls the model 11 times.
        (Budget(max_rounds=2), "budget_rounds", {"rounds": 2, "searches": 2, "llm_calls": 5}),
        (Budget(max_rounds=0), "budget_rounds", {"rounds": 0, "searches": 0, "llm_calls": 0}),
        (Budget(max_docs=4), "budget_docs", {"docs": 4, "searches": 2, "llm_calls": 5}),
        (Budget(max_docs=5), "budget_docs", {"docs": 5, "searches": 3, "llm_calls": 8}),
        (Budget(max_llm_calls=7), "budget_llm_calls", {"llm_calls": 7, "searches": 3}),
    ],
)
def test_a_budget_stops_a_question_at_its_exact_limit(budget, reason, counts):
    a = run_loop(note_taking, [QUESTIONS[1]], tools(), budget=budget).answered[0]
    assert a.outcome.stop_reason == reason and a.error == ""
    assert {name: getattr(a.counts, name) for name in counts} == counts


def test_a_generation_that_could_exceed_the_token_budget_is_not_started():
    def talk(question):
        for _ in range(9):
            yield ask("one two three", max_tokens=2)
        return Outcome("never")

    # A call reads 3 tokens and writes 1, and might write 2: a fourth could end at 12 + 5 > 16.
    a = run_loop(talk, [Question("q", "")], tools(), budget=Budget(max_tokens=16)).answered[0]
    assert a.counts == Counts(llm_calls=3, tokens_in=9, tokens_out=3)
    a = run_loop(talk, [Question("q", "")], tools(), budget=Budget(max_tokens=17)).answered[0]
    assert a.counts == Counts(llm_calls=4, tokens_in=12, tokens_out=4)


def test_a_search_near_the_limit_keeps_what_was_seen_and_as_many_new_as_fit():
    class Listed(FakeSearch):
        def search(self, queries, k):
            return [[Hit(f"{c}#0", 1.0) for c in query] for query in queries]

    def twice(question):
        yield Search("abc", 3)
        return Outcome(docids=[h.docid for h in (yield Search("xbyaz", 5))])

    t = Tools(retriever=Listed())
    a = run_loop(twice, [Question("q", "")], t, budget=Budget(max_docs=4)).answered[0]
    assert a.outcome.docids == ["x#0", "b#0", "a#0"] and a.counts.docs == 4


def test_a_strategy_may_answer_from_what_it_has_when_a_budget_is_spent():
    def collects(question):
        seen = []
        try:
            while True:
                seen += yield Search(f"{len(seen)}", 1)
        except BudgetSpent as spent:
            reply = yield ask(f"answer from {len(seen)} passages, out of {spent.limit}")
            return Outcome(reply.text, stop_reason="never looked at")

    a = run_loop(collects, [Question("q", "")], tools(), budget=Budget(max_rounds=3)).answered[0]
    assert a.outcome.answer and a.outcome.stop_reason == "budget_rounds"
    assert (a.counts.searches, a.counts.llm_calls) == (3, 1)


def test_a_strategy_that_never_gives_up_is_ended_at_the_second_refusal():
    def stubborn(question):
        while True:
            try:
                yield Search("again", 1)
            except BudgetSpent:
                continue

    a = run_loop(stubborn, [Question("q", "")], tools(), budget=Budget(max_rounds=1)).answered[0]
    assert a.outcome == Outcome(stop_reason="budget_rounds") and a.counts.searches == 1


# -- isolation --------------------------------------------------------------------------------


def crashing(question):
    if question.qid == "q1":
        yield from fails_in_round_two(question)
    return (yield from note_taking(question))


def fails_in_round_two(question):
    yield Search(question.text, 2)
    yield ask("round one")
    yield Search("round two", 2)
    raise ValueError("no entity in the note")


def too_long(question):
    if question.qid == "q1":
        yield ask("word " * 1000)
    return (yield from note_taking(question))


def no_effect(question):
    if question.qid == "q1":
        yield "a prompt"
    return (yield from note_taking(question))


def no_outcome(question):
    outcome = yield from note_taking(question)
    return "text" if question.qid == "q1" else outcome


@pytest.mark.parametrize(
    ("strategy", "error"),
    [
        (crashing, "ValueError: no entity in the note"),
        (too_long, "QuarryError: a prompt and its completion may take 1008 tokens, the model's "
                   "context has 1000: show fewer or shorter passages."),
        (no_effect, "TypeError: a strategy yields effects or lists of them, not 'a prompt'"),
        (no_outcome, "TypeError: a strategy returns an Outcome, not 'text'"),
    ],
)  # fmt: skip
def test_a_question_that_fails_harms_no_other(strategy, error):
    loop, whole = (run_loop(s, QUESTIONS, tools()) for s in (strategy, note_taking))
    failed = loop.answered.pop(1)
    assert (failed.qid, failed.error) == ("q1", error)
    assert failed.outcome == Outcome(stop_reason="error")
    del whole.answered[1]
    assert loop.answered == whole.answered


class Picky(FakeLLM):
    """Refuses prompts that hold "long", as a server does whose context they exceed."""

    def _text(self, r):
        return Refused("too long") if "long" in r.prompt else super()._text(r)

    def choose(self, prompts, options):
        if any("long" in p for p in prompts):
            raise Refused("too long")
        return super().choose(prompts, options)


def test_what_a_server_refuses_is_thrown_into_its_question_and_not_kept(store):
    def shorter(question):
        try:
            return Outcome((yield [ask(question.text), ask("and another")])[0].text)
        except Refused:
            return Outcome((yield ask("shorter")).text)

    questions = [Question(f"q{i}", "long" if i in (2, 4) else f"a {i}") for i in range(6)]
    t = Tools(generator=Picky())
    loop = run_loop(shorter, questions, t, store=store)
    assert not any(a.error for a in loop.answered)
    assert [a.counts.llm_calls for a in loop.answered] == [2] * 6, "a refused call is none"
    assert loop.answered[2].outcome == loop.answered[4].outcome
    assert t.generator.n_calls == 4 + 1 + 1 + 1, "four texts, 'long', 'and another', 'shorter'"
    again = Tools(generator=Picky())
    assert table_bytes(run_loop(shorter, questions, again, store=store)) == table_bytes(loop)
    assert [r.prompt for b in again.generator.batches for r in b] == ["long"]


@pytest.mark.parametrize("long", [{0}, {5}, {1, 2}, set(range(7))])
def test_a_refused_choice_is_found_among_the_others_of_its_call(long):
    def choose(question):
        return Outcome(str((yield Choice(question.text, ["a", "b"]))))

    questions = [Question(f"q{i}", f"{i} " + "long" * (i in long)) for i in range(7)]
    loop = run_loop(choose, questions, Tools(generator=Picky()))
    assert {i for i, a in enumerate(loop.answered) if a.error == "Refused: too long"} == long
    alone = [run_loop(choose, [q], Tools(generator=FakeLLM())).answered[0] for q in questions]
    assert all(
        a.outcome == b.outcome
        for i, (a, b) in enumerate(zip(loop.answered, alone, strict=True)) if i not in long
    )  # fmt: skip


def test_a_choice_without_options_fails_its_question():
    def nothing_to_choose(question):
        yield Choice("which?", [])
        return Outcome()

    a = run_loop(nothing_to_choose, [Question("q", "")], tools()).answered[0]
    assert a.error == "ValueError: a choice needs one option or more"


# -- hints, choices, the log ------------------------------------------------------------------


def test_hints_reach_the_prefetcher_and_change_nothing():
    def without_hints(question):
        steps, sent = mixed(question), None
        while True:
            try:
                asked = steps.send(sent)
            except StopIteration as stop:
                return stop.value
            if isinstance(asked, list) and asked:
                first, drawn = yield [asked[0], asked[2]]
                sent = [first, None, drawn]
            else:
                sent = None if isinstance(asked, Hint) else (yield asked)

    heard = []
    hinted = run_loop(mixed, QUESTIONS, tools(prefetch=heard.append))
    assert sorted(heard) == ["alone"] * 4 + ["later"] * 4
    assert table_bytes(hinted) == table_bytes(run_loop(without_hints, QUESTIONS, tools()))


def test_a_choice_closer_than_the_tie_goes_to_the_smaller_index():
    assert pick([-2.0, -1.0, -1.5]) == 1
    assert pick([-1.00009, -1.0]) == 0
    assert pick([-1.0002, -1.0]) == 1
    assert pick([-3.0]) == 0


def test_the_log_of_a_choice_has_its_index_and_no_log_probability():
    def choose(question):
        return Outcome(str((yield Choice("sky is", ["blue", "green"]))))

    loop = run_loop(choose, [Question("q", "")], tools())
    (row,) = loop.effects.to_pylist()
    assert row["request"] == '{"options": ["blue", "green"], "prompt": "sky is"}'
    assert row["result"] == loop.answered[0].outcome.answer in {"0", "1"}
    assert row["tokens_in"] == loop.answered[0].counts.tokens_in == 2 + 1 + 1


def test_without_trace_the_effect_table_is_empty_and_the_answers_are_the_same():
    traced, bare = (run_loop(note_taking, QUESTIONS, tools(), trace=x) for x in (True, False))
    assert bare.effects.num_rows == 0 and bare.answered == traced.answered
    assert traced.effects.num_rows == 26 + 10


@pytest.mark.parametrize(
    ("effect", "value"),
    [
        (ask("p"), Generation("naïve ‏שלום\x00", 3, 4, "eos")),
        (Search("q", 2), [Hit("d#0", 0.1 + 0.2), Hit("é#1", float(np.float32(1 / 3)))]),
        (Choice("p", ["a"]), 0),
        (Encode(("a", "b")), np.array([[1 / 3, -1e-30], [0, 5]], dtype=np.float32)),
        (Score((("a", "b"),)), np.array([1e30], dtype=np.float32)),
    ],
)
def test_results_come_back_from_json_bit_for_bit(effect, value):
    again = read_result(effect, write_result(effect, value))
    assert np.array_equal(again, value) if isinstance(value, np.ndarray) else again == value
    assert getattr(again, "dtype", None) == getattr(value, "dtype", None)


def test_the_request_of_a_greedy_text_has_no_seed_of_its_question():
    t = tools()
    run_loop(note_taking, QUESTIONS, t)
    assert {r.seed for b in t.generator.batches for r in b} == {0}
    assert all(isinstance(r, Request) for b in t.generator.batches for r in b)


@pytest.mark.parametrize(("delta", "chosen"), [(0.2, 1), (0.299, 1), (0.3, 0), (0.5, 0)])
def test_of_two_the_second_is_chosen_above_a_share_of_delta(delta, chosen):
    """Shares of 0.7 and 0.3: at delta = 0.3 they weigh alike, and the first is chosen."""
    logps = [math.log(0.7 * 0.01), math.log(0.3 * 0.01)]
    assert pick(logps, (delta, 1 - delta)) == chosen


def test_weights_reach_the_tool_and_are_written_only_where_given():
    class Certain(FakeLLM):
        def choose(self, prompts, options):
            return [[math.log(0.7), math.log(0.3)] for _ in prompts]

    def decide(question):
        plain, heavy = yield [Choice("p", ["no", "yes"]), Choice("p", ["no", "yes"], (0.2, 0.8))]
        return Outcome(f"{plain}{heavy}")

    loop = run_loop(decide, [Question("q", "")], Tools(Certain()))
    assert loop.answered[0].outcome.answer == "01"
    assert write_request(Choice("p", ["no"])) == '{"options": ["no"], "prompt": "p"}'
    assert "weights" in loop.effects["request"][1].as_py()
