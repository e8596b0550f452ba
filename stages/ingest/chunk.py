"""Passages of a document, as spans of its text: ``text[start:end]`` is the passage.

* ``none``: the document is the passage.
* ``words``: windows of ``words`` words, each beginning ``words - overlap`` after the last.
* ``sentences``: whole sentences packed up to ``words`` words; the last sentences of a passage,
  up to ``overlap`` words of them, begin the next one.
* ``cdc``: content-defined: a passage ends after a sentence whose hash is 0 modulo ``m``, once
  it has ``lo`` words, and before it would exceed ``hi``. Where a passage ends depends on the
  text near by and not on what stands before, so an edit changes the passages around it and no
  other: after an edit the cuts fall on the old places from the next content-defined one on.
  (The idea is that of LBFS: Muthitacharoen, Chen & Mazières, SOSP 2001; here on sentences.)

No mode cuts inside a sentence unless that sentence alone exceeds the limit; ``words`` does.
"""

from typing import Literal

from pydantic import Field, model_validator

from stages.digest import digest
from stages.params import Entry
from stages.text import Span, count_words, split_sentences, word_spans

VERSION = "1"  # part of the record keys of passages

Mode = Literal["none", "words", "sentences", "cdc"]


class ChunkParams(Entry):
    """How documents become passages."""

    mode: Mode = "none"
    words: int = Field(200, gt=0)  # words, sentences: the largest passage
    overlap: int = Field(40, ge=0)  # words, sentences: shared with the passage before
    lo: int = Field(80, gt=0)  # cdc: no content-defined end before so many words
    hi: int = Field(320, gt=0)  # cdc: the largest passage
    m: int = Field(12, gt=0)  # cdc: one sentence in m may end a passage

    @model_validator(mode="after")
    def _bounds(self) -> "ChunkParams":
        if self.overlap >= self.words:
            raise ValueError(f"overlap ({self.overlap}) must be below words ({self.words})")
        if self.lo > self.hi:
            raise ValueError(f"lo ({self.lo}) must not exceed hi ({self.hi})")
        return self


def split_passages(
    text: str, *, mode: Mode, words: int, overlap: int, lo: int, hi: int, m: int
) -> list[Span]:
    """Spans of passages, in order. A document without text is one empty passage."""
    if mode == "none" or not text:
        return [(0, len(text))]
    if mode == "words":
        return _windows(word_spans(text), words, overlap)
    limit = hi if mode == "cdc" else words
    sentences = [part for span in split_sentences(text) for part in _fit(text, span, limit)]
    lens = [count_words(text[a:b]) for a, b in sentences]
    if mode == "sentences":
        return _pack(sentences, lens, words, overlap)
    return _cut(text, sentences, lens, lo, hi, m)


def _windows(spans: list[Span], words: int, overlap: int) -> list[Span]:
    """The last window ends at the last word; none lies inside the one before."""
    starts = range(0, max(1, len(spans) - overlap), words - overlap)
    return [(spans[i][0], spans[min(i + words, len(spans)) - 1][1]) for i in starts]


def _fit(text: str, span: Span, limit: int) -> list[Span]:
    """A sentence, or its pieces of ``limit`` words where it has more."""
    start, end = span
    if end - start <= limit:  # a word has a character at least
        return [span]
    return [(start + a, start + b) for a, b in _windows(word_spans(text[start:end]), limit, 0)]


def _pack(sentences: list[Span], lens: list[int], words: int, overlap: int) -> list[Span]:
    passages, first, size = [], 0, 0  # the passage being packed: its first sentence, its words
    for i, n in enumerate(lens):
        if i > first and size + n > words:
            passages.append((sentences[first][0], sentences[i - 1][1]))
            first, size = i, 0
            while (
                first > 0
                and size + lens[first - 1] <= overlap
                and size + lens[first - 1] + n <= words
            ):
                first -= 1
                size += lens[first]
        size += n
    passages.append((sentences[first][0], sentences[-1][1]))
    return passages


def _cut(text: str, sentences: list[Span], lens: list[int], lo: int, hi: int, m: int) -> list[Span]:
    passages, first, size = [], 0, 0
    for i, ((start, end), n) in enumerate(zip(sentences, lens, strict=True)):
        if i > first and size + n > hi:
            passages.append((sentences[first][0], sentences[i - 1][1]))
            first, size = i, 0
        size += n
        if size >= lo and int(digest(text[start:end])[:8], 16) % m == 0:
            passages.append((sentences[first][0], end))
            first, size = i + 1, 0
    if first < len(sentences):
        passages.append((sentences[first][0], sentences[-1][1]))
    return passages
