"""What the extractors share: whole words, reasons, the sample, the table."""

from collections import Counter

import pytest
from strategies import passages_table as passages

from stages.digest import digest, uniform
from stages.triples.found import (
    Found,
    Triple,
    count,
    fold,
    keep_grounded,
    occurs,
    smallest,
    triples_table,
)


@pytest.mark.parametrize(
    ("phrase", "text", "there"),
    [
        ("195", "born in 1954", False),
        ("1954", "born in 1954.", True),
        ("art", "the party", False),
        ("art", "the party of art", True),  # the second place counts
        ("u.s.", "in the u.s. army", True),
        ("首都", "東京は日本の首都です", True),  # no blanks between words
        ("$5", "costs $5", True),
        ("", "anything", False),
    ],
)
def test_a_phrase_occurs_as_whole_words(phrase: str, text: str, there: bool) -> None:
    assert occurs(phrase, text) is there


def test_folding_joins_whitespace_and_case() -> None:
    assert fold("  New\n\tYork STRASSE ") == fold("new york straße")


def test_candidates_are_kept_once_in_order_and_the_rest_is_counted() -> None:
    rejected: Counter[str] = Counter()
    kept = keep_grounded(
        [
            Triple("Marie Curie", "born in", "Warsaw"),
            Triple("marie  curie", "Born in", "WARSAW"),  # equal but for case and blanks
            Triple("Maria", "born in", "Warsaw"),
            Triple("Marie Curie", "born in", "Paris"),
            Triple("Marie Curie", "Warsaw", "Warsaw"),
            Triple("Marie Curie", " ", "Warsaw"),
            Triple("Marie Curie", "born in", "..."),
            Triple("Curie (scientist)", "field", "physics"),  # the subject is in the title
        ],
        title="Curie (scientist)",
        text="Marie Curie, born in Warsaw, studied physics.",
        rejected=rejected,
    )
    assert kept == [
        Triple("Marie Curie", "born in", "Warsaw"),
        Triple("Curie (scientist)", "field", "physics"),
    ]
    assert rejected == {
        "duplicate": 1,
        "subject_not_in_text": 1,
        "object_not_in_text": 1,
        "repeated_field": 1,
        "empty_field": 2,
    }


def test_a_phrase_does_not_run_from_the_title_into_the_text() -> None:
    rejected: Counter[str] = Counter()
    triple = Triple("Ends here", "is", "x")
    assert keep_grounded([triple], title="Ends", text="here is x", rejected=rejected) == []


def test_found_survives_the_record_store() -> None:
    found = Found([Triple("a", "ist", "Straße | \n")], {"no_separator": 2}, "raw\ntext")
    assert Found.from_bytes(found.to_bytes()) == found


def test_the_sample_is_the_smallest_id_hashes_in_table_order() -> None:
    t = passages(*"abcdefgh")
    docids = t["docid"].to_pylist()
    chosen = smallest(t, 3)["docid"].to_pylist()
    assert set(chosen) == set(sorted(docids, key=uniform)[:3])
    assert chosen == sorted(chosen, key=docids.index)
    assert smallest(t, None) is t
    assert smallest(t, 8) is t


def test_facts_are_numbered_in_their_passage_and_carry_what_was_read() -> None:
    one = Found([Triple("a", "r", "b"), Triple("a", "r", "c")], {})
    t = triples_table(passages("x", "y", "z"), [one, Found([], {}), one])
    assert [(r["docid"], r["seq"], r["obj"], r["text_hash"]) for r in t.to_pylist()] == [
        ("d0#0", 0, "b", digest("t0", "x")),
        ("d0#0", 1, "c", digest("t0", "x")),
        ("d2#0", 0, "b", digest("t2", "z")),
        ("d2#0", 1, "c", digest("t2", "z")),
    ]


def test_counts_add_up_over_passages() -> None:
    found = [Found([Triple("a", "r", "b")], {"pronoun": 2}), Found([], {"pronoun": 1, "x": 1})]
    assert count(found) == {
        "passages": 2,
        "passages_without_triples": 1,
        "triples": 1,
        "rejected": {"pronoun": 2 + 1, "x": 1},
    }
    assert count([]) == {
        "passages": 0, "passages_without_triples": 0, "triples": 0, "rejected": {}
    }  # fmt: skip
