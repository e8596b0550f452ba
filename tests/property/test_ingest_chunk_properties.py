"""What holds for the passages of every text in every mode."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st
from strategies import long_text

from stages.ingest.chunk import ChunkParams, split_passages
from stages.text import canonicalise, count_words

MODES = st.sampled_from(["none", "words", "sentences", "cdc"])
SIZES = st.fixed_dictionaries(
    {"words": st.integers(2, 30), "overlap": st.integers(0, 1), "lo": st.integers(1, 10),
     "hi": st.integers(10, 40), "m": st.integers(1, 5)}
)  # fmt: skip


@given(long_text, MODES, SIZES)
def test_passages_together_hold_every_visible_character(text: str, mode: str, sizes: dict) -> None:
    text = canonicalise(text)
    covered = set()
    for start, end in split_passages(text, **ChunkParams(mode=mode, **sizes).model_dump()):
        assert 0 <= start <= end <= len(text)
        assert text[start:end] == text[start:end].strip()
        covered.update(range(start, end))
    assert all(text[i].isspace() for i in set(range(len(text))) - covered)


@given(long_text, SIZES)
def test_cdc_tiles_within_its_bounds(text: str, sizes: dict) -> None:
    text = canonicalise(text)
    params = ChunkParams(mode="cdc", **sizes)
    spans = split_passages(text, **params.model_dump())
    for (_, end), (start, _) in pairwise(spans):
        assert end <= start
        assert not text[end:start].strip()
    sizes_there = [count_words(text[a:b]) for a, b in spans]
    assert all(n <= params.hi for n in sizes_there)


@given(long_text, st.integers(2, 30))
def test_words_passages_are_full_but_for_the_last(text: str, words: int) -> None:
    text = canonicalise(text)
    params = ChunkParams(mode="words", words=words, overlap=1)
    spans = split_passages(text, **params.model_dump())
    assert all(count_words(text[a:b]) == words for a, b in spans[:-1])
