"""What holds for every fusion, whatever the runs."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages import tables
from stages.fuse import combmnz, combsum, rrf
from stages.runs import run_table
from stages.types import Hit

ids = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=4)
# Quarters of small integers: exact in floating point, so that ties are ties.
score = st.integers(-40, 40).map(lambda i: i / 4)
hits = st.dictionaries(ids, score, max_size=8)
run = st.dictionaries(st.sampled_from(["q1", "q2", "é"]), hits, max_size=3).map(
    lambda r: run_table(list(r), [[Hit(d, s) for d, s in h.items()] for h in r.values()])
)
runs = st.lists(run, max_size=4)
RULES = [
    lambda rs, **kw: rrf.fuse(rs, **kw),
    lambda rs, **kw: combsum.fuse(rs, norm="minmax", **kw),
    lambda rs, **kw: combsum.fuse(rs, norm="zscore", **kw),
    lambda rs, **kw: combmnz.fuse(rs, norm="minmax", **kw),
    lambda rs, **kw: combmnz.fuse(rs, norm="zscore", **kw),
]
few = settings(max_examples=40, deadline=None)
each_rule = pytest.mark.parametrize("fuse", RULES)


def order(t: pa.Table) -> list[tuple[str, str]]:
    return list(zip(t["qid"].to_pylist(), t["docid"].to_pylist(), strict=True))


def scores(t: pa.Table) -> dict[tuple[str, str], float]:
    return dict(zip(order(t), t["score"].to_pylist(), strict=True))


@each_rule
@few
@given(runs=runs, data=st.data())
def test_the_order_of_the_runs_does_not_matter(fuse, runs, data):
    assert fuse(data.draw(st.permutations(runs))).equals(fuse(runs))


@each_rule
@few
@given(runs=runs)
def test_an_empty_run_adds_nothing(fuse, runs):
    assert fuse([*runs, tables.empty_table("runs")]).equals(fuse(runs))


@each_rule
@few
@given(runs=runs, k=st.integers(1, 10))
def test_k_is_a_prefix_of_k_plus_one(fuse, runs, k):
    less, more = fuse(runs, k=k), fuse(runs, k=k + 1)
    assert less.equals(more.filter(pa.array(more["rank"].to_numpy() <= k)))


@each_rule
@few
@given(runs=runs)
def test_the_result_is_a_run_over_the_union(fuse, runs):
    fused = fuse(runs)
    tables.check_table(fused, "runs", where="here")
    assert sorted(order(fused)) == sorted({pair for r in runs for pair in order(r)})
    assert tables.sort_table(fused, "runs").equals(fused)


@few
@given(run=run)
def test_rrf_of_one_run_keeps_its_order(run):
    assert order(rrf.fuse([run])) == order(run)


@few
@given(runs=runs, weight=st.sampled_from([0.25, 2.0, 8.0]))
def test_rrf_looks_only_at_the_proportion_of_the_weights(runs, weight):
    assert order(rrf.fuse(runs, weights=[weight] * len(runs))) == order(rrf.fuse(runs))


@few
@given(runs=runs)
def test_a_run_of_weight_zero_cannot_move_what_the_others_found(runs):
    without = scores(rrf.fuse(runs))
    noise = run_table(["q1"], [[Hit("zz", 1.0), Hit("a", 0.5)]])
    with_noise = scores(rrf.fuse([*runs, noise], weights=[1.0] * len(runs) + [0.0]))
    assert all(s == without.get(pair, 0.0) for pair, s in with_noise.items())


@pytest.mark.parametrize("norm", ["minmax", "zscore"])
@few
@given(runs=runs, scale=st.sampled_from([0.125, 4.0]), shift=st.integers(-8, 8))
def test_normalised_rules_do_not_see_scale_and_shift(norm, runs, scale, shift):
    moved = [
        r.set_column(3, "score", pa.array(r["score"].to_numpy() * scale + shift)) for r in runs
    ]
    before, after = scores(combsum.fuse(runs, norm=norm)), scores(combsum.fuse(moved, norm=norm))
    assert after == pytest.approx(before, abs=1e-12)


@few
@given(run=run, n=st.integers(1, 4))
def test_combmnz_is_n_times_combsum_where_all_runs_found_all(run, n):
    summed, counted = combsum.fuse([run] * n), combmnz.fuse([run] * n)
    assert order(summed) == order(counted)
    np.testing.assert_allclose(counted["score"], n * summed["score"].to_numpy(), atol=1e-12)
