"""What holds for every text."""

import unicodedata

from hypothesis import given
from strategies import long_text

from stages.text import canonicalise, count_words, split_sentences, word_spans


@given(long_text)
def test_canonical_text_is_a_fixed_point_in_nfc_and_utf8(text: str) -> None:
    once = canonicalise(text)
    assert canonicalise(once) == once
    assert unicodedata.is_normalized("NFC", once)
    assert once.encode("utf-8").decode("utf-8") == once
    assert "\n\n\n" not in once and "  " not in once and once == once.strip()


@given(long_text)
def test_canonical_form_loses_no_visible_character(text: str) -> None:
    def visible(s: str) -> str:
        return "".join(
            unicodedata.normalize("NFC", "".join(c for c in s if c.isprintable())).split()
        )

    assert visible(canonicalise(text)) == visible(text.replace("\x85", " "))


@given(long_text)
def test_sentences_are_disjoint_in_order_and_cover_all_but_blanks(text: str) -> None:
    text = canonicalise(text)
    at = 0
    for start, end in split_sentences(text):
        assert start < end and not text[at:start].strip()
        assert not text[start].isspace() and not text[end - 1].isspace()
        at = end
    assert not text[at:].strip()


@given(long_text)
def test_words_are_counted_as_they_are_found(text: str) -> None:
    text = canonicalise(text)
    spans = word_spans(text)
    assert count_words(text) == len(spans)
    assert "".join(text[a:b] for a, b in spans) == "".join(text.split())
