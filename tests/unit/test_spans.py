"""Spans of a growing text, by hand."""

from itertools import pairwise

import pytest

from stages.spans import add_growth, clip_spans


def grown(*texts: str, low: str) -> list[tuple[int, int]]:
    """Spans of the steps from text to text that ``low`` marks with x."""
    spans: list[tuple[int, int]] = []
    for (before, after), mark in zip(pairwise(texts), low, strict=True):
        if mark == "x":
            add_growth(spans, before, after)
    return spans


def test_a_token_is_what_the_text_grew_by() -> None:
    assert grown("", "The", "The cat", "The cat sat", low=".x.") == [(3, 7)]
    assert grown("", "The", "The cat", "The cat sat", low="x.x") == [(0, 3), (7, 11)]


def test_tokens_side_by_side_are_one_span() -> None:
    assert grown("", "The", "The cat", "The cat sat", low=".xx") == [(3, 11)]


@pytest.mark.parametrize("low", ["x..", ".x.", "..x", "x.x", "xxx"])
def test_each_token_of_a_character_has_all_of_it(low: str) -> None:
    """Three bytes: shown as U+FFFD until the last is there."""
    assert grown("a", "a\ufffd", "a\ufffd", "a山", low=low) == [(1, 2)]


def test_a_token_without_characters_has_no_span() -> None:
    assert grown("a", "a", low="x") == []


@pytest.mark.parametrize(
    ("spans", "start", "end", "clipped"),
    [
        ([(0, 3), (5, 9)], 0, 9, ((0, 3), (5, 9))),
        ([(0, 3), (5, 9)], 2, 6, ((0, 1), (3, 4))),
        ([(0, 3), (5, 9)], 3, 5, ()),
        ([], 0, 4, ()),
    ],
)
def test_a_part_of_the_text_has_its_part_of_the_spans(spans, start, end, clipped) -> None:
    assert clip_spans(spans, start, end) == clipped
