"""The signatures against the formula, the clusters against brute force."""

import random
import re
from itertools import combinations

import numpy as np
import pytest

from stages.ingest.dedup import band_hashes, find_duplicates, jaccard, shingle

PAIRS = 2000


@pytest.mark.parametrize(
    ("common", "own"), [(40, 20), (70, 15), (80, 10), (90, 5)], ids=["0.5", "0.7", "0.8", "0.9"]
)
def test_pairs_become_candidates_as_often_as_the_formula_says(common: int, own: int) -> None:
    """common / (common + 2 · own) = s; the rate lies within 3σ of 1 − (1 − s^8)^14."""
    rng = random.Random(common)
    pool = [f"{chr(97 + i % 26)}{chr(97 + i // 26 % 26)}{chr(97 + i // 676)}" for i in range(17576)]
    left, right = [], []
    for _ in range(PAIRS):
        words = rng.sample(pool, common + 2 * own)
        left.append(" ".join(words[: common + own]))
        right.append(" ".join(words[:common] + words[common + own :]))
    params = {"ngram": 1, "r": 8, "b": 14}
    agree = band_hashes(left, **params) == band_hashes(right, **params)
    s = common / (common + 2 * own)
    p = 1 - (1 - s**8) ** 14
    assert abs(agree.any(axis=1).mean() - p) <= 3 * np.sqrt(p * (1 - p) / PAIRS)


def sets_of_words(text: str, ngram: int) -> set[tuple[str, ...]]:
    words = re.findall(r"[^\W_]+", re.sub(r"\d", "0", text.lower()))
    return {tuple(words[i : i + ngram]) for i in range(max(1, len(words) - ngram + 1))}


def texts(n: int, seed: int) -> list[str]:
    """Families of texts: an original of 60 words, and copies with up to eight words replaced."""
    rng = random.Random(seed)
    pool = ["Stone", "water", "road,", "face.", "2021", "dust", "siren", "bench", "well", "Élan"]
    found: list[str] = []
    while len(found) < n:
        original = [rng.choice(pool) + rng.choice("abcdefgh") for _ in range(60)]
        for _ in range(rng.randint(1, 4)):
            copy = list(original)
            for _ in range(rng.randint(0, 8)):
                copy[rng.randrange(60)] = "changed" + rng.choice("xyz")
            found.append(" ".join(copy))
    return found[:n]


def test_hashed_shingles_have_the_jaccard_of_sets_of_words() -> None:
    sample = texts(40, seed=3)
    for a, b in combinations(sample, 2):
        x, y = sets_of_words(a, 5), sets_of_words(b, 5)
        ours = jaccard(*(np.unique(shingle([t], 5)[0]) for t in (a, b)))
        assert ours == len(x & y) / len(x | y)


def test_clusters_are_those_of_all_pairs_compared() -> None:
    """With one minimum a band and 128 bands every pair above 0.5 is a candidate."""
    sample = texts(300, seed=5)
    sets = [sets_of_words(t, 5) for t in sample]
    group = list(range(len(sample)))
    for i, j in combinations(range(len(sample)), 2):
        if len(sets[i] & sets[j]) / len(sets[i] | sets[j]) >= 0.5:
            group = [group[i] if g == group[j] else g for g in group]
    ids = [f"{i:03d}" for i in range(len(sample))]
    kept = find_duplicates(
        ids, [len(t) for t in sample], sample, band_hashes(sample, ngram=5, r=1, b=128),
        lambda rows: [sample[i] for i in rows], ngram=5, least=0.5,
    )  # fmt: skip
    ours = [k or i for i, k in zip(ids, kept, strict=True)]
    assert 0 < sum(map(bool, kept)) < len(sample)
    for i, j in combinations(range(len(sample)), 2):
        assert (ours[i] == ours[j]) == (group[i] == group[j])
