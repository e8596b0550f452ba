"""Shingles, similarity and clusters, by hand."""

import numpy as np
import pytest

from stages.ingest.dedup import band_hashes, candidate_pairs, find_duplicates, jaccard, shingle
from stages.params import Entry

EIGHT = "the library opens at eight on weekdays and at ten on saturdays"
NINE = EIGHT.replace("eight", "nine")


def shingles(text: str, ngram: int) -> np.ndarray:
    return np.unique(shingle([text], ngram)[0])


def duplicates(texts: list[str], ids: list[str] | None = None, **params: float) -> list[str]:
    ids = ids or [str(i) for i in range(len(texts))]
    bands = band_hashes(texts, ngram=5, r=8, b=14)
    return find_duplicates(
        ids, [len(t) for t in texts], texts, bands, lambda rows: [texts[i] for i in rows],
        **{"ngram": 5, "least": 0.8} | params,
    )  # fmt: skip


def test_one_word_changed_touches_three_shingles_of_three_words() -> None:
    """12 words have 10 shingles of 3; 3 hold the changed word: 7 common, 7 + 3 + 3 in all."""
    assert jaccard(shingles(EIGHT, 3), shingles(NINE, 3)) == 7 / 13


@pytest.mark.parametrize(
    ("a", "b", "same"),
    [
        ("The Library opens, at eight!", "the library opens at eight", True),
        (
            "call 555 1234 before noon today",
            "call 867 5309 before noon today",
            True,
        ),  # digits are 0
        ("call 555 1234 before noon today", "call 55 1234 before noon today", False),
        ("state-of-the-art", "state of the art", True),
        ("ÉCOLE à Noël", "école À noël", True),
        ("東京は日本の首都", "東京 は 日本 の 首都", True),  # each character is a word
        ("ab c", "a bc", False),
        ("a b c d", "a b c d e", False),
        ("a b c d e f", "f e d c b a", False),
    ],
)
def test_the_comparison_form_ignores_case_punctuation_blanks_and_digits(
    a: str, b: str, same: bool
) -> None:
    assert (jaccard(shingles(a, 5), shingles(b, 5)) == 1) is same


def test_shingles_are_counted_per_text() -> None:
    hashes, counts = shingle(["", "one", "a b c d e", "a b c d e f", "..."], 5)
    assert counts.tolist() == [0, 1, 1, 2, 0] and len(hashes) == 4
    assert hashes[1] == hashes[2], "the same five words, in another text"


def test_a_text_does_not_depend_on_its_neighbours_in_the_batch() -> None:
    texts = [EIGHT, "", "x", NINE, "東京 " * 40]
    together = band_hashes(texts, ngram=5, r=8, b=14)
    for i, text in enumerate(texts):
        alone = band_hashes([text], ngram=5, r=8, b=14)
        assert (together[i] == alone[0]).all()


def test_texts_without_words_have_no_signature_and_are_no_candidates() -> None:
    bands = band_hashes(["", "...", "!"], ngram=5, r=8, b=14)
    assert not bands.any() and candidate_pairs(bands).tolist() == []
    assert duplicates([]) == []
    assert duplicates(["...", "!"]) == ["", ""]


LONG = " ".join(f"word{chr(97 + i % 26)}{chr(97 + i // 26)}" for i in range(60))


def test_near_texts_are_joined_and_the_longest_is_kept() -> None:
    """60 words have 56 shingles; two words more at the end add two: 56 / 58 ≥ 0.8."""
    assert duplicates([LONG, LONG + " at last", "something else"]) == ["1", "", ""]


def test_of_equal_lengths_the_smallest_id_in_bytes_is_kept() -> None:
    assert duplicates([LONG, LONG], ["b", "a"]) == ["a", ""]
    assert duplicates([LONG, LONG], ["é", "z"]) == ["z", ""]


def test_when_the_kept_one_is_deleted_the_next_takes_its_place() -> None:
    texts, ids = [LONG + " more", LONG, LONG], ["x", "c", "b"]
    assert duplicates(texts, ids) == ["", "x", "x"]
    assert duplicates(texts[1:], ids[1:]) == ["b", ""]


def test_candidates_below_the_threshold_stay_apart() -> None:
    """56 / 58 = 0.966: joined at 0.96, not at 0.97."""
    texts = [LONG, LONG + " at last"]
    assert duplicates(texts, least=0.96) == ["1", ""]
    assert duplicates(texts, least=0.97) == ["", ""]


def test_a_crowded_bucket_is_chained_into_one_cluster() -> None:
    """200 texts that agree in all bands: each meets its next 64 only, and all are one."""
    texts = [f"{LONG} {'.' * i}" for i in range(200)]
    kept = duplicates(texts, [f"{i:03d}" for i in range(200)])
    assert kept == ["199"] * 199 + [""]


def test_a_bare_off_in_yaml_is_the_mode_off() -> None:
    from stages.ingest.dedup import DedupParams

    assert issubclass(DedupParams, Entry)
    assert DedupParams.model_validate({"mode": False}).mode == "off"
    with pytest.raises(ValueError, match="mode"):
        DedupParams.model_validate({"mode": True})
