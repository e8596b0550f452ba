"""Passages as spans: hand-computed cuts, and what an edit costs."""

import random

import pytest
from pydantic import ValidationError

from stages.digest import digest
from stages.ingest.chunk import ChunkParams, split_passages

DEFAULTS = ChunkParams().model_dump()


def passages(text: str, **params: object) -> list[str]:
    return [text[a:b] for a, b in split_passages(text, **DEFAULTS | params)]


def test_none_gives_the_document_and_an_empty_document_one_empty_passage() -> None:
    assert passages("One. Two.") == ["One. Two."]
    for mode in ("none", "words", "sentences", "cdc"):
        assert split_passages("", **DEFAULTS | {"mode": mode}) == [(0, 0)]


def test_words_are_windows_that_share_their_overlap() -> None:
    text = "a b c d e f g h"
    assert passages(text, mode="words", words=4, overlap=1) == ["a b c d", "d e f g", "g h"]
    assert passages(text, mode="words", words=4, overlap=0) == ["a b c d", "e f g h"]
    assert passages(text, mode="words", words=8, overlap=7) == [text]
    assert passages(text, mode="words", words=7, overlap=6) == ["a b c d e f g", "b c d e f g h"]


def test_sentences_are_packed_whole_and_the_last_ones_begin_the_next_passage() -> None:
    text = "A a a. B b. C c c. D d d."
    assert passages(text, mode="sentences", words=5, overlap=0) == [
        "A a a. B b.",
        "C c c.",
        "D d d.",
    ]
    assert passages(text, mode="sentences", words=5, overlap=2) == [
        "A a a. B b.", "B b. C c c.", "D d d.",
    ]  # fmt: skip
    # An overlap that would push the new sentence over the limit is not taken.
    assert passages("A a a. B b b. C c c.", mode="sentences", words=5, overlap=3) == [
        "A a a.", "B b b.", "C c c.",
    ]  # fmt: skip


def test_a_sentence_longer_than_the_limit_is_cut_into_pieces() -> None:
    assert passages("a b c d e. F g.", mode="sentences", words=3, overlap=0) == [
        "a b c", "d e.", "F g.",
    ]  # fmt: skip
    assert passages("東京大学です。", mode="cdc", lo=1, hi=4, m=10**6) == ["東京大学", "です。"]


def test_cdc_cuts_where_a_sentence_hash_is_zero_once_it_has_lo_words() -> None:
    sentences = [f"Sentence number {i}." for i in range(200)]
    ends = {s for s in sentences if int(digest(s)[:8], 16) % 4 == 0}
    found = passages(" ".join(sentences), mode="cdc", lo=6, hi=10**6, m=4)
    expected, passage = [], []
    for s in sentences:
        passage.append(s)
        if s in ends and 3 * len(passage) >= 6:
            expected.append(" ".join(passage))
            passage = []
    assert found == expected + [" ".join(passage)] * bool(passage)
    assert 10 < len(found) < 100


def test_cdc_never_exceeds_hi_unless_forced_by_nothing_but_the_last_words() -> None:
    text = " ".join(f"Word {i} of it." for i in range(300))
    assert max(len(p.split()) for p in passages(text, mode="cdc", lo=8, hi=20, m=50)) == 20


def document(words: int, seed: int) -> list[str]:
    """Sentences of 8 to 30 invented words each, ``words`` words in all."""
    rng = random.Random(seed)
    sentences: list[str] = []
    while words > 0:
        n = min(words, rng.randint(8, 30))
        sentence = [f"w{rng.randrange(10**6)}" for _ in range(n)]
        sentences.append(" ".join(sentence).capitalize() + ".")
        words -= n
    return sentences


def test_an_insertion_changes_every_window_of_words_but_only_the_near_passages_of_cdc() -> None:
    """The card's experiment: 5,145 words, five words inserted at word 10."""
    words = " ".join(document(5145, seed=1)).split(" ")
    new_words = ["five", "new", "words", "in", "here"]
    before, after = " ".join(words), " ".join([*words[:10], *new_words, *words[10:]])

    def changed(**params: object) -> tuple[int, int]:
        old, new = passages(before, **params), passages(after, **params)
        return len(set(new) - set(old)), len(new)

    windows = 1 + -(-(5145 + 5 - 200) // 160)  # the last one ends at the last word
    assert changed(mode="words", words=200, overlap=40) == (windows, windows)
    few, many = changed(mode="cdc", lo=80, hi=320, m=12)
    assert few <= 3 and many > 20


def test_cdc_finds_its_old_cuts_again_after_edits_anywhere() -> None:
    rng = random.Random(7)
    sentences = document(20_000, seed=2)
    before = set(passages(" ".join(sentences), mode="cdc"))
    worst = 0
    for _ in range(20):
        edited = list(sentences)
        edited[rng.randrange(len(edited))] = "A sentence that was not there."
        worst = max(worst, len(set(passages(" ".join(edited), mode="cdc")) - before))
    assert worst <= 6 < len(before) / 10


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"mode": "words", "words": 10, "overlap": 10}, "overlap (10) must be below words (10)"),
        ({"mode": "cdc", "lo": 5, "hi": 4}, "lo (5) must not exceed hi (4)"),
        ({"mode": "cdc", "m": 0}, "greater than 0"),
    ],
)
def test_impossible_bounds_are_refused(values: dict, says: str) -> None:
    with pytest.raises(ValidationError) as e:
        ChunkParams(**values)
    assert says in str(e.value)
