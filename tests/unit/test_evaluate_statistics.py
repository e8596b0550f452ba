"""Intervals and tests on numbers whose answer is known."""

import math

import numpy as np
import pytest

from stages.evaluate import statistics
from stages.evaluate.statistics import bootstrap_test, holm, interval, permutation_test


def test_the_interval_of_a_coin_is_that_of_the_binomial():
    # 100 throws, half of them 1: the mean of a resample is Binomial(100, 1/2) / 100, whose
    # 2.5 % and 97.5 % quantiles are 40 and 60.
    values = np.repeat([0.0, 1.0], 50)
    assert interval(values, resamples=20_000) == pytest.approx((0.40, 0.60), abs=0.01)


def test_the_interval_of_one_question_or_of_equal_ones_is_a_point():
    assert interval(np.array([0.25])) == (0.25, 0.25)
    assert interval(np.full(9, 0.5)) == (0.5, 0.5)


def test_a_difference_of_one_sign_has_the_permutation_p_of_all_heads_or_all_tails():
    p = permutation_test(np.full(5, 0.1), resamples=50_000)
    assert p == pytest.approx(2 / 2**5, abs=0.005)


def test_equal_systems_never_differ():
    assert permutation_test(np.zeros(20)) == bootstrap_test(np.zeros(20)) == 1.0


def test_p_is_never_zero():
    far = np.linspace(1, 2, 200)
    assert permutation_test(far, resamples=999) == bootstrap_test(far, resamples=999) == 1 / 1000


def test_rounding_does_not_make_a_swap_look_less_extreme():
    # All sign patterns of one ± difference have the same |mean| up to rounding: p is 1.
    assert permutation_test(np.array([0.1 + 0.2])) == 1.0


def test_holm_by_hand():
    # Sorted 0.01, 0.02, 0.04 times 3, 2, 1; the last may not fall below the one before.
    assert holm([0.04, 0.01, 0.02]) == pytest.approx([0.04, 0.03, 0.04])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


def test_blocks_change_nothing_but_memory(monkeypatch):
    values = np.random.default_rng(0).normal(0.05, 1, 64)
    whole = interval(values), bootstrap_test(values)
    monkeypatch.setattr(statistics, "BLOCK", 64 * 7)
    assert (interval(values), bootstrap_test(values)) == whole


def test_the_seed_decides():
    values = np.random.default_rng(0).normal(0.1, 1, 50)
    assert permutation_test(values, seed=1) == permutation_test(values, seed=1)
    assert interval(values, seed=1) != interval(values, seed=2)


def test_tests_hold_their_level_and_find_what_is_there():
    rng = np.random.default_rng(7)
    null = [permutation_test(rng.normal(0, 1, 40), resamples=400) for _ in range(200)]
    assert np.mean(np.array(null) <= 0.05) == pytest.approx(0.05, abs=3 * math.sqrt(0.05 / 200))
    assert permutation_test(rng.normal(1, 1, 40)) < 0.01
    assert bootstrap_test(rng.normal(1, 1, 40)) < 0.01
