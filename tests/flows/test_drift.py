"""Drift on hand-made corpora: numbers by hand, and what each of them sets off."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flows.drift import (
    Changes,
    Discrepancy,
    Drift,
    DriftPolicy,
    Shift,
    changed_documents,
    count_words,
    embedding_shift,
    judge,
    sort_changes,
    vocabulary_shift,
)
from stages import params
from stages.digest import digest
from stages.errors import QuarryError
from stages.tables import table

STILL = Drift(Changes(100, 100, [], [], []), Shift(0.0, []), None)
counts = st.dictionaries(st.text("abcdef", min_size=1, max_size=3), st.integers(1, 50), max_size=8)


def documents(**texts):
    rest = {"title": "", "dup_of": "", "locator": "", "meta": ""}
    rows = [
        {"docid": d, "text": t, "content_hash": digest("doc", "1", "", t), **rest}
        for d, t in texts.items()
    ]
    return table("documents", rows)


def moved(*, new=0, removed=0, edited=0, before=100, divergence=0.0, p=None) -> Drift:
    kinds = {"n": new, "r": removed, "e": edited}
    names = [[f"{kind}{i}" for i in range(n)] for kind, n in kinds.items()]
    found = None if p is None else Discrepancy(0.1, p)
    changes = Changes(before, before + new - removed, *names)
    return Drift(changes, Shift(divergence, []), found)


def fired(verdict) -> list[str]:
    return [t.what for t in verdict.triggers if t.fires]


# -- documents ----------------------------------------------------------------------------


def test_new_removed_and_edited_documents_are_told_apart_by_content_hash() -> None:
    before = documents(a="amber", b="birch", c="cedar", d="delta")
    changes = changed_documents(before, documents(e="elm", d="delta", b="Birch", a="amber"))
    assert changes == Changes(4, 4, ["e"], ["c"], ["b"])
    assert changes.share == 3 / 4
    assert changed_documents(before, before).share == 0
    assert changed_documents(documents(), before).share == 1.0
    assert changed_documents(documents(), documents()).share == 0.0


# -- words --------------------------------------------------------------------------------


def test_divergence_of_hand_made_distributions() -> None:
    assert vocabulary_shift({"a": 3}, {"b": 1}).divergence == 1.0
    half = vocabulary_shift({"a": 1, "b": 1}, {"a": 5})
    m = -(3 / 4 * math.log2(3 / 4) + 1 / 4 * math.log2(1 / 4))  # H(M); H(P) = 1, H(Q) = 0
    assert half.divergence == pytest.approx(m - 1 / 2)  # 0.3113
    assert [w for w, _, _ in half.words] == ["b", "a"]
    assert half.words[0] == ("b", 1 / 2, 0.0)
    assert vocabulary_shift({}, {}).divergence == 0.0
    assert vocabulary_shift({}, {"a": 1}).divergence == 1.0


@given(counts, counts, st.integers(2, 9))
def test_divergence_is_symmetric_bounded_and_blind_to_the_size_of_the_corpus(p, q, times) -> None:
    there = vocabulary_shift(p, q).divergence
    assert 0 <= there <= 1
    assert vocabulary_shift(q, p).divergence == pytest.approx(there)
    larger = {word: n * times for word, n in q.items()}
    assert vocabulary_shift(p, larger).divergence == pytest.approx(there)
    assert vocabulary_shift(p, p).divergence == pytest.approx(0)


def test_words_are_counted_without_case_and_punctuation() -> None:
    assert count_words(["Amber, amber!", "Żółw 東京。"]) == {
        "amber": 2,
        "żółw": 1,
        "東": 1,
        "京": 1,
    }


# -- vectors ------------------------------------------------------------------------------


def test_mmd_of_four_points_by_hand() -> None:
    before, now = np.array([[0.0], [1.0]]), np.array([[2.0], [4.0]])
    # distances 1 2 4 1 3 2: median 2
    k = {d: math.exp(-(d**2) / (2 * 2**2)) for d in (1, 2, 3, 4)}
    expected = k[1] + k[2] - 2 * (k[2] + k[4] + k[1] + k[3]) / 4
    found = embedding_shift(before, now, permutations=50, seed=1)
    assert found.mmd2 == pytest.approx(expected)


def test_equal_distributions_pass_and_others_do_not() -> None:
    rng = np.random.default_rng(0)
    x, same = rng.normal(0, 1, (2, 80, 4))
    far = rng.normal(0.8, 1, (60, 4))
    options = {"permutations": 400, "seed": 3}
    assert embedding_shift(x, same, **options).p > 0.05
    assert embedding_shift(x, far, **options).p == 1 / 401
    assert embedding_shift(x, far, **options) == embedding_shift(x, far, **options)
    ones = np.ones((5, 3))
    assert embedding_shift(ones, ones, **options).p == 1.0


def test_p_is_uniform_where_nothing_moved() -> None:
    rng = np.random.default_rng(1)
    p = [
        embedding_shift(*rng.normal(0, 1, (2, 12, 2)), permutations=99, seed=i).p
        for i in range(200)
    ]
    # P(p <= 0.1) = 0.1: 20 of 200, standard deviation 4.2
    assert 20 - 4 * 4.25 < sum(v <= 0.1 for v in p) < 20 + 4 * 4.25
    assert 0.4 < np.mean(p) < 0.6


# -- what dvc says ------------------------------------------------------------------------


def test_changes_are_sorted_by_kind() -> None:
    status = {
        "ingest@mine": [{"changed deps": {"examples/mine": "modified"}}],
        "index@a": [
            {"changed deps": {"stages/lm.py": "modified", "params.yaml": {"index.a": "modified"}}},
            {"changed outs": {"data/index/a": "deleted"}},
        ],
        "serve@x": ["changed command", {"changed deps": {"versions/serve.txt": "modified"}}],
    }
    assert sort_changes(status) == {
        "code": ["serve@x", "stages/lm.py", "versions/serve.txt"],
        "values": ["index.a"],
        "inputs": ["examples/mine"],
        "outputs": ["data/index/a"],
    }
    assert not any(sort_changes({}).values())


# -- the verdict --------------------------------------------------------------------------


def test_nothing_changed_is_never_worth_it_however_old() -> None:
    for days in (0.0, 29.9, 1e6):
        verdict = judge(DriftPolicy(), {"c": STILL}, {}, days=days)
        assert not verdict.worth and fired(verdict) == []
    zero = DriftPolicy(changed=0.0, vocabulary=0.0, days=0)
    assert not judge(zero, {"c": STILL}, {}, days=9.0).worth


@pytest.mark.parametrize(
    ("drift", "what"),
    [
        (moved(new=1), "documents"),  # 1 of 100, the limit
        (moved(removed=1), "documents"),
        (moved(edited=1), "documents"),
        (moved(divergence=0.05), "vocabulary"),
        (moved(p=0.009), "embedding"),
    ],
)
def test_each_look_fires_alone_at_its_limit(drift, what) -> None:
    verdict = judge(DriftPolicy(), {"c": drift}, {}, days=1.0)
    assert verdict.worth and fired(verdict) == [what]


def test_below_every_limit_nothing_fires_until_the_promotion_is_old() -> None:
    little = moved(new=1, before=1000, divergence=0.01, p=0.5)  # 0.1 % changed
    assert not judge(DriftPolicy(), {"c": little}, {}, days=29.0).worth
    verdict = judge(DriftPolicy(), {"c": little}, {}, days=30.0)
    assert fired(verdict) == ["age"]
    assert [t.what for t in verdict.triggers] == ["documents", "vocabulary", "embedding", "age"]


def test_code_values_force_and_a_first_promotion_are_reasons() -> None:
    policy = DriftPolicy()
    changed = {"code": ["stages/lm.py"], "values": ["serve.x"]}
    assert fired(judge(policy, {}, changed, days=1.0)) == ["code", "values"]
    quiet = DriftPolicy(code=False, values=False)
    assert fired(judge(quiet, {}, changed, days=1.0)) == []
    assert fired(judge(policy, {}, {}, days=None)) == ["promotion"]
    assert fired(judge(policy, {}, {}, days=1.0, forced=True)) == ["forced"]


def test_twenty_percent_deleted_stop_the_flow_and_ten_do_not() -> None:
    verdict = judge(DriftPolicy(), {"c": moved(removed=20)}, {}, days=1.0)
    assert not verdict.worth and fired(verdict) == ["documents"]
    assert "20 of 100 documents are gone" in verdict.stopped[0]
    assert judge(DriftPolicy(), {"c": moved(removed=10)}, {}, days=1.0).worth
    assert judge(DriftPolicy(), {"c": moved(removed=20)}, {}, days=1.0, forced=True).worth
    damaged = judge(DriftPolicy(), {"c": moved(removed=20)}, {}, days=1.0, damaged=1)
    assert damaged.stopped, "damage is a reason to build, and none to believe the source"
    assert judge(DriftPolicy(), {}, {}, days=1.0, damaged=1).worth


def test_an_unknown_key_is_refused_with_what_is_near(tmp_path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text("retrain: {drift: {vocabluary: 0.1}}")
    with pytest.raises(QuarryError, match="unknown key. Did you mean 'vocabulary'"):
        params.load(DriftPolicy, "retrain", "drift", path=path)
