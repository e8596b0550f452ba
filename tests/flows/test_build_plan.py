"""When stages start: the order, the limits, and what needs no process."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flows.dvc import Stage
from flows.plan import Plan, needs_torch

MODEL = ("data/finetune/m",)


def graph(**upstreams: str) -> dict[str, Stage]:
    """A stage per keyword; an upper-case name computes with torch."""
    return {
        name: Stage(name, tuple(ups), MODEL if name.isupper() else (), ())
        for name, ups in upstreams.items()
    }


def start(plan: Plan) -> dict[str, bool]:
    return {stage.name: run for stage, run in plan.start()}


def test_a_stage_waits_for_all_its_upstreams():
    plan = Plan(graph(a="", b="a", c="ab"), {"a", "b", "c"})
    assert start(plan) == {"a": True}
    assert start(plan) == {}
    plan.end("a", "Completed")
    assert start(plan) == {"b": True}
    plan.end("b", "Completed")
    assert start(plan) == {"c": True}
    assert not plan.is_done()
    plan.end("c", "Completed")
    assert plan.is_done()


def test_two_run_at_once_one_of_them_with_torch_and_that_one_first():
    plan = Plan(graph(a="", b="", M="", N=""), {"a", "b", "M", "N"})
    assert start(plan) == {"M": True, "a": True}
    plan.end("a", "Completed")
    assert start(plan) == {"b": True}
    plan.end("M", "Completed")
    assert start(plan) == {"N": True}


def test_what_most_others_wait_for_goes_first():
    plan = Plan(graph(L="", M="", N="M", o="N"), {"L", "M", "N", "o"})
    assert start(plan) == {"M": True}
    plan.end("M", "Completed")
    assert start(plan) == {"N": True}
    plan.end("N", "Completed")
    assert start(plan) == {"L": True, "o": True}


def test_a_stage_is_alone_when_nothing_long_can_run_beside_it():
    stages = graph(M="", a="", N="M", b="N", O="N") | graph(**{"evaluate@x": "a"})
    plan = Plan(stages, set(stages))
    assert start(plan) == {"M": True, "a": True}
    assert not plan.is_alone("M") and not plan.is_alone("a")
    plan.end("a", "Completed")
    assert plan.is_alone("M"), "b waits for torch, and an evaluation takes seconds"
    start(plan)
    plan.end("M", "Completed")
    plan.end("evaluate@x", "Completed")
    assert start(plan) == {"N": True} and plan.is_alone("N")
    plan.end("N", "Completed")
    assert start(plan) == {"O": True, "b": True} and not plan.is_alone("O")
    plan = Plan(stages, {"N"})
    start(plan)
    plan.end("M", "Unchanged")
    assert start(plan) == {"N": True}
    assert plan.is_alone("N"), "an unchanged stage takes no core"


def test_unchanged_stages_take_no_place():
    plan = Plan(graph(a="", b="", c="", d=""), {"a", "b"})
    assert start(plan) == {"a": True, "b": True, "c": False, "d": False}


def test_behind_a_stage_that_was_made_dvc_is_asked_and_behind_an_unchanged_one_it_is_not():
    plan = Plan(graph(a="", b="", c="a", d="b"), {"a", "b"})
    start(plan)
    plan.end("a", "Unchanged")
    plan.end("b", "Restored")
    assert start(plan) == {"c": False, "d": True}


def test_behind_a_failure_nothing_runs_but_it_is_shown():
    plan = Plan(graph(a="", b="a", c="b", d=""), {"a", "b", "c", "d"})
    start(plan)
    plan.end("a", "Failed")
    assert start(plan) == {"b": False}
    plan.end("b", "NotReady")
    assert start(plan) == {"c": False}
    plan.end("c", "NotReady")
    plan.end("d", "Completed")
    assert plan.summary() == "4 stages: 1 Completed, 1 Failed, 2 not run"


@pytest.mark.parametrize(
    ("reads", "writes", "torch"),
    [
        (["data/ingest/mine", "data/finetune/none"], ["data/index/bm25-mine"], False),
        (["data/ingest/mine", "data/finetune/minilm"], ["data/index/flat-mine"], True),
        (["data/finetune/none"], ["data/finetune/smollm2"], True),
        (["data/studies/finetune/big"], ["data/studies/runs/x"], True),
        (["stages/finetune/__main__.py"], ["data/fused/x"], False),
    ],
)
def test_a_stage_needs_torch_if_it_reads_or_writes_a_model(reads, writes, torch):
    assert needs_torch(Stage("x", (), tuple(reads), tuple(writes))) is torch


@given(st.data())
def test_every_stage_of_any_graph_ends_once_within_the_limits(data):
    names = [n.upper() if data.draw(st.booleans()) else n for n in "abcdefg"]
    ups = {
        n: "".join(u for u in names[:i] if data.draw(st.booleans())) for i, n in enumerate(names)
    }
    changed = {n for n in names if data.draw(st.booleans())}
    plan = Plan(graph(**ups), changed)
    running: dict[str, bool] = {}
    ended: list[str] = []
    while not plan.is_done():
        started = start(plan)
        assert all(set(ups[name]) <= set(ended) for name in started)
        assert all(run for name, run in started.items() if name in changed)
        running |= started
        with_process = [name for name, run in running.items() if run]
        assert len(with_process) <= 2
        assert sum(name.isupper() for name in with_process) <= 1
        name = data.draw(st.sampled_from(sorted(running)))  # nothing to draw: the plan is stuck
        run = running.pop(name)
        plan.end(
            name, data.draw(st.sampled_from(["Completed", "Unchanged"])) if run else "Unchanged"
        )
        ended.append(name)
    assert sorted(ended) == sorted(names)
