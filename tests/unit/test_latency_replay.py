"""A recorded run, replayed through the engine: what is asked, what it takes, what is logged."""

from pathlib import Path

import pytest
from index_worlds import built, encoder_dir, passages_of
from loop_fakes import FakeLLM
from strategy_worlds import count_words, library_of, params_of

from stages.asking import Asking
from stages.effects import Encode, Outcome, Question
from stages.errors import QuarryError
from stages.loop import run_loop
from stages.serve.prefetch.replaying import Recorded, replay
from stages.serve.prefetch.serve_log import Condition, check_equal, metrics
from stages.serve.prefetch.studying import Bench, calibrate_on, pick, serve_all
from stages.serve.strategies import hyde, iter_retgen, self_rag, subquestions
from stages.tables import table
from stages.tools import Tools
from stages.types import Generation, Hit, Request

PATIENCE = 20
PER_TOKEN, PER_CHOICE = 0.5, 3.0  # seconds of the simulated clock
SUBJECTS = ["volcano", "river", "glacier", "island", "desert", "harbour", "forest", "bridge"]
LAND = {
    f"{s}-{p}": (s.title(), f"A {s} in {p} that travellers describe.")
    for s in SUBJECTS
    for p in ("Sicily", "Japan", "Peru", "Norway")
}
QUESTIONS = [
    Question("1", "A volcano in Sicily"), Question("2", "Rivers of Norway"),
    Question("3", "The bridge"), Question("4", "An island near Japan"),
]  # fmt: skip
SAID = {"split": "Which volcano is it? Which river is near?", "write": "one two three"}


@pytest.fixture(scope="module")
def land(tmp_path_factory) -> Path:
    folder, store = tmp_path_factory.mktemp("land"), tmp_path_factory.mktemp("records")
    texts = passages_of({f"{name}#0": text for name, text in LAND.items()})
    cut = built(folder, "centroids", texts, store=store, nlist=8)
    return built(folder, "clustered", texts, store=store, centroids=cut.path, nprobe=3).path


class SlowLLM(FakeLLM):
    """A model whose time is that of a clock of its own; a call waits for the copies it hides."""

    def __init__(self, script) -> None:
        super().__init__(script)
        self.now, self.engine, self.requests = 0.0, None, []

    def clock(self) -> float:
        return self.now

    def generate(self, requests: list[Request]) -> list[Generation]:
        self.requests += requests
        self.now += PER_TOKEN * max(r.max_tokens for r in requests)
        self._hide()
        return [Generation("something else", 1, r.max_tokens, "length") for r in requests]

    def choose(self, prompts, options):
        self.now += PER_CHOICE
        self._hide()
        return super().choose(prompts, options)

    def _hide(self) -> None:
        window = self.engine._shared.window if self.engine else None
        if window is not None:
            assert window.handle.wait(PATIENCE)


def script(prompt: str) -> str:
    return (
        SAID["split"] if "Sub-questions" in prompt or "sub-questions" in prompt else SAID["write"]
    )


def recording(method, **values):
    """A strategy with its values, and the log of a run over another index."""
    params = params_of(method, k=5, **values)
    library = library_of(LAND, count_words)

    def strategy(question):
        return method.strategy(question, params, library)

    class Words:
        fingerprint = "words"

        def search(self, queries, k):
            return [[Hit(f"{name}#0", 1.0) for name in list(LAND)[:k]] for _ in queries]

    loop = run_loop(strategy, QUESTIONS, Tools(SlowLLM(script), Words()))
    assert not [a.error for a in loop.answered if a.error]
    return strategy, Recorded("land/run", loop.effects)


@pytest.fixture
def bench_of(land):
    def make(method, **values):
        strategy, recorded = recording(method, **values)
        llm = SlowLLM(script)
        settings = {"hot_bytes": 2**20, "throttle": (1e9, 0.0), "cache_fraction": 0.0}

        class Hiding(Bench):
            def serve(self, engine, questions):
                llm.engine = engine
                return super().serve(engine, questions)

        tools = Asking(Tools(llm))
        return Hiding(land, encoder_dir("dense"), settings, strategy, tools, recorded), llm

    return make


def run(bench: Bench, llm: SlowLLM, questions, system: str = "gradual", budget: int = 2**20):
    """The rounds of one micro-batch, on the simulated clock."""
    engine = bench.open(Condition(system, system, 0, len(questions), "arrival", budget))
    llm.engine = engine
    tools = bench.asking.tools._replace(retriever=engine, prefetch=engine.prefetch)
    try:
        asking = bench.asking._replace(tools=tools)
        rounds = replay(questions, bench.strategy, asking, engine, bench.recorded, clock=llm.clock)
        return rounds, engine
    finally:
        engine.close()


def test_the_model_reads_the_recorded_prompts_and_writes_as_many_tokens(bench_of) -> None:
    bench, llm = bench_of(iter_retgen, rounds=3, max_tokens=16)
    rounds, _ = run(bench, llm, QUESTIONS[:1])
    assert [r.max_tokens for r in llm.requests] == [3, 3, 3], "three words, wherever a stop was"
    assert all(r.stop == () and r.prompt.endswith("Answer:") for r in llm.requests)
    assert [(r.qid, r.round, r.n_queries) for r in rounds] == [
        ("1", 0, 1),
        ("1", 1, 1),
        ("1", 2, 1),
    ]


def test_seconds_of_the_model_lie_before_the_search_that_they_lead_to(bench_of) -> None:
    bench, llm = bench_of(iter_retgen, rounds=3)
    rounds, _ = run(bench, llm, QUESTIONS[:1])
    call = 3 * PER_TOKEN
    assert [r.t_pre for r in rounds] == [0, call, call]
    assert [r.t_post for r in rounds] == [0, 0, call]
    assert [r.t_ret for r in rounds] == [0, 0, 0], "the clock stands still while it searches"
    assert sum(r.seconds for r in rounds) == llm.now == 3 * call
    assert rounds[0].window_s == 0 < rounds[1].window_s, "round 0 is cold: no hint before it"


def test_a_query_that_is_its_own_hint_misses_nothing(bench_of) -> None:
    """Check 6: Self-RAG, with a budget for all probed clusters."""
    bench, llm = bench_of(self_rag, delta=0.0001)
    rounds, _ = run(bench, llm, QUESTIONS[:1])
    assert (rounds[0].hits, rounds[0].misses, rounds[0].bytes_missed) == (3, 0, 0)
    assert rounds[0].t_pre == PER_CHOICE and rounds[0].depth >= 3


def test_hits_and_misses_are_the_probed_clusters_and_the_budget_is_kept(bench_of) -> None:
    """Check 7."""
    bench, llm = bench_of(subquestions)
    for budget in (0, 4000, 2**20):
        rounds, engine = run(bench, llm, QUESTIONS, budget=budget)
        assert {r.n_queries for r in rounds} == {2}
        assert all(r.hits + r.misses == 2 * engine.nprobe for r in rounds)
        assert sum(r.bytes_copied for r in rounds) <= budget
    assert sum(r.hits for r in rounds) > 0


def test_requests_of_a_micro_batch_share_calls_and_windows(bench_of) -> None:
    bench, llm = bench_of(hyde, hypotheses=1, combine="text")
    rounds, engine = run(bench, llm, QUESTIONS)
    assert engine.stats()["windows"] == 1 and engine.stats()["searches"] == 2  # and the warm-up
    assert sorted(r.qid for r in rounds) == ["1", "2", "3", "4"]
    assert sum(r.bytes_copied for r in rounds) == engine.stats()["copied_bytes"] > 0
    assert {r.t_pre for r in rounds} == {3 * PER_TOKEN}, "one call for all"
    alone, _ = run(bench, llm, QUESTIONS[:1])
    assert alone[0].topk_ids == rounds[0].topk_ids


def test_a_request_that_does_not_search_has_a_row_all_the_same(bench_of) -> None:
    bench, llm = bench_of(self_rag, delta=1)
    rounds, _ = run(bench, llm, QUESTIONS[:2])
    assert [(r.qid, r.n_queries, r.t_post) for r in rounds] == [
        ("1", 0, 3 * PER_TOKEN), ("2", 0, 3 * PER_TOKEN),
    ]  # fmt: skip


def test_a_run_that_was_recorded_with_other_values_is_refused(bench_of) -> None:
    bench, llm = bench_of(iter_retgen, rounds=2)
    other, _ = recording(iter_retgen, rounds=2, max_tokens=3)
    with pytest.raises(QuarryError, match="question 1 asks for something else than in the run"):
        run(bench._replace(strategy=other), llm, QUESTIONS[:1])


def test_an_effect_that_is_not_replayed_is_refused(bench_of) -> None:
    bench, llm = bench_of(self_rag)

    def strategy(question):
        yield Encode([question.text])
        return Outcome()

    class Anything(Recorded):
        def result(self, step):
            return None

    recorded = Anything("r", table("effects", []))
    tools = bench.asking.tools._replace(encoder=llm)
    bench = bench._replace(
        strategy=strategy, recorded=recorded, asking=bench.asking._replace(tools=tools)
    )
    with pytest.raises(QuarryError, match="asks for Encode, which is not replayed"):
        run(bench, llm, QUESTIONS[:1])


def test_all_conditions_find_the_same_and_each_question_is_served_under_each(bench_of) -> None:
    bench, _ = bench_of(subquestions)
    systems = ("none", "gradual", "all", "once", "runtime")
    conditions = [
        Condition(f"{s} {o}", s, 0, g, o, 2**20)
        for s, (o, g) in zip(systems, [("arrival", 1)] * 3 + [("similar", 3)] * 2, strict=True)
    ]
    served = serve_all(bench, conditions, QUESTIONS)
    check_equal(served)
    assert all(list(s.rounds) == ["1", "2", "3", "4"] for s in served)
    assert [len(s.batches) for s in served] == [4, 4, 4, 2, 2]
    assert {s.condition.nprobe for s in served} == {3}, "the index's, where none is named"
    figures = metrics(served)
    assert figures["none arrival"]["hit_rate"] == 0 < figures["runtime similar"]["hit_rate"]


def test_calibration_replays_with_lookahead_and_without(bench_of) -> None:
    bench, _ = bench_of(iter_retgen, rounds=2)
    done = calibrate_on(bench, QUESTIONS, None)
    assert done.share == 1 / 2, "of two searches the second has a window"
    assert done.model.n == 3 and done.model.miss(0) == 1 and 0 < done.budget <= 2**20
    assert done.model.t_cc > 0


def test_of_a_micro_batch_the_clusters_of_all_its_requests_are_calibrated(bench_of) -> None:
    bench, _ = bench_of(iter_retgen, rounds=2)
    done = calibrate_on(bench, QUESTIONS, None, batch=3)
    assert done.share == 1 / 2 and done.model.n == 3 * 3, "of four questions one is left over"


def test_questions_to_measure_and_to_calibrate_on_are_others_and_of_the_run() -> None:
    recorded = Recorded("land/run", table("effects", []))
    recorded.qids = ["2", "1", "4", "9"]
    queries = table("queries", [
        dict(qid=q.qid, text=q.text, split="test", answers=[], options=[], meta="{}")
        for q in QUESTIONS
    ])  # fmt: skip
    measured, others = pick(recorded, queries, 2, 1)
    assert {q.qid for q in (*measured, *others)} == {"1", "2", "4"}
    with pytest.raises(QuarryError, match="has 3 questions of its corpus; 3 to measure and 1"):
        pick(recorded, queries, 3, 1)
