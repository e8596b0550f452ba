"""What a judge's scores are worth: AUC, calibration, and the threshold at which to stop.

Temperature scaling: Guo, Pleiss, Sun & Weinberger, On Calibration of Modern Neural Networks, ICML
2017; expected calibration error as there. The utility of a threshold is ours (RFM-RAG's rule could
not be read): the answer's F1 at the round that stops, less a price per round.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize_scalar
from scipy.stats import rankdata

Floats = npt.NDArray[np.float64]
TEMPERATURES = (0.05, 20.0)  # separable scores would take it to 0
BINS = 10
GRID = tuple(round(i / 100, 2) for i in range(101))  # thresholds that are tried


def weighted_bce(p: Floats, y: Floats, *, w_neg: float = 1.0) -> float:
    """Mean of -log p of the true label; a negative counts ``w_neg`` times, also in the divisor."""
    weights = np.where(y > 0, 1.0, w_neg)
    losses = -np.log(np.where(y > 0, p, 1 - p))
    return float((weights * losses).sum() / weights.sum())


def auc(scores: npt.ArrayLike, labels: npt.ArrayLike) -> float | None:
    """P(a positive scores higher than a negative), ties one half; None without one of both."""
    s, y = np.asarray(scores, float), np.asarray(labels) > 0
    n_pos, n_neg = int(y.sum()), int((~y).sum())
    if not n_pos or not n_neg:
        return None
    ranks = rankdata(s)
    return float((ranks[y].sum() - n_pos * (n_pos + 1) / 2) / (n_pos * n_neg))


def auc_interval(
    scores: npt.ArrayLike, labels: npt.ArrayLike, groups: Sequence[str], *, seed: int,
    draws: int = 500,
) -> tuple[float, float] | None:  # fmt: skip
    """95 % bootstrap interval of the AUC, whole groups drawn: a question's pools are alike."""
    s, y = np.asarray(scores, float), np.asarray(labels)
    names = sorted(set(groups))
    rows = [np.flatnonzero(np.asarray(groups) == name) for name in names]
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(draws if names else 0):
        part = np.concatenate([rows[i] for i in rng.integers(0, len(rows), len(rows))])
        if (value := auc(s[part], y[part])) is not None:
            found.append(value)
    return tuple(np.quantile(found, (0.025, 0.975)).tolist()) if found else None


def calibration_error(p: npt.ArrayLike, labels: npt.ArrayLike) -> float:
    """ECE: mean over ``BINS`` equal bins, by size, of |share of positives - mean score|."""
    p, y = np.asarray(p, float), (np.asarray(labels) > 0).astype(float)
    bins = np.minimum((p * BINS).astype(int), BINS - 1)
    gaps = [abs(y[bins == b].mean() - p[bins == b].mean()) * (bins == b).sum() for b in set(bins)]
    return float(sum(gaps) / len(p)) if len(p) else 0.0


def sigmoid(logits: npt.ArrayLike) -> Floats:
    """1 / (1 + exp(-x)), without overflow."""
    return 0.5 * (1 + np.tanh(np.asarray(logits, float) / 2))


def fit_temperature(logits: npt.ArrayLike, labels: npt.ArrayLike) -> float:
    """T within ``TEMPERATURES`` that makes sigmoid(logit / T) likeliest; 1 without both labels."""
    x, y = np.asarray(logits, float), np.where(np.asarray(labels) > 0, 1.0, -1.0)
    if len(set(y)) < 2:
        return 1.0

    def loss(log_t: float) -> float:
        return float(np.logaddexp(0, -y * x / np.exp(log_t)).mean())

    found = minimize_scalar(loss, bounds=np.log(TEMPERATURES), method="bounded")
    return round(float(np.exp(found.x)), 4)


def false_stops(p: npt.ArrayLike, labels: npt.ArrayLike, tau: float) -> float | None:
    """The share of insufficient pools that are judged sufficient; None without one."""
    p, y = np.asarray(p, float), np.asarray(labels)
    return float((p[y <= 0] >= tau).mean()) if (y <= 0).any() else None


class Rounds(NamedTuple):
    """One question's pools, round by round."""

    scores: list[float]
    f1: list[float]  # of the answer from each pool


def utility(rounds: Sequence[Rounds], tau: float, *, price: float) -> float:
    """Mean of (F1 where the loop stops - price x rounds before that).

    It stops at the first round with score >= tau, else at the last one.
    """
    total = 0.0
    for scores, f1 in rounds:
        stop = next((t for t, s in enumerate(scores) if s >= tau), len(scores) - 1)
        total += f1[stop] - price * stop
    return total / len(rounds)


def best_threshold(
    rounds: Sequence[Rounds], *, price: float, taus: Sequence[float] = GRID
) -> tuple[float, list[tuple[float, float]]]:
    """(the tau of largest utility, the smallest of several; the curve); 0.5 without rounds."""
    if not rounds:
        return 0.5, []
    curve = [(tau, round(utility(rounds, tau, price=price), 6)) for tau in taus]
    return max(curve, key=lambda point: (point[1], -point[0]))[0], curve
