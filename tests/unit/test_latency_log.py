"""The log of a latency study and its figures, from rounds and clocks that are written down here."""

import math

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from prefetch_worlds import World

from stages.clusters import ClusterFile, nearest_clusters
from stages.errors import QuarryError
from stages.serve.measure import Params
from stages.serve.prefetch.calibrate import MIB, calibrate, curve, summary
from stages.serve.prefetch.engine import Observed
from stages.serve.prefetch.hybrid import SearchStats
from stages.serve.prefetch.replaying import Round, reached
from stages.serve.prefetch.serve_log import (
    SCHEMA,
    Condition,
    Served,
    check_equal,
    hit_rows,
    interval,
    latency_rows,
    log_table,
    metrics,
    write_log,
)
from stages.serve.prefetch.studying import plan_conditions


def condition(system: str, *, label: str = "", nprobe: int = 4, batch: int = 1) -> Condition:
    budget = 0 if system == "none" else 3 * MIB
    return Condition(label or system, system, nprobe, batch, "arrival", budget)


def round_of(qid: str, no: int = 0, hits: int = 0, *, ret: float, **more) -> Round:
    base = {"n_queries": 1, "misses": 4 - hits, "t_ret": ret, "topk_ids": ("d1", "d2")}
    return Round(qid, no, hits=hits, **{**base, **more})


NONE = Served(
    condition("none"),
    [
        [round_of("a", ret=1.0, t_pre=2.0), round_of("a", 1, ret=1.0, t_pre=1.0, t_post=0.5)],
        [round_of("b", ret=2.0, t_pre=1.0, t_post=1.0, t_sched=0.5)],
    ],
)
AHEAD = Served(
    condition("gradual"),
    [
        [
            round_of("b", hits=4, ret=0.5, t_pre=1.0, t_post=1.0, t_sched=0.5, window_s=1.0,
                     depth=6, bytes_copied=2 * MIB),
        ],
        [
            round_of("a", hits=2, ret=0.5, t_pre=2.0, window_s=2.0, depth=2, bytes_copied=MIB),
            round_of("a", 1, ret=1.0, t_pre=1.0, t_post=0.5, bytes_missed=MIB),
        ],
    ],
)  # fmt: skip


# -- figures --------------------------------------------------------------------------------


def test_a_question_takes_the_sum_of_its_parts_and_figures_are_means_over_questions() -> None:
    none = metrics([NONE, AHEAD])["none"]
    assert none["n"] == 2
    assert none["seconds"] == ((1.0 + 2.0 + 1.0 + 1.0 + 0.5) + (2.0 + 1.0 + 1.0 + 0.5)) / 2
    assert none["model_s"] == ((2.0 + 1.0 + 0.5) + (1.0 + 1.0)) / 2
    assert none["retrieval_s"] == ((1.0 + 1.0) + 2.0) / 2
    assert none["other_s"] == 0.5 / 2
    assert none["searches"] == 3 / 2
    assert none["hit_rate"] == 0
    assert "speedup" not in none and "window_s" not in none


def test_the_hit_rate_is_averaged_over_a_request_s_searches_and_then_over_requests() -> None:
    ahead = metrics([NONE, AHEAD])["gradual"]
    assert ahead["hit_rate"] == ((2 / 4 + 0 / 4) / 2 + 4 / 4) / 2
    assert ahead["copied_mib"] == (1 + 2) / 2 and ahead["missed_mib"] == 1 / 2
    assert (ahead["window_s"], ahead["depth"]) == ((2.0 + 1.0) / 2, (2 + 6) / 2)


def test_speed_ups_are_ratios_of_means_beside_the_same_condition_without_lookahead() -> None:
    ahead = metrics([NONE, AHEAD])["gradual"]
    assert ahead["speedup"] == pytest.approx((5.5 + 4.5) / (5.0 + 3.0), abs=1e-3)
    assert ahead["retrieval_speedup"] == (2.0 + 2.0) / (1.5 + 0.5)
    assert ahead["speedup_low"] == pytest.approx(5.5 / 5.0, abs=1e-3), "only question a is drawn"
    assert ahead["speedup_high"] == pytest.approx(4.5 / 3.0, abs=1e-3)
    other = Served(condition("gradual", label="gradual nprobe 8", nprobe=8), AHEAD.batches)
    assert "speedup" not in metrics([NONE, other])["gradual nprobe 8"]


def test_a_micro_batch_takes_as_long_as_its_slowest_request() -> None:
    together = Served(
        condition("none", batch=2), [[row for batch in NONE.batches for row in batch]]
    )
    assert metrics([NONE])["none"]["per_second"] == pytest.approx(2 / (5.5 + 4.5))
    assert metrics([together])["none"]["per_second"] == pytest.approx(2 / 5.5, abs=1e-4)


def test_a_request_that_never_searched_is_counted_and_has_no_hit_rate() -> None:
    closed = Served(condition("gradual"), [[Round("a", 0, t_post=2.0)]])
    figures = metrics([closed])["gradual"]
    assert (figures["seconds"], figures["searches"], figures["retrieval_s"]) == (2.0, 0, 0)
    assert "hit_rate" not in figures and hit_rows([closed], metrics([closed])) == []


def test_an_interval_of_equal_ratios_is_that_ratio() -> None:
    ours = np.array([1.0, 2.0, 3.0])
    assert interval(2 * ours, ours) == pytest.approx((2.0, 2.0))


def test_plots_have_a_row_per_condition_and_only_lookahead_has_a_hit_rate() -> None:
    figures = metrics([NONE, AHEAD])
    rows = latency_rows([NONE, AHEAD], figures)
    assert [r["system"] for r in rows] == ["none", "gradual"]
    for row in rows:
        parts = row["model_s"] + row["retrieval_s"] + row["other_s"]
        assert row["seconds"] == pytest.approx(parts)
    assert hit_rows([NONE, AHEAD], figures) == [
        {"system": "measured", "mib": 3.0, "hit_rate": figures["gradual"]["hit_rate"]}
    ]


# -- the log --------------------------------------------------------------------------------


def test_the_log_has_a_row_per_search_with_the_card_s_columns(tmp_path) -> None:
    table = pq.read_table(write_log(log_table("hyde", [NONE, AHEAD]), tmp_path))
    assert table.schema.remove_metadata() == SCHEMA
    card = {
        "qid", "pipeline", "round", "system", "nprobe", "budget_bytes", "hits", "misses",
        "bytes_copied", "t_sched", "t_pre", "t_ret", "t_post", "topk_ids",
    }  # fmt: skip
    assert card <= set(table.schema.names)
    rows = table.to_pylist()
    assert len(rows) == 6
    assert all(r["hits"] + r["misses"] == r["nprobe"] * r["n_queries"] for r in rows)
    assert [(r["system"], r["batch_no"], r["qid"]) for r in rows[-3:]] == [
        ("gradual", 0, "b"), ("gradual", 1, "a"), ("gradual", 1, "a"),
    ]  # fmt: skip
    assert log_table("hyde", []).schema == SCHEMA and pa.types.is_list(SCHEMA.field(-1).type)


def test_other_passages_under_another_condition_are_an_error() -> None:
    check_equal([NONE, AHEAD])
    other = [[NONE.batches[1][0]._replace(topk_ids=("d2", "d1"))]]
    with pytest.raises(QuarryError, match="question b, search 0: 'gradual' found"):
        check_equal([NONE, Served(condition("gradual"), other)])
    check_equal([NONE, Served(condition("gradual", nprobe=8), other)])  # may find others


# -- conditions -----------------------------------------------------------------------------


def planned(**changed):
    base = {
        "systems": ["none", "gradual"], "nprobe": [None], "batch": [1], "order": ["arrival"],
        "budget": {1: [MIB]},
    }  # fmt: skip
    return plan_conditions(**{**base, **changed})


def test_a_label_says_what_has_several_values() -> None:
    assert [c.label for c in planned()] == ["none", "gradual"]
    assert [c.label for c in planned(nprobe=[2, 4])] == [
        "none nprobe 2", "gradual nprobe 2", "none nprobe 4", "gradual nprobe 4",
    ]  # fmt: skip
    assert [c.label for c in planned(order=["arrival", "similar"], systems=["gradual"])] == [
        "gradual arrival", "gradual similar",
    ]  # fmt: skip


def test_what_copies_nothing_is_there_once_for_all_budgets() -> None:
    found = planned(budget={1: [MIB // 2, 2 * MIB]})
    assert [(c.label, c.budget_bytes) for c in found] == [
        ("none", 0), ("gradual 0.5 MiB", MIB // 2), ("gradual 2 MiB", 2 * MIB),
    ]  # fmt: skip


def test_each_size_of_a_batch_has_the_budget_of_its_windows() -> None:
    found = planned(batch=[1, 8], budget={1: [MIB], 8: [4 * MIB]}, systems=["gradual"])
    assert [(c.label, c.budget_bytes) for c in found] == [
        ("gradual batch 1", MIB), ("gradual batch 8", 4 * MIB),
    ]  # fmt: skip


SLOTS = {
    "strategy": "hyde", "corpus": "c", "index": "i", "encoder": "e", "model": "m", "run": "c/h",
}  # fmt: skip


def test_an_entry_asks_one_question() -> None:
    assert Params(**SLOTS, nprobe=[2, 4]).questions == 12
    with pytest.raises(ValueError, match="nprobe and batch have several values"):
        Params(**SLOTS, nprobe=[2, 4], batch=[1, 2])
    with pytest.raises(ValueError, match="cache_fraction 0, or a disk_mib_s"):
        Params(**SLOTS, cache_fraction=0.5)


# -- calibration ----------------------------------------------------------------------------


def test_ranks_that_are_copied_as_a_whole_are_counted() -> None:
    """Check 3's lists: 7 and 2, then 5 (2 is there), then 9 (7 is there)."""
    ranked = np.array([[7, 2, 9], [2, 5, 7]])
    sizes = np.full(10, 10)
    assert [reached(ranked, sizes, b) for b in (0, 10, 20, 29, 30, 35, 40)] == [
        0, 0, 1, 1, 2, 2, 3,
    ]  # fmt: skip


N, BANDWIDTH, WINDOW, T_CC, T_HOT = 4, 10_000.0, 0.5, 0.2, 0.01


@pytest.fixture
def clocked(tmp_path):
    """Searches of a system whose every rate is known, with lookahead and without, and its file."""
    world = World(tmp_path, [5] * 16, d=8)
    file = ClusterFile(tmp_path)
    ahead, behind = [], []
    for query in world.queries(30):
        ranked = nearest_clusters(query[None], file.centroids, 16)
        copied = int(BANDWIDTH * WINDOW)
        hits = min(N, copied // int(file.nbytes[0]))
        for seen, h, copy in ((ahead, hits, copied), (behind, 0, 0)):
            misses = N - h
            stats = SearchStats(np.array([h]), np.array([misses]), 0, T_HOT, misses * T_CC)
            window = (ranked, WINDOW, copy) if copy else (None, 0.0, 0)
            seen.append(
                Observed(
                    "v", window[0], query[None], window[1], copy, copy / BANDWIDTH, stats, 0.0, 0.0
                )
            )
    yield ahead, behind, file
    file.close()


def test_a_calibration_of_a_known_system_gives_that_system(clocked) -> None:
    ahead, behind, file = clocked
    done = calibrate(ahead, behind, file, room=1e9)
    model = done.model
    assert model.bandwidth == pytest.approx(BANDWIDTH) and model.t_llm == pytest.approx(WINDOW)
    assert (model.n, done.share) == (N, 1.0)
    assert model.t_cc == pytest.approx(T_CC) and model.t_hot == pytest.approx(T_HOT)
    assert done.fetch_s == pytest.approx(N * T_CC)
    # q_in = q_out and clusters of one size: the budget of N clusters is hidden, and enough.
    one = file.nbytes[0]
    assert model.miss(N * one) == 0 and model.miss(0) == 1
    assert N * one < BANDWIDTH * WINDOW
    assert done.budget == int(BANDWIDTH * WINDOW)
    assert model.seconds(0) == pytest.approx(WINDOW + N * T_CC)
    assert model.seconds(done.budget, waits=False) == pytest.approx(WINDOW + T_HOT)


def test_the_summary_and_the_curve_say_what_the_model_says(clocked) -> None:
    ahead, behind, file = clocked
    done = calibrate(ahead, behind, file, room=1e9)
    said = summary(done)
    assert said["fetch_over_window"] == pytest.approx(N * T_CC / WINDOW)
    assert said["expected_speedup"] == pytest.approx(
        (WINDOW + N * T_CC) / (WINDOW + T_HOT), rel=1e-3
    )
    assert said["expected_hit_rate"] == 1.0
    rows = curve(done, done.budget)
    assert [rows[0]["hit_rate"], rows[-1]["hit_rate"]] == [0.0, 1.0]
    rates = [r["hit_rate"] for r in rows]
    assert rates == sorted(rates)
    assert math.isclose(rows[-1]["mib"], done.budget / MIB, abs_tol=1e-4)


def test_the_room_caps_the_budget_and_searches_without_a_window_lower_the_hit_rate(clocked) -> None:
    ahead, behind, file = clocked
    half = [a if i % 2 else a._replace(ranked=None) for i, a in enumerate(ahead)]
    done = calibrate(half, behind, file, room=2000)
    assert done.budget == 2000 and done.share == 0.5
    assert done.hit_rate(1e9) == 0.5


def test_what_cannot_be_calibrated_says_why(clocked) -> None:
    ahead, behind, file = clocked
    with pytest.raises(QuarryError, match="30 searches with lookahead and 29 without"):
        calibrate(ahead, behind[1:], file, 1e9)
    with pytest.raises(QuarryError, match="no search had a window"):
        calibrate(behind, behind, file, 1e9)
