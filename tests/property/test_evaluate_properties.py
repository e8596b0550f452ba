"""What holds for every run and every judgement."""

import numpy as np
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from stages import tables
from stages.evaluate.ranking import measure_run
from stages.evaluate.statistics import holm, interval, permutation_test
from stages.runs import run_table
from stages.types import Hit

few = settings(max_examples=50, deadline=None)
QIDS, DOCS = ["q1", "é", "10"], [f"d{i}" for i in range(12)]
MEASURES = ["nDCG@3", "nDCG", "R@1", "R@5", "RR", "AP", "P@5", "Success@2"]
rels = st.dictionaries(st.sampled_from(DOCS), st.integers(-1, 3), max_size=8)
judgements = st.dictionaries(st.sampled_from(QIDS), rels, max_size=3)
rankings = st.lists(st.sampled_from(DOCS), unique=True, max_size=10)
runs = st.dictionaries(st.sampled_from(QIDS), rankings, max_size=3)


def as_run(ranked: dict[str, list[str]]) -> pa.Table:
    return run_table(
        list(ranked), [[Hit(d, -float(i)) for i, d in enumerate(ds)] for ds in ranked.values()]
    )


def as_qrels(judged: dict[str, dict[str, int]]) -> pa.Table:
    return tables.table(
        "qrels",
        [{"qid": q, "docid": d, "rel": r} for q, docs in judged.items() for d, r in docs.items()],
    )


def measure(ranked, judged, measures=MEASURES):
    return measure_run(as_run(ranked), as_qrels(judged), QIDS, measures)


@few
@given(ranked=runs, judged=judgements)
def test_values_lie_between_zero_and_one(ranked, judged):
    values = measure(ranked, judged)
    assert values.shape == (len(MEASURES), len(QIDS))
    assert ((values >= 0) & (values <= 1 + 1e-12)).all()


@few
@given(judged=judgements)
def test_the_ideal_ranking_has_the_value_one(judged):
    best = {q: sorted(docs, key=lambda d: -docs[d]) for q, docs in judged.items()}
    has_relevant = [any(r > 0 for r in judged.get(q, {}).values()) for q in QIDS]
    values = measure(best, judged, ["nDCG", "nDCG@3", "AP", "RR", "Success@2"])
    np.testing.assert_allclose(values, np.tile(has_relevant, (5, 1)), atol=1e-12)


@few
@given(ranked=runs, judged=judgements)
def test_a_useless_document_at_the_end_changes_nothing(ranked, judged):
    longer = {q: [*docs, "never judged"] for q, docs in ranked.items()}
    np.testing.assert_array_equal(measure(longer, judged), measure(ranked, judged))


@few
@given(ranked=runs, judged=judgements)
def test_a_useless_document_in_front_helps_nowhere(ranked, judged):
    worse = {q: ["never judged", *docs] for q, docs in ranked.items()}
    assert (measure(worse, judged) <= measure(ranked, judged) + 1e-12).all()


@few
@given(ranked=runs, judged=judgements, k=st.integers(1, 11))
def test_recall_never_falls_with_k(ranked, judged, k):
    less, more = measure(ranked, judged, [f"R@{k}", f"R@{k + 1}"])
    assert (more >= less).all()


@few
@given(ranked=runs, judged=judgements, k=st.integers(1, 10))
def test_cutting_the_run_is_cutting_the_measure(ranked, judged, k):
    cut = {q: docs[:k] for q, docs in ranked.items()}
    names = [f"nDCG@{k}", f"AP@{k}", f"RR@{k}", f"R@{k}"]
    np.testing.assert_array_equal(measure(cut, judged, names), measure(ranked, judged, names))


values = st.lists(st.floats(0, 1, width=32), min_size=1, max_size=30).map(np.array)


@few
@given(values=values)
def test_the_interval_holds_the_mean_between_the_extremes(values):
    low, high = interval(values, resamples=500)
    assert values.min() - 1e-12 <= low <= high <= values.max() + 1e-12


@few
@given(values=values)
def test_naming_the_systems_the_other_way_round_keeps_p(values):
    difference = values - 0.5
    p, swapped = (permutation_test(d, resamples=300) for d in (difference, -difference))
    assert p == swapped
    assert 0 < p <= 1


@few
@given(p=st.lists(st.floats(0.001, 1), max_size=6))
def test_holm_raises_and_keeps_the_order(p):
    adjusted = holm(p)
    assert all(a >= b for a, b in zip(adjusted, p, strict=True))
    for i, j in zip(np.argsort(p)[:-1], np.argsort(p)[1:], strict=True):
        assert adjusted[i] <= adjusted[j]
