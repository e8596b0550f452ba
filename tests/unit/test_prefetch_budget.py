"""The latency model: the card's numbers, the budget they give, what is fitted from traces."""

import math

import numpy as np
import pytest

from stages.errors import QuarryError
from stages.serve.prefetch.budget import (
    LatencyModel,
    MissCurve,
    Trace,
    fit,
    fit_curve,
    needed_bytes,
)


def card(t_llm: float) -> LatencyModel:
    """Bytes in GB, seconds."""
    return LatencyModel(lambda b: math.exp(-b / 5), 25.0, t_llm, n=256, t_cc=0.002, t_hot=0.004)


# -- check 4 --------------------------------------------------------------------------------


def test_a_long_window_hides_the_whole_budget() -> None:
    model = card(0.4)
    assert model.best_budget() == pytest.approx(25 * 0.4, rel=1e-9)
    assert model.seconds(10.0) == pytest.approx(0.4 + math.exp(-2) * 256 * 0.002)
    assert round(model.seconds(10.0), 4) == 0.4693
    assert round(model.seconds(0.0), 3) == 0.912
    assert round(model.seconds(20.0), 4) == 0.8094


def test_behind_a_short_window_copies_go_on_until_they_cost_what_they_save() -> None:
    model = card(0.1)
    b = 5 * math.log(256 * 0.002 * 25 / 5)  # -miss'(b) · n · t_cc = 1/B
    assert model.best_budget() == pytest.approx(b, rel=1e-5)
    assert (round(b, 2), round(model.seconds(b), 3)) == (4.70, 0.388)


def test_the_room_caps_the_budget() -> None:
    assert card(0.4).best_budget(room=8.0) == 8.0
    assert card(0.1).best_budget(room=3.0) == pytest.approx(3.0)


def test_an_engine_that_does_not_wait_never_pays_for_a_large_budget() -> None:
    model = card(0.4)
    assert model.seconds(20.0, waits=False) == model.seconds(10.0)
    assert model.seconds(5.0, waits=False) == model.seconds(5.0)


def test_where_the_resident_part_takes_longer_a_budget_beyond_that_is_not_taken() -> None:
    model = card(0.4)._replace(t_hot=0.5)
    assert model.best_budget() == pytest.approx(10.0)
    flat = LatencyModel(lambda b: 0.5, 25.0, 0.1, n=256, t_cc=0.002)
    assert flat.best_budget() == pytest.approx(2.5), "copies that bring nothing are not made"


# -- the fit --------------------------------------------------------------------------------


def test_a_cluster_needs_what_is_copied_before_it_rank_by_rank() -> None:
    """Lists [7, 2, 9] and [2, 5, 7], all of size 10: 7 after 10, 2 after 20, 5 after 30, 9 last."""
    ranked, tens = np.array([[7, 2, 9], [2, 5, 7]]), np.full(10, 10)
    needed = needed_bytes(ranked, np.array([[9, 7], [2, 4]]), tens)
    assert needed.tolist() == [40, 10, 20, np.inf]
    tens[4] = 0
    assert needed_bytes(ranked, np.array([[4]]), tens).tolist() == [0], "empty ones are there"


def test_the_curve_is_the_share_that_is_not_yet_there() -> None:
    curve = fit_curve(np.array([10.0, 10.0, 20.0, np.inf]))
    assert curve(0) == 1 and curve(10) == 0.5 and curve(20) == 0.25 and curve(1e9) == 0.25
    assert isinstance(curve, MissCurve) and 0.25 < curve(15) < 0.5
    assert fit_curve(np.array([np.inf]))(5) == 1.0
    assert fit_curve(np.array([0.0, 0.0]))(0) == 0.0


def test_rates_and_times_come_from_all_traces_together() -> None:
    one = Trace(np.array([10.0, 30.0]), 1.0, 100, 0.5, 2, 0.2, 0.01)
    two = Trace(np.array([20.0, np.inf]), 3.0, 300, 1.5, 1, 0.1, 0.03)
    model = fit([one, two])
    assert (model.bandwidth, model.t_llm, model.n) == (400 / 2.0, 2.0, 2.0)
    assert model.t_cc == pytest.approx(0.3 / 3) and model.t_hot == pytest.approx(0.02)
    assert [model.miss(b) for b in (0, 10, 20, 30)] == [1, 0.75, 0.5, 0.25]


def test_a_fit_of_traces_from_a_known_system_gives_that_system() -> None:
    rng, true = np.random.default_rng(1), LatencyModel(lambda b: math.exp(-b / 5), 25.0, 0.1, 8, 2)
    traces = []
    for _ in range(2000):
        needed = rng.exponential(5, 8)
        missed = int((needed > 2.5).sum())
        traces.append(Trace(needed, 0.1, 2.5, 0.1, missed, 2.0 * missed, 0.0))
    model = fit(traces)
    for b in (0.5, 2.0, 5.0, 12.0):
        assert model.seconds(b) == pytest.approx(true.seconds(b), rel=0.05)
    assert model.best_budget() == pytest.approx(true.best_budget(), rel=0.25), "a flat minimum"
    assert true.seconds(model.best_budget()) == pytest.approx(
        true.seconds(true.best_budget()), rel=0.02
    )


@pytest.mark.parametrize(
    ("changed", "what"), [({"copied_bytes": 0}, "copied"), ({"misses": 0}, "missed")]
)
def test_without_a_copy_or_a_miss_there_is_no_rate(changed, what: str) -> None:
    trace = Trace(np.array([1.0]), 1.0, 10, 1.0, 1, 1.0, 0.0)._replace(**changed)
    with pytest.raises(QuarryError, match=f"nothing was {what}; there is no rate"):
        fit([trace])
