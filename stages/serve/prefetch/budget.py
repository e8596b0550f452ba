"""How long an answer takes with a budget of b bytes, and which budget is best.

T(b) = max(t_LLM, b / B) + max(miss(b) · n · t_cc, t_hot): copies are hidden behind the call of the
language model as long as b ≤ B · t_LLM; beyond, more of them pays while -miss'(b) · n · t_cc > 1/B.
So b* = max(B · t_LLM, b°), b° where the two sides are equal, capped by the room.

Any unit of bytes and seconds will do, the same one throughout. That is the model of an engine that
waits for its copies, the paper's. Ours cuts a window off when the query is known (``waits=False``):
b above B · t_LLM then costs nothing and brings nothing.

Lin et al., TeleRAG, arXiv:2502.20969, §3.4.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from stages.clusters import Floats, Ints
from stages.errors import QuarryError

GRID = 4096  # budgets that are compared before the best one is narrowed down
POINTS = 257  # of a fitted miss curve
GOLDEN = (5**0.5 - 1) / 2


class MissCurve(NamedTuple):
    """The share of probed clusters that are not resident after b bytes; straight between points."""

    nbytes: Floats  # (m,) ascending
    miss: Floats  # (m,)

    def __call__(self, b: float) -> float:
        """At b bytes; beyond the last point as there."""
        return float(np.interp(b, self.nbytes, self.miss))


class LatencyModel(NamedTuple):
    """What a system was measured to be."""

    miss: Callable[[float], float]
    bandwidth: float  # B, bytes per second from the cold tier to the hot one
    t_llm: float  # of the window
    n: float  # clusters that a search probes, over all its queries
    t_cc: float  # for each missed cluster, read and scanned
    t_hot: float = 0.0  # of the resident ones

    def seconds(self, b: float, *, waits: bool = True) -> float:
        """T(b), the time of the window and of the retrieval behind it."""
        copied = b if waits else min(b, self.bandwidth * self.t_llm)
        search = max(self.miss(copied) * self.n * self.t_cc, self.t_hot)
        return max(self.t_llm, copied / self.bandwidth) + search

    def best_budget(self, room: float = np.inf) -> float:
        """The smallest b ≤ ``room`` with the least T(b)."""
        low = self.bandwidth * self.t_llm  # up to here T never rises
        if low >= room:
            return room
        high = min(room, self.bandwidth * self.seconds(low))  # beyond, the copy alone is longer
        grid = np.linspace(low, high, GRID)
        i = int(np.argmin([self.seconds(b) for b in grid]))
        found = _narrow(self.seconds, grid[max(0, i - 1)], grid[min(GRID - 1, i + 1)])
        return float(min((grid[i], found), key=self.seconds))


def _narrow(f: Callable[[float], float], a: float, b: float) -> float:
    """Where a function that falls and then rises is least between a and b: golden section."""
    for _ in range(60):
        c, d = b - GOLDEN * (b - a), a + GOLDEN * (b - a)
        a, b = (a, d) if f(c) <= f(d) else (c, b)
    return (a + b) / 2


class Trace(NamedTuple):
    """One search and the window before it, as they were measured."""

    needed: Floats  # (p,) bytes after which each probed cluster would be resident; inf: never
    window_s: float
    copied_bytes: int
    copy_s: float
    misses: int  # of the p
    cold_s: float
    hot_s: float


def needed_bytes(ranked: Ints, probed: Ints, nbytes: Ints) -> Floats:
    """(q_out · n,) bytes that a lookahead with lists (q_in, depth) copies, rank by rank, until each
    cluster of ``probed`` (q_out, n) is resident; inf where it is in none of the lists.

    ``nbytes`` (nlist,). From an empty hot tier: what was cached is not counted.
    """
    visits = ranked.T.ravel()
    order = visits[np.sort(np.unique(visits, return_index=True)[1])]
    needed = np.full(len(nbytes), np.inf)
    needed[order] = np.cumsum(nbytes[order])
    needed[nbytes == 0] = 0
    return needed[probed.ravel()]


def fit_curve(needed: Floats) -> MissCurve:
    """The miss curve of probed clusters that become resident after so many bytes (p,)."""
    reached = np.sort(needed[np.isfinite(needed)])
    ranks = np.unique(np.linspace(0, len(reached) - 1, POINTS).astype(int)) if len(reached) else []
    at = np.unique(np.concatenate([[0.0], reached[ranks]]))
    return MissCurve(at, 1 - np.searchsorted(reached, at, "right") / max(1, len(needed)))


def fit(traces: Sequence[Trace]) -> LatencyModel:
    """The model of these traces: rates are sums over sums, times are means.

    Raises:
        QuarryError: nothing was copied, or nothing was missed, so that there is no rate.
    """
    copied, copy_s = sum(t.copied_bytes for t in traces), sum(t.copy_s for t in traces)
    missed, cold_s = sum(t.misses for t in traces), sum(t.cold_s for t in traces)
    for what, amount in (("copied", copied), ("missed", missed)):
        if not amount:
            raise QuarryError(
                f"calibrate: in {len(traces)} searches nothing was {what}; there is no rate to "
                f"measure. Take questions with a window, and a budget that is not enough for all."
            )
    return LatencyModel(
        miss=fit_curve(np.concatenate([t.needed for t in traces])),
        bandwidth=copied / copy_s,
        t_llm=float(np.mean([t.window_s for t in traces])),
        n=float(np.mean([len(t.needed) for t in traces])),
        t_cc=cold_s / missed,
        t_hot=float(np.median([t.hot_s for t in traces])),
    )
