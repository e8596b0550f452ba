"""The canonical form of a text, its words and its sentences."""

import pytest

from stages.text import canonicalise, count_words, split_sentences, word_spans


@pytest.mark.parametrize(
    ("raw", "canonical"),
    [
        ("a  b\t\tc", "a b c"),
        ("one\r\ntwo\rthree", "one\ntwo\nthree"),
        ("a \n b", "a\nb"),
        ("a\n\n\n\nb", "a\n\nb"),
        ("  outer \n", "outer"),
        ("cafe\u0301", "caf\u00e9"),
        ("null\x00 bell\x07 esc\x1b", "null bell esc"),
        ("no\u00a0break\u2003em", "no break em"),
        ("\ufeffmark", "mark"),
        ("line\u2028separator", "line\nseparator"),
        ("lone \ud800 surrogate", "lone \ufffd surrogate"),
        ("e\x00\u0301", "\u00e9"),  # what a control parted is composed
        (" \t\r\n", ""),
    ],
)
def test_canonical_form(raw: str, canonical: str) -> None:
    assert canonicalise(raw) == canonical


def test_case_diacritics_and_punctuation_stay() -> None:
    text = "Ångström’s “Naïve” Straße — №1 👩‍👩‍👧‍👦"
    assert canonicalise(text) == text


def sentences(text: str) -> list[str]:
    return [text[a:b] for a, b in split_sentences(text)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("One. Two! Three? Four", ["One.", "Two!", "Three?", "Four"]),
        ('He left. "Why?" she asked. So.', ["He left.", '"Why?" she asked.', "So."]),
        ("Dr. Ng met J. R. Hill, e.g. twice. Then", ["Dr. Ng met J. R. Hill, e.g. twice.", "Then"]),
        ("It is 3.5 m. High", ["It is 3.5 m.", "High"]),
        ("and so on ... and on. Yes", ["and so on ...", "and on.", "Yes"]),
        ("the wing . the span . x", ["the wing .", "the span .", "x"]),  # tokenised text
        ("文です。次の文！終", ["文です。", "次の文！", "終"]),
        ("यह है। वह", ["यह है।", "वह"]),
        ("Title\n\nBody goes\non here", ["Title", "Body goes\non here"]),
        ("Buy:\n- salt\n- oil\n1. stir", ["Buy:", "- salt", "- oil", "1. stir"]),
        ("", []),
    ],
)
def test_sentences(text: str, expected: list[str]) -> None:
    assert sentences(text) == expected


def test_words_are_runs_without_blanks_and_single_characters_where_no_blanks_are_written() -> None:
    text = "two words, 東京x ไทย"
    assert [text[a:b] for a, b in word_spans(text)] == [
        "two", "words,", "東", "京", "x", "ไ", "ท", "ย",
    ]  # fmt: skip
    assert count_words(text) == 8
    assert count_words("plain ascii text") == 3
