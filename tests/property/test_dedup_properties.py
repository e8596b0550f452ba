"""Which documents are the same does not depend on how they came."""

import random

from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import AWKWARD

from stages.ingest.dedup import band_hashes, find_duplicates

BASE = " ".join(f"w{chr(97 + i % 26)}{chr(97 + i // 26)}" for i in range(50))
# Texts that overlap more or less: a common base, cut and continued.
NEAR = st.builds(
    lambda cut, tail: " ".join([*BASE.split()[cut:], *["tail", "of", "it"][:tail]]),
    st.integers(0, 12), st.integers(0, 3),
)  # fmt: skip
TEXTS = st.lists(st.sampled_from(AWKWARD) | NEAR, max_size=14)


def duplicates(pairs: list[tuple[str, str]]) -> dict[str, str]:
    ids, texts = [i for i, _ in pairs], [t for _, t in pairs]
    kept = find_duplicates(
        ids, [len(t) for t in texts], texts, band_hashes(texts, ngram=5, r=8, b=14),
        lambda rows: [texts[i] for i in rows], ngram=5, least=0.8,
    )  # fmt: skip
    return dict(zip(ids, kept, strict=True))


@settings(max_examples=60)
@given(TEXTS, st.randoms(use_true_random=False))
def test_input_order_plays_no_part(texts: list[str], rng: random.Random) -> None:
    pairs = [(f"d{i}", t) for i, t in enumerate(texts)]
    before = duplicates(pairs)
    rng.shuffle(pairs)
    assert duplicates(pairs) == before


@settings(max_examples=60)
@given(TEXTS)
def test_every_document_points_to_one_that_is_kept_and_no_shorter(texts: list[str]) -> None:
    pairs = [(f"d{i}", t) for i, t in enumerate(texts)]
    length = {i: len(t) for i, t in pairs}
    kept = duplicates(pairs)
    for i, target in kept.items():
        assert not target or (kept[target] == "" and length[target] >= length[i])
    for text in set(texts):
        same = [i for i, t in pairs if t == text]
        assert sum(kept[i] == "" for i in same) <= 1, "equal texts are one"


@settings(max_examples=40)
@given(TEXTS, TEXTS)
def test_signatures_do_not_depend_on_how_the_work_is_cut(a: list[str], b: list[str]) -> None:
    def bands(texts: list[str]) -> list[list[int]]:
        return band_hashes(texts, ngram=5, r=8, b=14).tolist()

    assert bands(a + b) == bands(a) + bands(b)
