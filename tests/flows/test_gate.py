"""The gate on tables of a few rows: numbers by hand, every reason listed, one guard is enough."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flows.gate import (
    Evidence,
    GatePolicy,
    Guard,
    Latency,
    Primary,
    decide,
    noninferiority_test,
    query_set,
)
from stages import params
from stages.errors import QuarryError
from stages.tables import table

POLICY = GatePolicy(
    primary={"notes": Primary(system="best")}, margin=0.1, alpha=0.05, resamples=2000,
    guards={"R@100": Guard(drop=0.02), "EM": Guard(drop=0.0), "ASR": Guard(rise=0.01)},
    malformed=0.25, latency=1.2,
)  # fmt: skip
SAMPLES = Latency(np.full(20, 0.1), np.full(20, 0.1))


def evidence(values, *, queries="same", measure="nDCG@10", system="best", **metrics) -> Evidence:
    rows = [
        {"system": system, "measure": measure, "qid": f"q{i:03}", "value": float(v)}
        for i, v in enumerate(values)
    ]
    mean = {measure: float(np.mean(values)), "n": len(values)} if len(values) else {}
    return Evidence(queries, table("per_query", rows), {system: {**mean, **metrics}})


def gate(old, new, *, policy=POLICY, samples=SAMPLES):
    return decide({"notes": old}, {"notes": new}, policy, {"notes": samples})


def refused(decision) -> list[str]:
    return [reason.check for reason in decision.refusals]


def test_p_is_the_share_of_resamples_that_reach_the_observed_mean_from_the_margin() -> None:
    difference = np.array([0.0, -0.1])  # about their mean: -0.05 (1/4), 0 (1/2), 0.05 (1/4)
    for margin, share in {0.1: 1 / 4, 0.04: 3 / 4, 0.0: 1.0}.items():
        means = [np.mean(pick) for pick in product(difference + 0.05, repeat=2)]
        assert share == np.mean([m - margin >= -0.05 - 1e-12 for m in means])
        p = noninferiority_test(difference, margin=margin, resamples=20_000, seed=1)
        assert p == pytest.approx(share, abs=0.02)


def test_a_constant_difference_inside_the_margin_is_certain_and_at_the_margin_it_is_not() -> None:
    inside, at = np.full(5, -0.05), np.full(5, -0.1)
    assert noninferiority_test(inside, margin=0.1, resamples=99, seed=1) == 1 / 100
    assert noninferiority_test(at, margin=0.1, resamples=99, seed=1) == 1.0


def test_a_small_loss_inside_the_margin_is_accepted_and_a_large_one_refused() -> None:
    old = evidence([0.5, 0.6, 0.7, 0.8])
    accepted = gate(old, evidence([0.48, 0.58, 0.68, 0.78]))
    assert accepted.accepted
    (primary,) = [r for r in accepted.reasons if r.check == "nDCG@10 of best"]
    assert primary.p == 1 / 2001
    assert (primary.promoted, primary.candidate) == (pytest.approx(0.65), pytest.approx(0.63))
    assert "mean difference -0.0200 on n=4" in primary.text

    decision = gate(old, evidence([0.3, 0.4, 0.5, 0.6]))
    assert refused(decision) == ["nDCG@10 of best"]
    assert decision.refusals[0].p == 1.0


def test_too_few_questions_show_nothing_and_that_is_a_refusal() -> None:
    decision = gate(evidence([0.5, 0.5]), evidence([0.9, 0.0]))  # mean difference -0.05
    assert refused(decision) == ["nDCG@10 of best"]
    assert "not shown to be non-inferior" in decision.refusals[0].text


@given(
    values=st.lists(st.floats(0, 1), min_size=1, max_size=20),
    margin=st.floats(0, 0.5),
    corpora=st.integers(1, 30),
    failed=st.integers(0, 3),
    latencies=st.lists(st.floats(0.001, 10), min_size=1, max_size=10),
)
def test_a_candidate_equal_to_the_promoted_one_is_always_accepted(
    values, margin, corpora, failed, latencies
) -> None:
    names = [f"c{i}" for i in range(corpora)]
    policy = POLICY.model_copy(
        update={"margin": margin, "resamples": 100, "latency": 1.0,
                "primary": {n: Primary(system="best") for n in names}}
    )  # fmt: skip
    same = dict.fromkeys(names, evidence(values, EM=0.3, ASR=0.1, failed=failed))
    samples = dict.fromkeys(names, Latency(np.array(latencies), np.array(latencies)))
    assert decide(same, same, policy, samples).accepted


@pytest.mark.parametrize(
    ("check", "old", "new"),
    [
        ("R@100", {"R@100": 0.90}, {"R@100": 0.87}),
        ("R@100", {"R@100": 0.90}, {}),  # no longer measured
        ("EM", {"EM": 0.5}, {"EM": 0.499}),
        ("ASR", {"ASR": 0.10}, {"ASR": 0.12}),  # success rate of an attack: must not rise
        ("malformed", {"failed": 0}, {"failed": 2}),
    ],
)
def test_a_hard_guard_refuses_whatever_the_primary_measure_says(check, old, new) -> None:
    decision = gate(evidence([0.1] * 4, **old), evidence([0.9] * 4, **new))
    assert refused(decision) == [check]
    (primary,) = [r for r in decision.reasons if r.check == "nDCG@10 of best"]
    assert primary.passed and primary.p == 1 / 2001


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ({"R@100": 0.90}, {"R@100": 0.88}),  # exactly what is allowed
        ({"ASR": 0.10}, {"ASR": 0.11}),
        ({"failed": 0}, {"failed": 1}),  # 1 of 4
        ({}, {"EM": 0.0}),  # the promoted revision has none
    ],
)
def test_what_stays_in_its_bounds_passes(old, new) -> None:
    assert gate(evidence([0.1] * 4, **old), evidence([0.1] * 4, **new)).accepted


def test_latency_is_the_95th_percentile_of_both_and_must_have_been_measured() -> None:
    old = np.arange(1, 101) / 1000  # p95 = 0.09505 s
    slow = Latency(old, old * 1.3)
    same = evidence([0.5])
    decision = gate(same, same, samples=slow)
    assert refused(decision) == ["latency"]
    (reason,) = decision.refusals
    assert reason.promoted == pytest.approx(0.09505)
    assert reason.candidate == pytest.approx(0.09505 * 1.3)
    assert reason.limit == pytest.approx(0.09505 * 1.2)
    assert gate(same, same, samples=Latency(old, old * 1.1)).accepted
    assert refused(gate(same, same, samples=None)) == ["latency"]
    unlimited = POLICY.model_copy(update={"latency": None})
    assert gate(same, same, samples=None, policy=unlimited).accepted


def test_all_reasons_are_listed_not_the_first_one() -> None:
    old = evidence([0.9] * 4, **{"R@100": 0.9, "EM": 0.5, "ASR": 0.0, "failed": 0})
    new = evidence([0.1] * 4, **{"R@100": 0.5, "EM": 0.1, "ASR": 0.9, "failed": 4})
    decision = gate(old, new, samples=Latency(np.ones(9), np.ones(9) * 5))
    assert refused(decision) == ["nDCG@10 of best", "R@100", "EM", "ASR", "malformed", "latency"]


def test_other_questions_refuse_even_a_better_candidate() -> None:
    decision = gate(evidence([0.1] * 4), evidence([0.9] * 4, queries="other"))
    assert refused(decision) == ["questions"]
    decision = gate(evidence([0.1] * 4), evidence([0.9] * 3))
    assert "1 lost, 0 more" in decision.refusals[0].text


def test_holm_over_the_corpora_takes_back_what_each_alone_would_have_shown() -> None:
    rng = np.random.default_rng(0)
    names = ["a", "b", "c"]
    old = {n: evidence([0.5] * 40) for n in names}
    noise = rng.normal(-0.03, 0.25, 40)
    new = {n: evidence(0.5 + noise) for n in names}
    alone = noninferiority_test(noise, margin=0.1, resamples=2000, seed=13)
    assert 0.05 / 3 < alone < 0.05, "the case was chosen so"
    samples = dict.fromkeys(names, SAMPLES)
    one = POLICY.model_copy(update={"primary": {"a": Primary(system="best")}})
    assert decide(old, new, one, samples).accepted
    three = POLICY.model_copy(update={"primary": {n: Primary(system="best") for n in names}})
    decision = decide(old, new, three, samples)
    assert [(r.corpus, r.p) for r in decision.refusals] == [(n, 3 * alone) for n in names]


def test_what_was_made_from_the_same_is_not_looked_at_and_is_no_member_of_the_family() -> None:
    policy = POLICY.model_copy(
        update={"primary": {n: Primary(system="best") for n in ("same", "notes")}}
    )
    old, new = evidence([0.5, 0.6, 0.7, 0.8]), evidence([0.48, 0.58, 0.68, 0.78])
    both = [{"same": evidence([1.0]), "notes": e} for e in (old, new)]
    decision = decide(*both, policy, {"notes": SAMPLES}, {"same"})
    assert decision.accepted
    assert [r.check for r in decision.reasons if r.corpus == "same"] == ["evaluation"]
    assert [r.p for r in decision.reasons if r.p is not None] == [1 / 2001], "not twice that"


def test_before_the_first_promotion_the_candidate_need_only_be_there() -> None:
    new = {"notes": evidence([0.5])}
    assert decide(None, new, POLICY, {}).accepted
    assert decide({}, new, POLICY, {}).accepted
    assert refused(decide(None, {}, POLICY, {})) == ["evaluation"]
    assert refused(decide(None, {"notes": evidence([0.5], system="x")}, POLICY, {})) == [
        "evaluation"
    ]


def test_the_hash_of_questions_sees_text_and_gold_and_no_order() -> None:
    def questions(*rows):
        fixed = {"split": "test", "options": [], "meta": ""}
        return table("queries", [{**fixed, "qid": q, "text": t, "answers": a} for q, t, a in rows])

    one, two = ("1", "who", ["x", "y"]), ("2", "what", [])
    base = query_set(questions(one, two))
    assert base == query_set(questions(two, one))
    others = [
        questions(one), questions(one, ("2", "why", [])), questions(("1", "who", ["x"]), two),
        questions(("1", "who", ["xy"]), two), questions(),
    ]  # fmt: skip
    assert len({base, *map(query_set, others)}) == 6


def test_an_unknown_key_of_the_policy_is_refused_with_what_is_near(tmp_path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(
        "retrain: {gate: {primary: {n: {system: s, measures: EM}}, margn: 0.1, guards: {EM: {}}}}"
    )
    with pytest.raises(QuarryError) as caught:
        params.load(GatePolicy, "retrain", "gate", path=path)
    message = str(caught.value)
    assert "retrain.gate.margn: unknown key. Did you mean 'margin'?" in message
    assert "measures: unknown key. Did you mean 'measure'?" in message
    assert "give one of 'drop' and 'rise'" in message
