"""A vector depends on its text alone: whatever is encoded with it, however it is ordered."""

import random

import numpy as np
import pytest
from index_worlds import encoder_dir
from strategies import AWKWARD

from stages.encoder import TOKENS, open_encoder

WORDS = ("the", "etna", "fuji", "volcano", "river", "of", "climbed", "japan", "sicily", "in", "was")


def texts_of_all_lengths(n: int) -> list[str]:
    rng = random.Random(7)
    drawn = [" ".join(rng.choices(WORDS, k=rng.randint(1, 70))) for _ in range(24)]
    return rng.sample([*AWKWARD, *drawn], n)


@pytest.mark.parametrize("role", ["dense", "sparse"])
def test_a_vector_is_the_same_bytes_in_any_company_and_on_any_number_of_threads(role: str) -> None:
    encoder = open_encoder(encoder_dir(role), role, max_tokens=64)
    as_rows = np.asarray if role == "dense" else lambda v: v.toarray()
    texts = texts_of_all_lengths(40)
    together = as_rows(encoder.encode(texts, "passage"))
    order = random.Random(1).sample(range(len(texts)), len(texts))
    in_two = open_encoder(encoder_dir(role), role, max_tokens=64, threads=2)
    shuffled = as_rows(in_two.encode([texts[i] for i in order], "passage"))
    assert (shuffled == together[order]).all()
    for i in order[:5]:
        alone = as_rows(encoder.encode([texts[i]], "passage"))
        assert (alone[0] == together[i]).all(), "one new document"


def test_a_batch_without_any_padding_makes_no_difference() -> None:
    """A mask without a zero may be dropped on the way to another attention kernel."""
    encoder = open_encoder(encoder_dir("dense"), max_tokens=64)
    full = "etna " * 80  # cut to 64 tokens: no padding
    others = ["fuji " * 80] * (TOKENS["dense"] // 64 - 1)
    partly = ["river " * 50] * len(others)  # 52 tokens, padded to 64
    a, b = (encoder.encode([full, *rest], "passage")[0] for rest in (others, partly))
    assert (a == b).all()
