"""Exact match and token F1: what SQuAD's script would say, by hand."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.answers import exact_match, normalise, token_f1


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The  Beatles!", "beatles"),
        ("an apple, a day", "apple day"),
        ("Theatre", "theatre"),  # an article is a whole word
        ("1,000", "1000"),
        ("U.S.", "us"),
        ("Café", "café"),
        (" \n", ""),
    ],
)
def test_normalisation_drops_case_punctuation_and_articles(text: str, expected: str) -> None:
    assert normalise(text) == expected


def test_one_matching_gold_answer_is_enough() -> None:
    assert exact_match("the beatles", ["Wings", "Beatles"]) == 1.0
    assert exact_match("Beatles band", ["Wings", "Beatles"]) == 0.0
    assert exact_match("anything", []) == 0.0


def test_f1_is_the_harmonic_mean_of_precision_and_recall() -> None:
    # 2 of 3 predicted words are in the gold answer's 4: P = 2/3, R = 2/4
    precision, recall = 2 / 3, 2 / 4
    expected = 2 * precision * recall / (precision + recall)
    assert token_f1("red green blue", ["green red tall oak"]) == pytest.approx(expected)


def test_f1_counts_repeated_words_and_takes_the_best_gold() -> None:
    # "x x" against "x": one common token, P = 1/2, R = 1/1
    assert token_f1("x x", ["x"]) == pytest.approx(2 * 0.5 * 1 / 1.5)
    assert token_f1("x x", ["y", "x x"]) == 1.0
    assert token_f1("x", []) == 0.0


def test_two_empty_answers_agree_and_one_does_not() -> None:
    assert token_f1("the", ["a"]) == 1.0
    assert token_f1("the", ["oak"]) == 0.0
    assert token_f1("oak", ["the"]) == 0.0


@given(st.text(), st.lists(st.text(), max_size=3))
def test_f1_is_at_least_exact_match_and_at_most_one(prediction: str, golds: list[str]) -> None:
    assert exact_match(prediction, golds) <= token_f1(prediction, golds) <= 1.0
