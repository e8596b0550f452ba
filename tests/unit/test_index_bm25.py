"""BM25 by hand, on five short texts, and what it takes for a word."""

import io
import sys
from math import log
from pathlib import Path

import pytest
from index_worlds import MOUNTAINS, built, opened, passages_of

from stages.index import bm25 as room
from stages.index.bm25 import word_splitter, word_stemmer
from stages.types import Hit

PLAIN = {"stopwords": "none", "stemmer": "none"}


def idf(n: int, df: int) -> float:
    return log(1 + (n - df + 0.5) / (df + 0.5))


def test_a_score_is_the_formula_of_the_docstring(tmp_path: Path) -> None:
    texts = {"a#0": ("", "red red blue"), "b#0": ("", "blue"), "c#0": ("", "green sky over sea")}
    bm25 = opened(built(tmp_path, "bm25", passages_of(texts), **PLAIN))
    (hits,) = bm25.search(["red blue"], 10)
    avgdl, k1, b = (3 + 1 + 4) / 3, 1.2, 0.75
    a_norm, b_norm = k1 * (1 - b + b * 3 / avgdl), k1 * (1 - b + b * 1 / avgdl)
    expected = [
        Hit("a#0", idf(3, 1) * 2 / (2 + a_norm) + idf(3, 2) * 1 / (1 + a_norm)),
        Hit("b#0", idf(3, 2) * 1 / (1 + b_norm)),
    ]
    assert [h.docid for h in hits] == [h.docid for h in expected]
    assert [h.score for h in hits] == pytest.approx([h.score for h in expected], rel=1e-6)


def test_a_word_that_the_query_repeats_counts_as_often(tmp_path: Path) -> None:
    bm25 = opened(built(tmp_path, "bm25", passages_of(MOUNTAINS)))
    once, twice = (bm25.search([q], 1)[0][0].score for q in ("volcano", "volcano volcano"))
    assert twice == pytest.approx(2 * once, rel=1e-6)


def test_k1_zero_and_b_zero_leave_the_idf_alone(tmp_path: Path) -> None:
    bm25 = opened(built(tmp_path, "bm25", passages_of(MOUNTAINS), k1=0.0, b=0.0))
    (hits,) = bm25.search(["volcano"], 10)
    assert [h.docid for h in hits] == ["fuji#0", "etna-copy#0", "etna#0"], "equal: by docid"
    assert [h.score for h in hits] == pytest.approx([idf(6, 3)] * 3, rel=1e-6)


def test_passages_without_a_word_of_the_query_are_no_hits(tmp_path: Path) -> None:
    bm25 = opened(built(tmp_path, "bm25", passages_of(MOUNTAINS)))
    found = bm25.search(["river", "zebra", "", "the of a"], 10)
    assert [[h.docid for h in hits] for hits in found] == [["rhine#0"], [], [], []]


def test_title_and_text_are_indexed(tmp_path: Path) -> None:
    bm25 = opened(built(tmp_path, "bm25", passages_of(MOUNTAINS)))
    assert {h.docid for h in bm25.search(["matterhorn"], 10)[0]} == {"matterhorn#0", "matterhorn#1"}


@pytest.mark.parametrize(
    ("stopwords", "stemmer", "text", "words"),
    [
        ("english", "english", "The Climbers climbed!", ["climber", "climb"]),
        ("none", "none", "The Climbers climbed!", ["the", "climbers", "climbed"]),
        ("german", "german", "Die Berge der Alpen", ["berg", "alp"]),
        ("none", "none", "a 東京 ﬁ x1", ["東京", "x1"]),
        ("none", "arabic", "", []),
    ],
)
def test_words_are_lower_case_without_stop_words_and_stemmed(
    stopwords, stemmer, text, words
) -> None:
    assert word_stemmer(stemmer)(word_splitter(stopwords)(text)) == words


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(("stderr", "shown"), [(Terminal, True), (io.StringIO, False)])
def test_a_long_build_shows_its_progress_on_a_terminal_alone(
    tmp_path: Path, monkeypatch, stderr, shown
) -> None:
    tqdm = room.tqdm

    def at_once(texts, *, delay: float, **how):
        return tqdm(texts, **how)

    monkeypatch.setattr(room, "tqdm", at_once)
    monkeypatch.setattr(sys, "stderr", stderr())
    built(tmp_path, "bm25", passages_of(MOUNTAINS))
    assert ("words" in sys.stderr.getvalue()) == shown
