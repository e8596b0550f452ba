"""Preference tables: ranks, pairs, what is refused, and the pairs that are derived."""

from typing import Any

import pytest
from preference_fakes import group

from stages.errors import QuarryError
from stages.preference import (
    dense_ranks,
    derive_pairs,
    preferred,
    read_groups,
    trl_rows,
    win_probability,
)
from stages.tables import table

GROUP = {
    "group_id": "g", "method": "dpo", "kind": "response", "qid": "q", "split": "train",
    "prompt": "Q:", "context": None, "docids": [], "retrieval_sign": 0, "iteration": 0,
    "weight": 1.0, "meta": "{}",
}  # fmt: skip
CANDIDATE = {
    "group_id": "g", "cand_id": "a", "text": " yes", "score": 1.0, "rank": 0, "label": 1,
    "n_trials": 0, "n_success": 0, "temperature": 0.8, "gen_iteration": 0, "model": "m",
    "n_tokens": 1,
}  # fmt: skip
WORSE = CANDIDATE | {"cand_id": "b", "text": " no", "score": 0.0, "rank": 1, "label": -1}


def read(groups: list[dict[str, Any]], candidates: list[dict[str, Any]]):
    return read_groups(table("pref_groups", groups), table("pref_candidates", candidates))


def test_equal_scores_share_a_rank_and_ranks_have_no_gap() -> None:
    assert dense_ranks([0.5, 2.0, 0.5, -1.0]) == [1, 0, 1, 2]
    assert dense_ranks([]) == []


@pytest.mark.parametrize(
    ("pairing", "expected"),
    [
        ("best_worst", [(0, 3)]),
        ("best_rest", [(0, 2), (0, 3)]),
        ("cross", [(0, 2), (0, 3), (1, 2), (1, 3)]),
        ("all", [(0, 2), (0, 3), (1, 2), (1, 3), (2, 3)]),
    ],
)
def test_which_candidates_make_a_pair(pairing: str, expected: list[tuple[int, int]]) -> None:
    assert preferred([0, 0, 1, 2], [1, 1, -1, -1], pairing) == expected


def test_a_candidate_with_label_zero_is_kept_out_of_every_pair() -> None:
    assert preferred([0, 1, 2, 3], [0, 1, -1, 0], "best_worst") == [(1, 2)]
    assert preferred([0, 1, 2, 3], [0, 1, -1, 0], "all") == [(1, 2)]


def test_groups_come_with_their_candidates_best_first() -> None:
    third = CANDIDATE | {"cand_id": "0", "text": " maybe", "score": 0.0, "rank": 1, "label": -1,
                         "temperature": -1.0}  # fmt: skip
    (found,) = read([GROUP], [WORSE, third, CANDIDATE])
    assert [c.text for c in found.candidates] == [" yes", " maybe", " no"]
    assert [c.sampled for c in found.candidates] == [True, False, True]


@pytest.mark.parametrize(
    ("change", "candidates", "message"),
    [
        ({}, [CANDIDATE], "1 candidates with 1 distinct ranks"),
        ({}, [CANDIDATE, WORSE | {"score": 1.0, "rank": 0, "label": 1}], "1 distinct ranks"),
        ({}, [CANDIDATE, WORSE | {"label": 0}], "2 candidates with 1 distinct ranks"),
        ({}, [CANDIDATE, WORSE | {"text": " yes"}], "two candidates have the text ' yes'"),
        ({}, [CANDIDATE, WORSE | {"text": ""}], "a candidate is empty"),
        ({}, [CANDIDATE, WORSE | {"score": float("nan")}], "expected finite numbers"),
        ({}, [CANDIDATE, WORSE | {"score": 2.0}], "do not follow scores"),
        ({}, [CANDIDATE | {"label": -1}, WORSE | {"label": 1}], "chosen is not better"),
        ({"weight": -1.0}, [CANDIDATE, WORSE], "weight is -1.0"),
        ({"retrieval_sign": 1}, [CANDIDATE, WORSE], "all others 0"),
        ({"method": "rpo"}, [CANDIDATE, WORSE], "rpo groups have"),
        ({"method": "rpo", "retrieval_sign": 1}, [CANDIDATE, WORSE], "needs a context"),
    ],
)
def test_a_group_that_cannot_be_trained_on_is_named(
    change: dict[str, Any], candidates: list[dict[str, Any]], message: str
) -> None:
    with pytest.raises(QuarryError, match=r"preference group g .*Correct the recipe") as e:
        read([GROUP | change], candidates)
    assert message in str(e.value)


def test_a_question_lies_in_one_split() -> None:
    other = GROUP | {"group_id": "h", "split": "dev"}
    both = [c | {"group_id": g} for g in "gh" for c in (CANDIDATE, WORSE)]
    with pytest.raises(QuarryError, match="in split train and in dev"):
        read([GROUP, other], both)


def test_candidates_without_a_group_are_an_error_and_no_groups_are_legal() -> None:
    with pytest.raises(QuarryError, match="names group g, which pref_groups has not"):
        read([], [CANDIDATE])
    assert read([], []) == []


def test_pairs_share_their_groups_weight_and_come_in_a_fixed_order() -> None:
    one = group("a", [" x", " y", " z"], [1.0, 0.0, 0.0], weight=3.0)
    two = group("b", [" v", " u"], [0.5, 2.0])
    pairs = derive_pairs([two, one], "cross")
    assert pairs["group_id"].to_pylist() == ["a", "a", "b"]
    assert pairs["chosen_id"].to_pylist() == [" x", " x", " u"]
    assert pairs["rejected_id"].to_pylist() == [" y", " z", " v"]
    assert pairs["weight"].to_pylist() == [3 / 2, 3 / 2, 1.0]
    assert pairs["gap"].to_pylist() == [1.0, 1.0, 1.5]
    assert len(set(pairs["pair_id"].to_pylist())) == 3
    assert derive_pairs([one, two], "cross").equals(pairs)


def test_the_export_puts_the_context_into_the_prompt() -> None:
    row = {"prompt": "Q: R", "chosen": " x", "rejected": " y"}
    assert trl_rows([group("Q:", [" x", " y"], context=" R")], "best_worst") == [row]


@pytest.mark.parametrize(
    ("counts", "expected"),
    [((2, 2, 0, 2), 0.95), ((2, 2, 1, 2), 0.8), ((1, 1, 0, 1), 5 / 6), ((3, 4, 3, 4), 0.5)],
)
def test_the_chance_to_be_better_given_counts(counts: tuple[int, ...], expected: float) -> None:
    assert win_probability(*counts) == pytest.approx(expected, abs=1e-12)
    a, n, b, m = counts
    assert win_probability(b, m, a, n) == pytest.approx(1 - expected, abs=1e-12)
