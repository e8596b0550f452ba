"""How sure a mean over questions is, and whether two systems differ.

Questions are resampled, systems are compared question by question. B is the number of
resamples, n of questions; work is done in blocks, so memory does not grow with B · n. The
same seed gives the same numbers, and the same resamples to all systems with as many questions.

Efron & Tibshirani, An Introduction to the Bootstrap, 1993 (interval: §13.3, test: §16.4);
Smucker, Allan & Carterette, A Comparison of Statistical Significance Tests for Information
Retrieval Evaluation, CIKM 2007; Holm, Scandinavian Journal of Statistics, 1979.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

Values = npt.NDArray[np.float64]
BLOCK = 1 << 22  # numbers drawn at a time
SAME = 1e-12  # means closer than this are equal: they differ by rounding


def _blocks(resamples: int, n: int) -> Iterator[int]:
    """Numbers of resamples that add up to all of them, each with at most ``BLOCK`` draws."""
    size = max(1, BLOCK // max(n, 1))
    for at in range(0, resamples, size):
        yield min(size, resamples - at)


def bootstrap_means(values: Values, *, resamples: int, seed: int) -> Values:
    """The means of B samples of n values drawn with replacement, (B,)."""
    rng, n = np.random.default_rng(seed), len(values)
    return np.concatenate(
        [values[rng.integers(0, n, (b, n))].mean(axis=1) for b in _blocks(resamples, n)]
    )


def interval(
    values: Values, *, level: float = 0.95, resamples: int = 2000, seed: int = 13
) -> tuple[float, float]:
    """The percentile bootstrap interval of the mean."""
    means = bootstrap_means(values, resamples=resamples, seed=seed)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def bootstrap_test(difference: Values, *, resamples: int = 2000, seed: int = 13) -> float:
    """Two-sided p of the paired bootstrap test that the mean difference is 0.

    The differences are shifted to mean 0; p is the share of resamples whose mean is then as
    far from 0 as the one observed, counting the observation itself: never 0.
    """
    observed = difference.mean()
    means = bootstrap_means(difference - observed, resamples=resamples, seed=seed)
    return _share_as_extreme(means, observed)


def permutation_test(difference: Values, *, resamples: int = 2000, seed: int = 13) -> float:
    """Two-sided p of the paired randomisation test: were the systems' names exchangeable?

    Each resample swaps the two systems on every question with probability 1/2, which flips
    the sign of that difference.
    """
    rng, n = np.random.default_rng(seed), len(difference)
    means = np.concatenate(
        [
            (1 - 2 * rng.integers(0, 2, (b, n), dtype=np.int8)) @ difference / n
            for b in _blocks(resamples, n)
        ]
    )
    return _share_as_extreme(means, difference.mean())


def _share_as_extreme(means: Values, observed: float) -> float:
    return float((1 + np.sum(np.abs(means) >= abs(observed) - SAME)) / (1 + len(means)))


def holm(p: Sequence[float]) -> list[float]:
    """Adjusted p values, in the order given: all below α with a family-wise error below α."""
    order = np.argsort(p, kind="stable")
    stepped = np.asarray(p, dtype=np.float64)[order] * np.arange(len(p), 0, -1)
    adjusted = np.empty(len(p))
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(stepped))
    return adjusted.tolist()
