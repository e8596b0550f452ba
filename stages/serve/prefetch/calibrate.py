"""What a pipeline, an index and a machine were measured to be, and the budget that follows.

The calibration questions are replayed twice, with clusters fetched ahead and without. The first
gives the bandwidth, the window and the miss curve, the second what a missed cluster costs: fetched
ahead of a query that is its own hint, none is missed, and there would be no rate. Both see the same
searches in the same order.

Lin et al., TeleRAG, arXiv:2502.20969, §3.4: profile-guided, one number per pipeline, data, machine.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from stages.clusters import ClusterFile
from stages.errors import QuarryError
from stages.serve.prefetch.budget import LatencyModel, fit
from stages.serve.prefetch.engine import Observed, trace_of

MIB = 2**20
POINTS = 33  # of the curves that are written


class Calibration(NamedTuple):
    """A latency model, and the budget that it says is best."""

    model: LatencyModel
    budget: int  # bytes of one window
    share: float  # of all searches, those that had a window before them
    cluster: float  # bytes of one, the mean

    @property
    def fetch_s(self) -> float:
        """F: reading and scanning all clusters of a search when its query is known."""
        return self.model.n * self.model.t_cc

    def hit_rate(self, nbytes: float) -> float:
        """Of the probed clusters of all searches, those resident after so many copied bytes."""
        return self.share * (1 - self.model.miss(nbytes))


def calibrate(
    ahead: Sequence[Observed], behind: Sequence[Observed], file: ClusterFile, room: float
) -> Calibration:
    """The model of the same searches with lookahead and without; the budget within ``room`` bytes.

    Raises:
        QuarryError: the two are not the same searches, or there is nothing to measure.
    """
    if len(ahead) != len(behind):
        raise QuarryError(
            f"calibrate: {len(ahead)} searches with lookahead and {len(behind)} without; it must "
            f"be the same questions."
        )
    traces = [
        trace_of(a, file)._replace(misses=int(b.stats.misses.sum()), cold_s=b.stats.cold_s)
        for a, b in zip(ahead, behind, strict=True)
        if a.ranked is not None
    ]
    if not traces:
        raise QuarryError(
            "calibrate: no search had a window before it. Take more questions, or a run of a "
            "strategy that gives hints (rag and search give none)."
        )
    model = fit(traces)
    budget = int(model.best_budget(room))
    return Calibration(model, budget, len(traces) / len(ahead), float(file.nbytes.mean()))


def summary(done: Calibration) -> dict[str, float]:
    """The figures of a calibration; T is the window and the retrieval behind it."""
    model = done.model
    ahead = model.seconds(done.budget, waits=False)
    return {
        "window_s": _short(model.t_llm),
        "fetch_s": _short(done.fetch_s),
        "fetch_over_window": _short(done.fetch_s / model.t_llm),
        "bandwidth_mib_s": _short(model.bandwidth / MIB),
        "clusters": _short(model.n),
        "cluster_kib": _short(done.cluster / 1024),
        "missed_ms": _short(1000 * model.t_cc),
        "resident_ms": _short(1000 * model.t_hot),
        "with_window": _short(done.share),
        "budget_mib": _short(done.budget / MIB),
        "expected_hit_rate": _short(done.hit_rate(min(done.budget, model.bandwidth * model.t_llm))),
        "expected_none_s": _short(model.seconds(0)),
        "expected_ahead_s": _short(ahead),
        "expected_speedup": _short(model.seconds(0) / ahead),
    }


def curve(done: Calibration, most: float) -> list[dict[str, Any]]:
    """Rows of the plot of hit rate against budget: what is expected, up to ``most`` bytes."""
    return [
        {"system": "expected", "mib": round(b / MIB, 4), "hit_rate": _short(done.hit_rate(b))}
        for b in np.linspace(0, most, POINTS).tolist()
    ]


def _short(value: float) -> float:
    """Four significant digits: more would be noise."""
    return float(f"{value:.4g}")
